"""AdaPLD (arXiv 2606.05742): copies by words where it can, by meaning where it cannot, and branches.

What followed the longest n-gram that ends the text is copied, as in prompt lookup. Where no n-gram is found,
the place whose last positions are most like the present ones is copied from: by the paper, in the target's
hidden states. Each copied token has the target's own runners-up beside it, and one token below each.

Ours: a position is compared by the law the target had there, its best next tokens and their probabilities,
not by its hidden state. The law is a function of that state, every backend has it, and it costs nothing
here; two positions are as alike as the cosine of their laws. Knows token ids and laws only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.lookup.copying import PromptLookup
from hasten.errors import ConfigError
from hasten.tree import DraftTree

SYSTEM = System(
    name="adapld",
    title="AdaPLD: Adaptive Retrieval and Reuse for Efficient Model-Free Speculative Decoding",
    arxiv="2606.05742",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.adapld",
    summary="prompt lookup that falls back to places of like meaning, with runners-up beside what it copies",
)

Tokens = NDArray[np.int64]
Laws = NDArray[np.float32]

WIDTH = 8
"""Best next tokens kept of a position."""
WINDOW = 3
"""Positions that are compared."""
LIKENESS_WORTH = 0.5
"""Believed chance of a token copied from a place with the same laws."""


@numba.njit(cache=True)
def _likeness(ids: Tokens, probs: Laws, lengths: Laws, first: int, second: int) -> float:
    """The cosine of two positions' laws."""
    total = 0.0
    for a in range(WIDTH):
        for b in range(WIDTH):
            if ids[first, a] == ids[second, b]:
                total += np.float64(probs[first, a]) * np.float64(probs[second, b])
    return total / max(np.float64(lengths[first]) * np.float64(lengths[second]), 1e-9)


@numba.njit(cache=True)
def _most_alike(tokens: Tokens, ids: Tokens, probs: Laws, lengths: Laws, count: int) -> tuple[int, float]:
    """The place to copy from, whose last ``WINDOW`` positions are most like those before the last token.

    Rows 0 .. count - 1 are known, that of the last token is not. Where the token there is the last token
    too, that counts as one more. Returns where the copy starts, -1 for none, and the mean cosine.
    """
    best, best_score, best_mean = int(np.int64(-1)), 0.0, 0.0
    for place in range(WINDOW - 1, count - 1):
        total = 0.0
        for back in range(WINDOW):
            total += _likeness(ids, probs, lengths, place - back, count - 1 - back)
        mean = total / WINDOW
        score = mean + (1.0 if tokens[place + 1] == tokens[count] else 0.0)
        if score >= best_score and mean > 0:
            best, best_score, best_mean = place + 2, score, mean
    return best, best_mean


@dataclass(slots=True, eq=False)
class _Text:
    """One text's laws: row i is that after token i; rows without one have no candidates."""

    ids: Tokens = field(default_factory=lambda: np.full((64, WIDTH), -1, np.int64))
    probs: Laws = field(default_factory=lambda: np.zeros((64, WIDTH), np.float32))
    lengths: Laws = field(default_factory=lambda: np.zeros(64, np.float32))
    count: int = 0
    newest: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    """token -> the newest law after it"""

    def add(self, token_ids: list[int], rows: TopCandidates) -> None:
        """The laws after the next tokens of the text."""
        end = self.count + len(token_ids)
        while end > len(self.ids):
            self.ids = np.concatenate((self.ids, np.full_like(self.ids, -1)))
            self.probs = np.concatenate((self.probs, np.zeros_like(self.probs)))
            self.lengths = np.concatenate((self.lengths, np.zeros_like(self.lengths)))
        width = min(WIDTH, rows.token_ids.shape[1])
        places = np.arange(len(token_ids)) if rows.positions is None else rows.positions
        at = self.count + places
        self.ids[at, :width] = rows.token_ids[:, :width]
        self.probs[at, :width] = np.where(rows.probs[:, :width] > 0, rows.probs[:, :width], 0)
        self.lengths[at] = np.linalg.norm(self.probs[at], axis=1)
        laws = zip(rows.token_ids.tolist(), rows.probs.tolist(), strict=True)
        self.newest.update(zip((token_ids[place] for place in places), laws, strict=True))
        self.count = end


