"""Replays drafters against texts a model wrote once, so that a change of a drafter is measured in seconds.

python bench/replay.py record MODEL -o RECORD.npz PROMPTS.jsonl... [--temperature 0.7] [--limit 10]
python bench/replay.py run RECORD.npz DRAFTER... [--nodes 16] [--half first|second]

A record holds the texts and the model's best candidates at every position of them, and at every draft node
that was verified while they were written. A replayed drafter is shown the candidates of nodes that are in the
record: all on the text, and those rejected ones that the recording's drafts had too (the column "known" is
their share of all). It learns from less than it would with the model, so lengths come out too low;
compare drafters with each other. Texts end where they begin to loop: from there on, any drafter is right;
with ``record --loops`` they are kept whole. What is tuned on one half of the texts is reported on the other.

Columns: mean acceptance length / expected over actual tokens, for each prompt set; CPU time of proposing and
observing a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hasten
from hasten.bench.prompts import load_prompt_set, spread
from hasten.chat import chat_prompt, stop_strings
from hasten.core import Acceptance, SamplingParams, Sequence, TopCandidates
from hasten.drafters import Drafter, Observation, Resources, make_drafter
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import ROOT, DraftTree

NUM_CANDIDATES = 16
LOOP = 32
"""A text that repeats so many of its own tokens is looping."""
SHORTEST = 24
MAX_PROMPT = 700


@dataclass
class Text:
    """One text and what the model thought of it: a trie of rows, the text's own positions first."""

    name: str
    prompt_length: int
    token_ids: list[int]
    seed: int
    rows: dict[tuple[int, int], int] = field(default_factory=dict)
    """(row, token) -> the row after that token, off the text"""
    candidate_ids: list[NDArray[np.int32]] = field(default_factory=list)
    probs: list[NDArray[np.float32]] = field(default_factory=list)

    def row_after(self, row: int, token: int) -> int | None:
        """Row i stands behind token i; rows off the text come behind all of them."""
        if row + 1 < len(self.token_ids) and self.token_ids[row + 1] == token:
            return row + 1
        return self.rows.get((row, token))


class Recording:
    """Drafts like another drafter, and keeps all candidates it is shown."""

    def __init__(self, inner: Drafter) -> None:
        self.name = "recording"
        self.inner = inner
        self.top_k = NUM_CANDIDATES
        self.seen: list[tuple[int, DraftTree, TopCandidates]] = []
        self.prompt: TopCandidates | None = None

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self.prompt, self.seen = prompt_candidates, []
        self.inner.begin(sequence, _narrowed(prompt_candidates, self.inner.top_k))

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return self.inner.propose(sequence, budget)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        assert observation.candidates is not None
        root = len(sequence.token_ids) - len(observation.acceptance.token_ids) - 1
        self.seen.append((root, observation.tree, observation.candidates))
        narrow = _narrowed(observation.candidates, self.inner.top_k)
        self.inner.observe(sequence, Observation(observation.tree, observation.acceptance, narrow))

    def end(self, sequence: Sequence) -> None:
        self.inner.end(sequence)

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None: ...

    def text(self, name: str, prompt_ids: list[int], token_ids: list[int], seed: int) -> Text:
        text = Text(name, len(prompt_ids), [*prompt_ids, *token_ids], seed)
        width = min(NUM_CANDIDATES, self.seen[0][2].token_ids.shape[1])
        text.candidate_ids = [np.zeros(width, np.int32)] * len(text.token_ids)
        text.probs = [np.zeros(width, np.float32)] * len(text.token_ids)
        if self.prompt is not None:
            self._put(text, range(len(self.prompt.token_ids)), self.prompt)
        for root, tree, candidates in self.seen:
            places: list[int] = []
            for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
                above = root if parent == ROOT else places[parent]
                row = text.row_after(above, token)
                if row is None:
                    row = text.rows[above, token] = len(text.probs)
                    text.candidate_ids.append(text.candidate_ids[0])
                    text.probs.append(text.probs[0])
                places.append(row)
            self._put(text, [root, *places], candidates)
        return text

    @staticmethod
    def _put(text: Text, rows: Any, candidates: TopCandidates) -> None:
        for row, token_ids, probs in zip(rows, candidates.token_ids, candidates.probs, strict=True):
            text.candidate_ids[row], text.probs[row] = token_ids.astype(np.int32), probs


def _narrowed(candidates: TopCandidates | None, width: int) -> TopCandidates | None:
    if candidates is None or not width:
        return None
    return TopCandidates(candidates.token_ids[:, :width], candidates.probs[:, :width])


