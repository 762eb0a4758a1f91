"""LogitSpec guesses the next token from the row that chose the last one."""

from __future__ import annotations

import numpy as np
import pytest
from proposals import candidates, check_tree, paths, sequence_of

from hasten.core import Acceptance, SamplingParams, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.tables.logitspec import LogitSpec
from hasten.errors import ConfigError
from hasten.noise import gumbel_noise
from hasten.sampling import Sampler
from hasten.tree import DraftTree

VOCAB = 60


def told(text: list[int], row: tuple[list[int], list[float]], **options: int):  # type: ignore[no-untyped-def]
    """A drafter that saw a prompt whose last token was chosen by ``row``."""
    drafter, sequence = LogitSpec(**options), sequence_of(text)
    drafter.begin(sequence, candidates([row] * (len(text) - 1)))
    return drafter, sequence


def test_the_runners_up_are_the_guesses_in_their_order_and_the_written_token_is_none() -> None:
    drafter, sequence = told([1, 2, 30], ([30, 31, 32, 33], [0.5, 0.3, 0.1, 0.05]))
    tree = drafter.propose(sequence, 9)
    assert tree.token_ids.tolist() == [31, 32, 33]
    assert tree.parents.tolist() == [-1, -1, -1]
    assert (np.diff(tree.scores) < 0).all()
    assert tree.scores.sum() < 1


def test_a_guess_is_followed_by_what_the_text_had_after_it() -> None:
    drafter, sequence = told([31, 7, 8, 9, 32, 4, 5, 30], ([30, 31, 32], [0.5, 0.3, 0.1]), num_following=2)
    assert paths(drafter.propose(sequence, 9)) == {(31,), (32,), (31, 7), (31, 7, 8), (32, 4), (32, 4, 5)}


def test_the_longest_agreeing_match_decides_what_follows() -> None:
    text = [30, 31, 7, 5, 31, 8, 6, 31, 8, 30]  # 31 was followed by 8 more often, but by 7 after 30
    drafter, sequence = told(text, ([30, 31], [0.5, 0.3]), num_following=1)
    assert paths(drafter.propose(sequence, 9)) == {(31,), (31, 7)}


def test_the_row_of_the_last_accepted_node_counts() -> None:
    drafter, sequence = told([1, 2, 3], ([3, 50], [0.5, 0.4]))
    tree = DraftTree([10, 11], [-1, 0])
    rows = [([10, 20], [0.6, 0.3]), ([12, 21], [0.6, 0.3]), ([13, 22], [0.6, 0.3])]
    sequence.token_ids += [10, 12]
    drafter.observe(sequence, Observation(tree, Acceptance([0], [10, 12]), candidates(rows)))
    assert drafter.propose(sequence, 9).token_ids.tolist() == [21]
    sequence.token_ids += [10]
    drafter.observe(sequence, Observation(tree, Acceptance([], [10]), candidates(rows)))
    assert drafter.propose(sequence, 9).token_ids[0] == 20


def test_only_the_row_before_the_last_prompt_token_counts() -> None:
    for last, expected in ((1, [31]), (0, [])):
        drafter, sequence = LogitSpec(), sequence_of([1, 2, 30])
        rows = candidates([([30, 31], [0.5, 0.3])])
        drafter.begin(sequence, TopCandidates(rows.token_ids, rows.probs, np.array([last])))
        assert drafter.propose(sequence, 9).token_ids.tolist() == expected


@pytest.mark.parametrize("budget", [0, 1, 3, 20])
def test_the_budget_is_kept_and_guesses_come_first(budget: int) -> None:
    drafter, sequence = told([31, 7, 32, 8, 33, 9, 30], ([30, 31, 32, 33], [0.5, 0.2, 0.1, 0.1]))
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    assert (tree.parents[:3] == -1).all()


def test_sampled_guesses_come_in_the_order_of_the_noise_they_are_drawn_with() -> None:
    ids, probs = [30, 31, 32, 33], [0.4, 0.2, 0.2, 0.2]
    for seed in range(10):
        drafter, sequence = told([1, 2, 30], (ids, probs))
        sequence.sampler, sequence.max_length = Sampler(SamplingParams(temperature=0.8), seed), 40
        tree = drafter.propose(sequence, 3)
        noise = gumbel_noise(seed, 0, 3, VOCAB)
        assert tree.token_ids.tolist() == sorted([31, 32, 33], key=lambda token: -noise[token])


def test_nothing_is_left_of_a_finished_sequence() -> None:
    drafter, sequence = told([1, 2, 30], ([30, 31], [0.5, 0.3]))
    drafter.end(sequence)
    assert drafter.state() == {}
    assert not drafter._texts
    assert not drafter._rows


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_guesses=0"):
        LogitSpec(num_guesses=0)
