"""Prompt lookup, CopySpec and LLMA copy what followed the last tokens before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies
from proposals import check_tree, gains, sequence_of

from hasten.core import Acceptance
from hasten.drafters.base import Observation
from hasten.drafters.lookup.copying import CopySpec, Llma, PromptLookup, match_reliability
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

TEXTS = strategies.lists(strategies.integers(0, 3), min_size=1, max_size=40)


def drafted(drafter: PromptLookup | CopySpec | Llma, text: list[int], budget: int = 64) -> list[int]:
    sequence = sequence_of(text)
    drafter.begin(sequence, None)
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
    drafter.end(sequence)
    return tree.token_ids.tolist()


def naive(text: list[int], sizes: list[int], num_tokens: int, occurrence: str) -> list[int]:
    for size in sizes:
        starts = [at for at in range(size, len(text)) if text[at - size : at] == text[len(text) - size :]]
        if starts and size <= len(text):
            start = starts[0] if occurrence == "first" else starts[-1]
            return text[start : start + num_tokens]
    return []


@given(text=TEXTS, occurrence=strategies.sampled_from(["first", "last"]), fed=strategies.integers(1, 40))
def test_drafts_equal_a_naive_scan(text: list[int], occurrence: str, fed: int) -> None:
    for drafter, sizes, num_tokens in (
        (PromptLookup(max_ngram=3, num_tokens=5, occurrence=occurrence), [3, 2, 1], 5),  # type: ignore[arg-type]
        (CopySpec(gamma=2, num_copy=4, occurrence=occurrence), [2], 4),  # type: ignore[arg-type]
    ):
        assert drafted(drafter, text) == naive(text, sizes, num_tokens, occurrence)
        # The same text, part of it written step by step.
        sequence = sequence_of(text[:fed])
        drafter.begin(sequence, None)
        for token in text[fed:]:
            sequence.token_ids.append(token)
            drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [token])))
        expected = naive(text, sizes, num_tokens, occurrence)
        assert drafter.propose(sequence, 64).token_ids.tolist() == expected


@given(prompt=TEXTS, written=TEXTS)
def test_llma_copies_from_the_prompt_only(prompt: list[int], written: list[int]) -> None:
    drafter = Llma(num_copy=4)
    sequence = sequence_of(prompt)
    drafter.begin(sequence, None)
    for token in written:
        sequence.token_ids.append(token)
        drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [token])))
    last = sequence.token_ids[-2:]
    starts = [at for at in range(2, len(prompt)) if prompt[at - 2 : at] == last]
    expected = prompt[starts[-1] : starts[-1] + 4] if starts else []
    assert drafter.propose(sequence, 64).token_ids.tolist() == expected


def test_llma_copies_seven_tokens_from_the_last_place() -> None:
    text = [1, 2, 50, 51, 1, 2, *range(60, 70), 1, 2]
    assert drafted(Llma(), text) == list(range(60, 67))
    assert drafted(Llma(), text, budget=3) == [60, 61, 62]
    assert drafted(Llma(), [3, 2, 50, 1, 2]) == []


def test_a_step_costs_the_new_tokens_only() -> None:
    class Counting(list[int]):
        num_slices = 0

        def __getitem__(self, item):  # type: ignore[no-untyped-def]
            self.num_slices += 1
            return super().__getitem__(item)

    drafter = CopySpec()
    sequence = sequence_of([])
    sequence.token_ids = Counting(range(1000))
    drafter.begin(sequence, None)
    assert sequence.token_ids.num_slices > 900
    sequence.token_ids.num_slices = 0
    sequence.token_ids += [1, 2]
    drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [1, 2])))
    drafter.propose(sequence, 8)
    assert sequence.token_ids.num_slices < 10


def test_fresh_text_does_not_match_itself() -> None:
    for drafter in (PromptLookup(), CopySpec()):
        assert drafted(drafter, list(range(30))) == []
        assert drafted(drafter, [1]) == []


def test_the_first_occurrence_or_the_last() -> None:
    text = [1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3]
    assert drafted(CopySpec(num_copy=1), text) == [50]
    assert drafted(CopySpec(num_copy=1, occurrence="last"), text) == [60]
    assert drafted(PromptLookup(num_tokens=1), text) == [50]


def test_a_longer_ngram_goes_first() -> None:
    text = [2, 3, 50, 1, 2, 3, 60, 9, 1, 2, 3]
    assert drafted(PromptLookup(num_tokens=1), text) == [60]
    assert drafted(PromptLookup(max_ngram=2, num_tokens=1), text) == [50]


def test_an_answer_that_stands_in_the_prompt_is_copied_whole() -> None:
    answer = list(range(100, 155))
    sequence = sequence_of([*answer, 1, 2, *answer[:3]])
    drafter = CopySpec(num_copy=10)
    drafter.begin(sequence, None)
    steps = gains(drafter, sequence, lambda text: ([text[-1] + 1], [1.0]), budget=16, num_steps=5)
    assert steps[:4] == [11, 11, 11, 11]


def test_the_budget_bounds_the_copy_and_scores_tell_the_match_length() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    assert drafted(CopySpec(), text, budget=2) == [4, 5]
    assert drafted(CopySpec(), text, budget=0) == []
    sequence = sequence_of([9, 3, 4, 5, 1, 3])
    drafter = PromptLookup()
    drafter.begin(sequence, None)
    scores = drafter.propose(sequence, 3).scores
    expected = np.cumprod([match_reliability(length) for length in (1, 2, 3)])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_reliability_rises_through_different_bins() -> None:
    reliabilities = [match_reliability(length) for length in range(1, 100)]
    assert reliabilities == sorted(reliabilities)
    bins = np.floor(-2 * np.log2(reliabilities)).astype(int).tolist()
    assert bins[:10] == [4, 3, 2, 1, 1, 1, 1, 0, 0, 0]


def test_sequences_do_not_see_each_other_and_are_forgotten() -> None:
    drafter = PromptLookup()
    one, other = sequence_of([1, 2, 3, 1, 2]), sequence_of([7, 1, 2])
    drafter.begin(one, None)
    drafter.begin(other, None)
    assert len(drafter.propose(other, 8)) == 0
    assert drafter.propose(one, 8).token_ids.tolist() == [3, 1, 2]
    drafter.end(one)
    drafter.end(one)
    with pytest.raises(KeyError):
        drafter.propose(one, 8)


def test_there_is_nothing_to_save() -> None:
    for drafter in (PromptLookup(), CopySpec(), Llma()):
        assert drafter.state() == {}
        drafter.restore({})
        with pytest.raises(StoreError, match=f"{drafter.name} keeps nothing"):
            drafter.restore({"table": np.zeros(1)})


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_ngram=0"):
        PromptLookup(max_ngram=0)
    with pytest.raises(ConfigError, match="gamma=0"):
        CopySpec(gamma=0)
    with pytest.raises(ConfigError, match="copy of 0 tokens"):
        CopySpec(num_copy=0)
    with pytest.raises(ConfigError, match="copy of 0 tokens"):
        Llma(num_copy=0)
    with pytest.raises(ConfigError, match="occurrence='newest'"):
        CopySpec(occurrence="newest")  # type: ignore[arg-type]