def loop_start(token_ids: list[int]) -> int:
    """Where a text begins to repeat LOOP tokens of itself; its length if it does not."""
    seen: set[tuple[int, ...]] = set()
    for start in range(len(token_ids) - LOOP + 1):
        window = tuple(token_ids[start : start + LOOP])
        if window in seen:
            return start
        seen.add(window)
    return len(token_ids)


def record(options: argparse.Namespace) -> None:
    """Write every prompt's text, drafting much, so that rejected nodes of many kinds are seen too."""
    lm = hasten.load(options.model, dtype=options.dtype, drafter="off")
    sets = [load_prompt_set(source, lm.target.vocab_size) for source in options.prompts]
    chosen = [[(each.name, one) for one in spread(each.conversations, options.limit)] for each in sets]
    texts: list[Text] = []
    for name, conversation in (one for row in zip_longest(*chosen) for one in row if one):
        prompt: Any = conversation.turns[0]
        if conversation.is_chat:
            prompt = chat_prompt(lm.tokenizer, [{"role": "user", "content": prompt}])
        prompt_ids = lm.encode(prompt)
        if len(prompt_ids) > MAX_PROMPT:
            continue
        seed = 1000 * len(texts) + 7
        params = SamplingParams(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=seed,
            stop=stop_strings(lm.tokenizer) if conversation.is_chat else (),
        )
        recording = Recording(make_drafter(options.drafter, Resources(lm.target.vocab_size)))
        output = lm.generate(prompt_ids, params, drafter=recording, num_draft_tokens=options.nodes)
        end = len(output.token_ids) if options.loops else loop_start(output.token_ids)
        print(f"{name}: {len(prompt_ids)} + {len(output.token_ids)} tokens, used {end}", flush=True)
        if end >= SHORTEST:
            texts.append(recording.text(name, prompt_ids, output.token_ids, seed))
            texts[-1].token_ids = texts[-1].token_ids[: len(prompt_ids) + end]
            save(options.output, texts, lm.target.vocab_size, options.temperature)


def save(path: str, texts: list[Text], vocab_size: int, temperature: float) -> None:
    """Rows on the text beyond its end (where it loops) are kept, but nothing leads there."""
    arrays: dict[str, Any] = {
        "vocab_size": vocab_size,
        "temperature": temperature,
        "names": np.array([text.name for text in texts]),
    }
    for place, text in enumerate(texts):
        edges = [(*edge, row) for edge, row in text.rows.items()]
        arrays |= {
            f"{place}/tokens": np.array([text.prompt_length, text.seed, *text.token_ids]),
            f"{place}/edges": np.array(edges, np.int64).reshape(-1, 3),
            f"{place}/ids": np.stack(text.candidate_ids),
            f"{place}/probs": np.stack(text.probs),
        }
    np.savez_compressed(path, **arrays)


def load(path: str) -> tuple[list[Text], int, float]:
    arrays = np.load(path)
    texts = []
    for place, name in enumerate(arrays["names"]):
        prompt_length, seed, *token_ids = arrays[f"{place}/tokens"].tolist()
        rows = {(row, token): after for row, token, after in arrays[f"{place}/edges"].tolist()}
        ids, probs = arrays[f"{place}/ids"], arrays[f"{place}/probs"]
        texts.append(Text(str(name), prompt_length, token_ids, seed, rows, ids, probs))
    return texts, int(arrays["vocab_size"]), float(arrays["temperature"])