class AdaPld(Forgetful):
    """Copies with branches.

    Args:
        num_tokens: the most to copy.
        num_branches: runners-up beside a copied token (the paper's code: 4), each with one token below.
    """

    name = "adapld"
    top_k = WIDTH

    def __init__(self, *, num_tokens: int = 10, num_branches: int = 4) -> None:
        if num_branches < 0:
            raise ConfigError(f"num_branches={num_branches} cannot work; it must be 0 or more")
        self._lookup = PromptLookup(num_tokens=num_tokens, occurrence="last")
        self._num_tokens = num_tokens
        self._num_branches = num_branches
        self._texts: dict[Sequence, _Text] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self._lookup.begin(sequence, None)
        text = self._texts[sequence] = _Text()
        if prompt_candidates is not None:
            text.add(sequence.token_ids[:-1], prompt_candidates)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        copied = self._lookup.propose(sequence, budget)
        tokens, scores = copied.token_ids.tolist(), copied.scores.tolist()
        if not tokens:
            tokens, scores = self._by_meaning(sequence, budget)
        return self._with_branches(sequence, tokens, scores, budget)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        self._lookup.observe(sequence, observation)
        if observation.candidates is None:
            return
        written = observation.acceptance.token_ids
        root = sequence.token_ids[-len(written) - 1]
        rows = [0, *(node + 1 for node in observation.acceptance.path)][: len(written)]
        candidates = observation.candidates
        text = self._texts[sequence]
        if text.count == len(sequence.token_ids) - len(written) - 1:
            law = TopCandidates(candidates.token_ids[rows], candidates.probs[rows])
            text.add([root, *written[: len(rows) - 1]], law)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._lookup.begin(child, None)
        self._texts[child] = copy.deepcopy(self._texts[parent])

    def end(self, sequence: Sequence) -> None:
        self._lookup.end(sequence)
        self._texts.pop(sequence, None)

    def _by_meaning(self, sequence: Sequence, budget: int) -> tuple[list[int], list[float]]:
        text, token_ids = self._texts[sequence], sequence.token_ids
        if text.count != len(token_ids) - 1:  # laws are missing: no place is known to be alike
            return [], []
        start, likeness = _most_alike(
            np.array(token_ids, np.int64), text.ids, text.probs, text.lengths, text.count
        )
        if start < 0:
            return [], []
        tokens = token_ids[start : start + min(budget, self._num_tokens)]
        chance = LIKENESS_WORTH * min(likeness, 1.0)
        return tokens, [chance ** (depth + 1) for depth in range(len(tokens))]

    def _with_branches(
        self, sequence: Sequence, chain: list[int], scores: list[float], budget: int
    ) -> DraftTree:
        """The chain first, then the runners-up beside each of its tokens and after its last, a level each."""
        tree = DraftTree.chain(chain[:budget], scores[:budget], source_names=(self.name,))
        newest = self._texts[sequence].newest
        tokens, parents, all_scores = list(chain[:budget]), tree.parents.tolist(), list(scores[:budget])
        for parent in range(-1, len(tokens)):
            above = sequence.token_ids[-1] if parent < 0 else tokens[parent]
            base = 1.0 if parent < 0 else all_scores[parent]
            copied = tokens[parent + 1] if parent + 1 < len(tree) else None
            laws, chances = newest.get(above, ([], []))
            branches = [pair for pair in zip(laws, chances, strict=True) if pair[0] != copied and pair[1] > 0]
            for token, chance in branches[: self._num_branches]:
                if len(tokens) >= budget:
                    break
                tokens.append(token)
                parents.append(parent)
                all_scores.append(base * min(chance, 1.0))
                below, below_chances = newest.get(token, ([], []))
                if below and below_chances[0] > 0 and len(tokens) < budget:
                    tokens.append(below[0])
                    parents.append(len(tokens) - 2)
                    all_scores.append(all_scores[-1] * min(below_chances[0], 1.0))
        return DraftTree(tokens, parents, all_scores, source_names=(self.name,))
