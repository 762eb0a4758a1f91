"""STAND remembers laws by the tokens before them and draws drafts from them as the target will."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from proposals import candidates, check_tree, gains, paths, sequence_of

from hasten.core import Acceptance, SamplingParams, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.coupling import MAX_AHEAD
from hasten.drafters.tables.stand import Stand
from hasten.errors import ConfigError, StoreError
from hasten.sampling import Sampler
from hasten.tree import DraftTree
from judges import wanting

VOCAB = 60


def law(first: int) -> tuple[list[int], list[float]]:
    return [first + rank for rank in range(8)], [0.6, 0.2, 0.1, 0.04, 0.02, 0.01, 0.01, 0.01]


def after_four(text: list[int]) -> tuple[list[int], list[float]]:
    """A target that looks at the last four tokens."""
    best = (7 * sum(text[-4:]) + text[-1] + 3) % VOCAB
    return [(best + rank) % VOCAB for rank in range(8)], law(0)[1]


def sampled(token_ids: list[int], seed: int, temperature: float = 1.0):  # type: ignore[no-untyped-def]
    sequence = sequence_of(token_ids)
    sequence.sampler = Sampler(SamplingParams(temperature=temperature), seed)
    sequence.max_length = len(token_ids) + 50
    return sequence


def test_a_node_is_remembered_by_its_own_path() -> None:
    """Siblings and what lies beside a node in the pass are no context of it."""
    drafter = Stand(VOCAB)
    tree = DraftTree([10, 11, 12, 12], [-1, -1, 0, 1])
    rows = [law(0), law(8), law(16), law(24), law(32)]
    drafter.observe(sequence_of([1, 2, 9]), Observation(tree, Acceptance([], [9]), candidates(rows)))
    for path, expected in (([10, 12], 24), ([11, 12], 32)):
        best = drafter.propose(sequence_of([1, 2, *path]), 1)
        assert best.token_ids.tolist() == [expected]


def test_the_tokens_before_a_call_are_part_of_the_context() -> None:
    drafter = Stand(VOCAB)
    for before, first in ((3, 20), (4, 30)):
        observed = Observation(DraftTree(), Acceptance([], [50]), candidates([law(first)]))
        drafter.observe(sequence_of([before, 5, 50]), observed)
    assert drafter.propose(sequence_of([3, 5]), 1).token_ids.tolist() == [20]
    assert drafter.propose(sequence_of([4, 5]), 1).token_ids.tolist() == [30]
    assert drafter.propose(sequence_of([6, 5]), 1).token_ids.tolist() == [
        30
    ]  # unknown: the newest of token 5


def test_a_target_of_four_tokens_is_drafted_to_full_depth_on_the_second_visit() -> None:
    period = [1, 2, 3, 1, 2, 4, 1, 2, 5]

    def target(written: list[int]) -> tuple[list[int], list[float]]:
        following = period[len(written) % len(period)]
        return [following, *range(40, 47)], law(0)[1]

    drafter = Stand(VOCAB)
    found = gains(drafter, sequence_of(period[:2]), target, budget=24, num_steps=14)
    assert found[-1] == MAX_AHEAD + 1


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_first_guess_is_what_the_target_draws_from_the_remembered_law(temperature: float) -> None:
    drafter = Stand(VOCAB)
    ids, probs = law(20)
    drafter.begin(sequence_of([5, 5]), candidates([(ids, probs)]))
    logits = torch.full((VOCAB,), -torch.inf)
    logits[ids] = torch.tensor(probs).log()
    drawn = set()
    for seed in range(40):
        sequence = sampled([7, 5], seed, temperature)
        tree = drafter.propose(sequence, 1)
        assert tree.token_ids[0] == sequence.sampler.guess(logits, len(sequence.token_ids))
        drawn.add(int(tree.token_ids[0]))
    assert len(drawn) > 2


def test_every_depth_is_drawn_with_its_own_noise() -> None:
    drafter = Stand(VOCAB)
    ids, probs = [20, 21], [0.5, 0.5]
    for token in (5, 20, 21):
        drafter.begin(sequence_of([token, token]), candidates([(ids, probs)]))
    logits = torch.full((VOCAB,), -torch.inf)
    logits[ids] = torch.tensor(probs).log()
    for seed in range(10):
        sequence = sampled([7, 5], seed)
        tree = drafter.propose(sequence, 30)
        node = -1
        for depth in range(4):
            following = sequence.sampler.guess(logits, len(sequence.token_ids) + depth)
            below = np.flatnonzero(tree.parents == node)
            node = int(below[np.argmax(tree.scores[below])])
            assert tree.token_ids[node] == following


def test_rules_that_draw_otherwise_get_the_likeliest_tokens() -> None:
    drafter = Stand(VOCAB)
    drafter.begin(sequence_of([5, 5]), candidates([law(20)]))
    for seed in range(10):
        sequence = sampled([7, 5], seed)
        sequence.judge = wanting("chosen")
        assert drafter.propose(sequence, 1).token_ids.tolist() == [20]


@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_trees_fit_the_budget_and_hold_a_token_once_below_a_node(budget: int) -> None:
    drafter = Stand(VOCAB)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 12, 80).tolist()
    drafter.begin(sequence_of(text), candidates([after_four(text[: end + 1]) for end in range(79)]))
    tree = drafter.propose(sequence_of(text), budget)
    check_tree(tree, budget)
    assert len(paths(tree)) == len(tree) == (0 if budget == 0 else len(tree))
    assert len(tree) > 0 or budget == 0


def test_laws_of_some_prompt_positions_are_kept_by_what_stood_before_them() -> None:
    drafter = Stand(VOCAB)
    some = candidates([law(20), law(30)])
    sequence = sequence_of([1, 5, 2, 5, 3])
    drafter.begin(sequence, TopCandidates(some.token_ids, some.probs, np.array([1, 3])))
    assert drafter.propose(sequence_of([1, 5]), 1).token_ids.tolist() == [20]
    assert drafter.propose(sequence_of([2, 5]), 1).token_ids.tolist() == [30]
    assert len(drafter.propose(sequence_of([2]), 1)) == 0


def test_a_full_memory_forgets_what_was_not_used_for_longest() -> None:
    drafter = Stand(VOCAB, capacity=16)
    for token in range(40):
        drafter.begin(sequence_of([token, 59]), candidates([law(token % 50)]))
    known = [token for token in range(40) if len(drafter.propose(sequence_of([token]), 1))]
    assert known == list(range(24, 40))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("successors", VOCAB, "between -1 and 59"),
        ("successors", -2, "between -1 and 59"),
        ("laws", np.nan, "between 0 and 1"),
        ("laws", 1.5, "between 0 and 1"),
        ("heads", 2**62, "clocks below"),
        ("heads", -2, "-1 or more"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(key: str, value: float, message: str) -> None:
    drafter = Stand(VOCAB, capacity=32)
    state = drafter.state()
    state[key][:] = value
    with pytest.raises(StoreError, match=message):
        drafter.restore(state)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity=3"):
        Stand(VOCAB, capacity=3)