@dataclass
class Result:
    """What a drafter did on some texts."""

    num_steps: int = 0
    num_tokens: int = 0
    expected: float = 0.0
    seconds: float = 0.0
    num_nodes: int = 0
    num_known: int = 0

    def __add__(self, other: Result) -> Result:
        return Result(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


def replay(drafter: Drafter, text: Text, nodes: int, temperature: float) -> Result:
    """Draft one text from its prompt to its end."""
    params = SamplingParams(max_new_tokens=len(text.token_ids), temperature=temperature)
    sequence = Sequence(
        token_ids=text.token_ids[: text.prompt_length],
        prompt_length=text.prompt_length,
        max_length=len(text.token_ids),
        sampler=Sampler(params, text.seed),
        stop_rule=StopConditions(frozenset(), len(text.token_ids), None),
    )
    result = Result()
    drafter.begin(sequence, _candidates(text, list(range(text.prompt_length - 1)), drafter.top_k))
    while sequence.num_remaining > 0:
        root = len(sequence.token_ids) - 1
        started = time.process_time()
        tree = drafter.propose(sequence, nodes)
        result.seconds += time.process_time() - started
        tree = tree.sanitised(2**31, sequence.num_remaining - 1).head(nodes)
        path = _path(tree, text.token_ids[root + 1 :])
        written = text.token_ids[root + 1 : root + 2 + len(path)]
        known, places = _known(text, tree, root)
        candidates = _candidates(text, [root, *places], drafter.top_k)
        kept = tree.select(known, _renumbered(tree, known))
        accepted = [known.index(node) for node in path]
        sequence.token_ids += written
        started = time.process_time()
        drafter.observe(sequence, Observation(kept, Acceptance(accepted, written), candidates))
        result.seconds += time.process_time() - started
        result += Result(1, len(written), 1 + float(tree.scores.sum()), 0.0, len(tree), len(known))
    drafter.end(sequence)
    return result


def _path(tree: DraftTree, following: list[int]) -> list[int]:
    path: list[int] = []
    node = ROOT
    for token in following:
        below = tree.child(node, token)
        if below is None:
            break
        node = below
        path.append(node)
    return path


def _known(text: Text, tree: DraftTree, root: int) -> tuple[list[int], list[int]]:
    """The nodes whose candidates are in the record, and their rows."""
    row_of: dict[int, int] = {ROOT: root}
    for node, (token, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
        if parent in row_of:
            row = text.row_after(row_of[parent], token)
            if row is not None and text.probs[row][0] > 0:
                row_of[node] = row
    del row_of[ROOT]
    return list(row_of), list(row_of.values())


def _renumbered(tree: DraftTree, nodes: list[int]) -> list[int]:
    places = {ROOT: ROOT} | {node: place for place, node in enumerate(nodes)}
    return [places[int(tree.parents[node])] for node in nodes]


def _candidates(text: Text, rows: list[int], top_k: int) -> TopCandidates | None:
    if not top_k:
        return None
    ids = np.asarray(text.candidate_ids)[rows, :top_k].astype(np.int64)
    return TopCandidates(ids, np.asarray(text.probs)[rows, :top_k])


def run(options: argparse.Namespace) -> None:
    texts, vocab_size, temperature = load(options.record)
    if options.half:
        texts = [text for place, text in enumerate(texts) if place // 4 % 2 == (options.half == "second")]
    names = list(dict.fromkeys(text.name for text in texts))
    lengths = [len(text.token_ids) - text.prompt_length for text in texts]
    print(f"{len(texts)} texts, {sum(lengths)} tokens, temperature {temperature}, {options.nodes} nodes")
    head = "".join(f"{name[:10]:>11}" for name in names)
    print(f"{'drafter':28}{head}{'all':>7}{'expected':>10}{'ms/step':>9}{'known':>7}")
    for name in options.drafters:
        drafter = make_drafter(name, Resources(vocab_size))
        replay(drafter, texts[0], options.nodes, temperature)  # compiles
        drafter = make_drafter(name, Resources(vocab_size))
        by_set = {each: Result() for each in names}
        for text in _mixed(texts):
            by_set[text.name] += replay(drafter, text, options.nodes, temperature)
        total = sum(by_set.values(), Result())
        cells = "".join(
            f"{one.num_tokens / one.num_steps:6.2f}/{one.expected / one.num_tokens:4.2f}"
            for one in by_set.values()
        )
        length, expected = total.num_tokens / total.num_steps, total.expected / total.num_tokens
        milliseconds, known = 1000 * total.seconds / total.num_steps, total.num_known / total.num_nodes
        print(f"{name:28}{cells}{length:7.3f}{expected:10.3f}{milliseconds:9.3f}{known:7.2f}", flush=True)


def _mixed(texts: list[Text]) -> Iterator[Text]:
    """The sets in turns, so that none of them finds a drafter that knows all the others."""
    order = np.random.default_rng(0).permutation(len(texts))
    yield from (texts[place] for place in order)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    writer = commands.add_parser("record")
    writer.add_argument("model")
    writer.add_argument("prompts", nargs="+")
    writer.add_argument("-o", "--output", required=True)
    writer.add_argument("--temperature", type=float, default=0.0)
    writer.add_argument("--limit", type=int, default=10)
    writer.add_argument("--max-new-tokens", type=int, default=128)
    writer.add_argument("--nodes", type=int, default=40)
    writer.add_argument("--drafter", default="token-recycling+stand+logitspec+suffix")
    writer.add_argument("--dtype", default="bfloat16")
    writer.add_argument("--loops", action="store_true", help="keep what texts repeat of themselves")
    writer.set_defaults(command=record)
    reader = commands.add_parser("run")
    reader.add_argument("record")
    reader.add_argument("drafters", nargs="+")
    reader.add_argument("--nodes", type=int, default=16)
    reader.add_argument("--half", choices=("first", "second"), help="of the texts, by fours; default: all")
    reader.set_defaults(command=run)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
