"""AdaPLD copies by words, else from the place whose laws are most alike; runners-up stand beside."""

from __future__ import annotations

import numpy as np
import pytest
from proposals import candidates, check_tree, gains, paths, periodic, sequence_of

from hasten.core import Acceptance, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.lookup.adapld import AdaPld
from hasten.errors import ConfigError
from hasten.tree import DraftTree


def law(first: int) -> tuple[list[int], list[float]]:
    return [first, first + 1], [0.7, 0.2]


def told(text: list[int], laws: list[tuple[list[int], list[float]]], **options: int):  # type: ignore[no-untyped-def]
    drafter, sequence = AdaPld(**options), sequence_of(text)
    drafter.begin(sequence, candidates(laws))
    return drafter, sequence


def test_words_are_copied_where_they_match() -> None:
    text = [1, 2, 3, 4, 1, 2]
    drafter, sequence = told(text, [law(50)] * 5, num_branches=0)
    assert drafter.propose(sequence, 2).token_ids.tolist() == [3, 4]


def test_where_no_word_matches_the_place_with_the_same_laws_is_copied_from() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14]
    kinds = [20, 30, 40, 50, 60, 70, 80, 90, 40, 50, 60]  # rows 8 to 10 are like rows 2 to 4
    drafter, sequence = told(text, [law(kind) for kind in kinds], num_branches=0, num_tokens=3)
    assert drafter.propose(sequence, 9).token_ids.tolist() == [7, 8, 11]  # after token 5, in 14's place
    alone, _ = told(text, [law(100 + 10 * row) for row in range(11)], num_branches=0)
    assert len(alone.propose(_, 9)) == 0


def test_of_like_places_the_one_with_the_same_token_is_chosen() -> None:
    """Lookup is switched off by a text whose last token is new but for the place itself."""
    text = [1, 2, 3, 9, 4, 1, 2, 3, 8, 5, 11, 12, 13, 9]
    kinds = [20, 30, 40, 50, 60, 20, 30, 40, 55, 65, 20, 30, 40]
    drafter, sequence = told(text, [law(kind) for kind in kinds], num_branches=0, num_tokens=1)
    assert drafter._by_meaning(sequence, 9)[0] == [4]


def test_runners_up_stand_beside_and_each_has_one_token_below() -> None:
    text = [1, 2, 3, 7, 1]
    laws = [([2, 6], [0.6, 0.3]), ([3, 7], [0.6, 0.3]), ([7, 8], [0.9, 0.1]), ([1, 9], [0.5, 0.2])]
    drafter, sequence = told(text, laws, num_tokens=2, num_branches=1)
    tree = drafter.propose(sequence, 20)
    assert paths(tree) == {(2,), (2, 3), (6,), (2, 7), (2, 7, 1), (2, 3, 7), (2, 3, 7, 1)}
    check_tree(tree, 20)


def test_laws_of_accepted_nodes_are_those_of_the_text() -> None:
    drafter, sequence = told([1, 2], [law(20)])
    tree = DraftTree([5, 6, 7], [-1, 0, -1])
    sequence.token_ids += [5, 6, 9]
    drafter.observe(
        sequence,
        Observation(tree, Acceptance([0, 1], [5, 6, 9]), candidates([law(30), law(40), law(50), law(60)])),
    )
    text = drafter._texts[sequence]
    assert text.count == 4
    assert text.ids[:4, 0].tolist() == [20, 30, 40, 50]
    assert {token: row[0][0] for token, row in text.newest.items()} == {1: 20, 2: 30, 5: 40, 6: 50}


def test_long_texts_and_missing_laws() -> None:
    drafter, sequence = AdaPld(), sequence_of([0])
    drafter.begin(sequence, None)  # no law of a prompt of one token
    assert max(gains(drafter, sequence, periodic(30), budget=12, num_steps=40)) > 8
    assert drafter._texts[sequence].count == len(sequence.token_ids) - 1
    late, other = AdaPld(), sequence_of([1, 2, 3, 4, 5, 6])
    late.begin(other, None)  # laws of the prompt were not looked at
    assert len(late.propose(other, 9)) == 0
    late.end(other)
    assert not late._texts


def test_laws_of_some_prompt_positions_stand_where_they_belong() -> None:
    drafter, sequence = AdaPld(), sequence_of([1, 2, 3, 4, 5])
    some = candidates([law(20), law(40)])
    drafter.begin(sequence, TopCandidates(some.token_ids, some.probs, np.array([1, 3])))
    text = drafter._texts[sequence]
    assert text.count == 4
    assert text.ids[:4, 0].tolist() == [-1, 20, -1, 40]
    assert {token: row[0][0] for token, row in text.newest.items()} == {2: 20, 4: 40}


@pytest.mark.parametrize("budget", [0, 1, 5, 30])
def test_trees_fit_the_budget(budget: int) -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 9, 60).tolist()
    laws = [(rng.permutation(12)[:8].tolist(), [0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0, 0.0]) for _ in range(59)]
    drafter, sequence = told(text, laws)
    check_tree(drafter.propose(sequence, budget), budget)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_branches=-1"):
        AdaPld(num_branches=-1)
