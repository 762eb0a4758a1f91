"""Aggressive decoding drafts the rest of the source from where the text has got to in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies
from proposals import check_tree, gains, sequence_of

from hasten.core import Acceptance, Sequence
from hasten.drafters import DRAFTERS, Resources
from hasten.drafters.base import Observation
from hasten.drafters.lookup.aggressive import GAD_SYSTEM, SYSTEM, AggressiveDecoding
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SOURCE = list(range(10, 30))
TOKENS = strategies.lists(strategies.integers(0, 4), max_size=24)


def reading(
    source: list[int], written: list[int] | None = None, **options: object
) -> tuple[AggressiveDecoding, Sequence]:
    """A drafter and a sequence that reads a source, some of its text written one token a step."""
    drafter = AggressiveDecoding(**options)  # type: ignore[arg-type]
    sequence = sequence_of([0])
    sequence.source_ids = source
    drafter.begin(sequence, None)
    for token in written or []:
        write(drafter, sequence, [token])
    return drafter, sequence


def write(drafter: AggressiveDecoding, sequence: Sequence, tokens: list[int]) -> None:
    sequence.token_ids.extend(tokens)
    drafter.observe(sequence, Observation(DraftTree(), Acceptance([], tokens)))


def drafted(source: list[int], written: list[int], budget: int = 64, **options: object) -> list[int]:
    drafter, sequence = reading(source, written, **options)
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
    return tree.token_ids.tolist()


def test_the_source_is_drafted_from_its_beginning() -> None:
    assert drafted(SOURCE, []) == SOURCE
    assert drafted(SOURCE, [], budget=3) == SOURCE[:3]
    assert drafted(SOURCE, [], budget=0) == []
    assert drafted(SOURCE, SOURCE[:4]) == SOURCE[4:]
    assert drafted(SOURCE, SOURCE) == []


def test_after_a_token_of_its_own_the_text_goes_on_once_it_is_found_again() -> None:
    assert drafted(SOURCE, [10, 11, 99]) == []
    assert drafted(SOURCE, [10, 11, 99, 13]) == SOURCE[4:]
    assert drafted(SOURCE, [10, 25]) == SOURCE[16:]  # also when that token itself tells the place


def test_the_shortest_ngram_that_stands_at_one_place_is_taken() -> None:
    source = [1, 2, 3, 7, 2, 3, 8, 3, 9]
    for written, max_ngram, expected in (
        ([5, 3], 3, []),
        ([5, 2, 3], 3, []),
        ([5, 1, 2, 3], 3, source[3:]),
        ([5, 7, 2, 3], 3, source[6:]),
        ([5, 1, 2, 3], 2, []),
        ([5, 8, 3], 2, source[8:]),
        ([5, 6, 3], 3, []),  # "6 3" is nowhere, so nothing longer is
    ):
        drafter, sequence = reading(source, max_ngram=max_ngram)
        write(drafter, sequence, written)  # in one step, so that only its end is looked up
        assert drafter.propose(sequence, 64).token_ids.tolist() == expected


def test_following_does_not_need_unique_tokens_but_realigning_every_step_does() -> None:
    source = [4, 4, 4, 4, 4, 6, 7]
    assert drafted(source, [4, 4]) == source[2:]
    assert drafted(source, [4, 4], realign="step") == []
    assert drafted(source, [4, 4, 6], realign="step") == [7]
    assert drafted(source, [], realign="step") == source


def test_a_text_that_is_its_source_is_one_step_and_an_edit_costs_two() -> None:
    for text, most in ((SOURCE, 1), ([*SOURCE[:5], 99, *SOURCE[6:]], 3), ([*SOURCE[:5], *SOURCE[8:]], 2)):
        drafter, sequence = reading(SOURCE)

        def target(known: list[int], text: list[int] = text) -> tuple[list[int], list[float]]:
            done = len(known) - 1
            return [text[done] if done < len(text) else 1, 2], [0.9, 0.1]

        assert sum(gains(drafter, sequence, target, budget=64, num_steps=most)) >= len(text)


def test_without_a_source_the_prompt_is_the_source() -> None:
    drafter = AggressiveDecoding()
    sequence = sequence_of(SOURCE)
    drafter.begin(sequence, None)
    assert drafter.propose(sequence, 64).token_ids.tolist() == SOURCE
    write(drafter, sequence, [77, 15])
    assert drafter.propose(sequence, 64).token_ids.tolist() == SOURCE[6:]


@given(source=TOKENS, written=TOKENS)
def test_a_draft_is_what_a_naive_search_finds(source: list[int], written: list[int]) -> None:
    def naive() -> int | None:
        place: int | None = 0
        for end in range(1, len(written) + 1):
            if place is not None and place < len(source) and source[place] == written[end - 1]:
                place += 1
                continue
            place = None
            for size in (1, 2, 3):
                ngram = written[max(end - size, 0) : end]
                ends = [at for at in range(size, len(source) + 1) if source[at - size : at] == ngram]
                if len(ngram) < size or not ends:
                    break
                if len(ends) == 1:
                    place = ends[0]
                    break
        return place

    place = naive() if source else None
    if source:
        assert drafted(source, written) == ([] if place is None else source[place:])


def test_steps_of_any_size_lead_to_the_same_place() -> None:
    text = [10, 11, 12, 99, 14, 15, 16]
    drafter, sequence = reading(SOURCE)
    write(drafter, sequence, text[:5])
    write(drafter, sequence, text[5:])
    assert drafter.propose(sequence, 64).token_ids.tolist() == SOURCE[7:] == drafted(SOURCE, text)


def test_trust_grows_with_what_was_copied() -> None:
    first = [reading(SOURCE, SOURCE[:count]) for count in (0, 2, 8)]
    chances = [float(drafter.propose(sequence, 4).scores[0]) for drafter, sequence in first]
    assert chances == sorted(chances)
    assert chances[0] < chances[-1]


def test_sequences_do_not_see_each_other_and_are_forgotten() -> None:
    drafter, one = reading(SOURCE)
    other = sequence_of([0])
    other.source_ids = [5, 6, 7]
    drafter.begin(other, None)
    write(drafter, one, [10, 99])
    assert drafter.propose(other, 8).token_ids.tolist() == [5, 6, 7]
    drafter.end(one)
    drafter.end(one)
    with pytest.raises(KeyError):
        drafter.propose(one, 8)


def test_there_is_nothing_to_save() -> None:
    drafter = AggressiveDecoding()
    assert drafter.state() == {}
    drafter.restore({})
    with pytest.raises(StoreError, match="aggressive keeps nothing"):
        drafter.restore({"table": np.zeros(1)})


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_ngram=0"):
        AggressiveDecoding(max_ngram=0)
    with pytest.raises(ConfigError, match="realign='never'"):
        AggressiveDecoding(realign="never")  # type: ignore[arg-type]


def test_it_is_registered_and_described() -> None:
    assert DRAFTERS["aggressive"](Resources(97)).name == SYSTEM.name == "aggressive"
    assert {SYSTEM.arxiv, GAD_SYSTEM.arxiv} == {"2106.04970", "2205.10350"}
