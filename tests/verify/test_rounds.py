"""Rules that sample, over several rounds: their law by chi-square, what processors and stop rules see."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from forks import NoStop, sequence_of
from sampled_trees import EXACT, Laws, grown, rule_of

from hasten.core import SamplingParams
from hasten.detokenising import Detokeniser
from hasten.laws import draw
from hasten.sampling import Sampler
from hasten.stopping import StopConditions, TextStream
from hasten.tree import DraftTree

LENGTH = 3
RUNS = 1200
PARAMS = SamplingParams(temperature=1.0)


class ReusedNoise(Sampler):
    """Every round draws the numbers of the first one again."""

    def generator(self, position, stream):
        return super().generator(0, stream)


def excess(counts, expected):
    """How many standard deviations chi-square is above its mean."""
    total = sum(counts.values())
    common = [key for key, chance in expected.items() if chance * total >= 5]
    cells = [(counts[key], expected[key] * total) for key in common]
    rest = (total - sum(cell[0] for cell in cells), total - sum(cell[1] for cell in cells))
    if rest[1] > 1:
        cells.append(rest)
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return (statistic - len(cells) + 1) / np.sqrt(2 * (len(cells) - 1))


def texts(name, kind, branching, sampler_class=Sampler, runs=RUNS):
    """The first tokens of many texts, and how many tokens a round wrote."""
    target, draft = Laws(3, seed=1), Laws(3, seed=2)
    rule, counts, num_rounds, num_tokens = rule_of(name), Counter(), 0, 0
    for seed in range(runs):
        sequence = sequence_of(sampler_class(PARAMS, seed), (0,), NoStop())
        while len(sequence.new_token_ids) < LENGTH:
            generator = sequence.sampler.generator(len(sequence.token_ids), 5)
            tree = grown(
                draft,
                tuple(sequence.token_ids),
                kind,
                branching,
                lambda law, generator=generator: draw(law, generator),
            )
            acceptance = rule(tree, target.rows(sequence.token_ids, tree), sequence)
            sequence.token_ids += acceptance.token_ids
            num_rounds, num_tokens = num_rounds + 1, num_tokens + len(acceptance.token_ids)
        counts[tuple(sequence.new_token_ids[:LENGTH])] += 1
    return excess(counts, target.texts([0], LENGTH)), num_tokens / num_rounds


@pytest.mark.parametrize(
    ("name", "kind", "branching"),
    [
        ("residual", "distinct", (2, 1)),
        ("residual-independent", "iid", (2, 1)),
        ("k-sequential", "iid", (2, 1)),
        ("block", "distinct", (1, 1)),
        ("traversal", "distinct", (2, 1)),
        ("traversal", "mixed", (2, 1)),
        ("naive", "distinct", (2, 1)),
        ("point-mass", "chosen", (2, 1)),
    ],
)
def test_texts_of_several_rounds_have_the_law_of_plain_sampling(name, kind, branching):
    deviation, gained = texts(name, kind, branching)
    assert deviation < 4
    assert gained > 1.3


@pytest.mark.parametrize("name", ["residual", "k-sequential", "block", "traversal"])
def test_this_must_fail_noise_used_again_in_later_rounds(name):
    deviation, _ = texts(name, "distinct", (1, 1), ReusedNoise)
    assert deviation > 8


class Spy:
    """A processor with a state: it counts its calls and forbids a token that depends on them."""

    def __init__(self, seen):
        self.seen, self.text = seen, None

    def __deepcopy__(self, memo):
        fork = Spy([])
        fork.text = self.text
        return fork

    def __call__(self, input_ids, scores):
        text = input_ids[0].tolist()
        assert self.text is None or text[:-1] == self.text, "a position was left out or asked for twice"
        self.text = text
        self.seen.append(text)
        scores[:, len(text) % 5] = -torch.inf
        return scores


def five_rows(tree, text):
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.normal(0, 1, (len(tree) + 1, 5))).float()


def random_tree(rng):
    count = int(rng.integers(0, 9))
    tree = DraftTree(rng.integers(0, 5, count), [int(rng.integers(-1, node)) for node in range(count)])
    tree = tree.sanitised(5, 10)
    tree.draft_probs = rng.dirichlet(np.ones(5), len(tree)).astype(np.float32)
    return tree


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*EXACT, "typical"])
def test_processors_with_a_state_see_each_written_position_once_and_in_order(name, temperature):
    rng = np.random.default_rng(0)
    for seed in range(40):
        sampler, seen = Sampler(SamplingParams(temperature=temperature), seed), []
        sampler.processors = [Spy(seen)]
        sequence = sequence_of(sampler, [1, 2])
        for _ in range(2):  # the state goes on in the next round
            tree = random_tree(rng)
            acceptance = rule_of(name)(tree, five_rows(tree, sequence.token_ids), sequence)
            sequence.token_ids += acceptance.token_ids
        assert seen == [sequence.token_ids[:end] for end in range(2, len(sequence.token_ids))]
        assert all(token != at % 5 for at, token in enumerate(sequence.token_ids) if at >= 2)


class Letters:
    """A tokenizer of five letters."""

    def decode(self, token_ids, **options):
        return "".join("abcde"[token_id] for token_id in token_ids)


class Told:
    """Remembers what a stop rule was told."""

    def __init__(self, rule):
        self.rule, self.tokens = rule, []

    def after(self, token_id):
        assert not self.tokens or self.reason is None, "told of a token after the stop"
        self.tokens.append(token_id)
        self.reason = self.rule.after(token_id)
        return self.reason


def stops():
    yield "stop token", lambda: StopConditions(frozenset([4]), 100, None)
    yield "length", lambda: StopConditions(frozenset(), 2, None)
    yield (
        "stop string",
        lambda: StopConditions(frozenset(), 100, TextStream(Detokeniser(Letters()), "bc")),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*EXACT, "typical"])
def test_a_round_ends_at_the_first_stop(name, temperature):
    """The same tokens as without stops, cut: one call a written token, and none after the stop."""
    rng, num_cut = np.random.default_rng(1), 0
    for seed in range(60):
        tree = random_tree(rng)
        logits = five_rows(tree, None)
        if len(tree):  # so that whole paths are accepted
            logits[torch.from_numpy(tree.parents + 1), torch.from_numpy(tree.token_ids)] = 9.0
        params = SamplingParams(temperature=temperature)
        whole = rule_of(name)(tree, logits, sequence_of(Sampler(params, seed), [0])).token_ids
        for _, make in stops():
            told, alone = Told(make()), make()
            acceptance = rule_of(name)(tree, logits, sequence_of(Sampler(params, seed), [0], told))
            reasons = [alone.after(token) for token in whole]
            end = next((at + 1 for at, reason in enumerate(reasons) if reason), len(whole))
            assert acceptance.token_ids == told.tokens == whole[:end]
            assert acceptance.finish_reason == reasons[end - 1]
            assert len(acceptance.path) == end - 1
            num_cut += end < len(whole)
    assert num_cut > 10


@pytest.mark.parametrize("name", [*EXACT, "residual-independent", "typical"])
def test_the_same_seed_writes_the_same_text_and_another_may_not(name):
    tree = random_tree(np.random.default_rng(5))
    logits = five_rows(tree, None)
    runs = [
        [rule_of(name)(tree, logits, sequence_of(Sampler(PARAMS, seed), [0])) for seed in range(20)]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len({tuple(acceptance.token_ids) for acceptance in runs[0]}) > 1
