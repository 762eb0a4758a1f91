"""Which positions of a prompt are learnt from, and how many of them its time pays for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hasten.core import SamplingParams, TopCandidates
from hasten.drafters.tables.aded import Aded
from hasten.drafters.tables.logitspec import LogitSpec
from hasten.drafters.tables.stand import Stand
from hasten.drafters.tables.token_recycling import TokenRecycling
from hasten.policies import CostPolicy, FixedPolicy, ForwardCost, PromptPrices, telling_positions

PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.mark.parametrize(
    ("prices", "num_tokens", "expected"),
    [
        (PromptPrices(1.0, 0.0, 0.001), 100, 100),  # a small head: all
        (PromptPrices(1.0, 0.0, 2.0), 1000, 7),  # 15 ms pay for seven of 2 ms
        (PromptPrices(1.0, 60.0, 2.0), 1000, 0),  # running the head another way is dearer than that
        (PromptPrices(1.0, 50.0, 1.0), 4000, 10),
        (PromptPrices(1.0, 0.0, 0.0), 7, 7),
        (PromptPrices(0.0, 0.0, 1.0), 1000, 0),
    ],
)
def test_positions_are_paid_from_a_share_of_the_time_of_the_prompt(prices, num_tokens, expected):
    assert prices.num_positions(num_tokens) == expected


@given(
    prices=st.builds(PromptPrices, *[st.floats(0, 1e3)] * 3),
    num_tokens=st.integers(1, 10**5),
)
def test_the_budget_is_never_exceeded(prices, num_tokens):
    count = prices.num_positions(num_tokens)
    assert 0 <= count <= num_tokens
    spent = prices.first_ms + count * prices.position_ms if count else 0.0
    assert spent <= 0.015 * num_tokens * prices.token_ms * (1 + 1e-9)


def test_the_tokens_that_come_up_most_are_chosen_at_their_last_place():
    text = [1, 2, 1, 3, 1, 2, 4, 9]
    assert telling_positions(text, 1, 512).tolist() == [4]
    assert telling_positions(text, 2, 512).tolist() == [4, 5]
    assert telling_positions(text, 3, 512).tolist() == [4, 5, 6]  # 3 and 4 come up once; the later one
    assert telling_positions(text, 99, 512).tolist() == [0, 1, 2, 3, 4, 5, 6]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 70), st.integers(1, 20))
def test_positions_rise_within_one_chunk_before_the_last_token(text, count, chunk):
    found = telling_positions(text, count, chunk).tolist()
    assert found == sorted(set(found))
    assert len(found) <= max(count, 0)
    assert all(0 <= place < len(text) - 1 for place in found)
    assert len({place // chunk for place in found}) <= 1


def test_a_policy_that_knows_no_prices_and_fixed_sizes_learn_from_all():
    assert CostPolicy().num_prompt_rows(100) is None
    assert FixedPolicy(3).num_prompt_rows(100) is None
    cost = ForwardCost()
    cost.of_prompts = PromptPrices(1.0, 0.0, 2.0)
    assert CostPolicy(cost).num_prompt_rows(1000) == 7


def test_a_text_is_the_same_however_much_of_its_prompt_was_learnt(models):
    lm = models()
    prompts = [[5, 6, 7, 5, 6, 8] * 4, [9, 10], [5, 6, 7]]
    plain = [one.token_ids for one in lm.generate(prompts, PARAMS, drafter="off")]
    for position_ms in (0.0, 0.3, 1e9):
        lm._prices.cost.of_prompts = PromptPrices(1.0, 0.0, position_ms)
        for drafter in ("token-recycling", "aded", "auto", "rasd"):
            found = lm.generate(prompts, PARAMS, drafter=drafter)
            assert [one.token_ids for one in found] == plain


def some_candidates(positions):
    """Of every position p, the tokens p + 50 and p + 51."""
    every = np.array([[place + 50, place + 51] for place in positions], np.int64)
    return TopCandidates(every, np.full(every.shape, 0.4, np.float32), np.array(positions, np.int64))


def test_token_recycling_keeps_rows_of_the_positions_it_is_given(sequence_of_tokens):
    drafter = TokenRecycling(200, width=2)
    drafter.begin(sequence_of_tokens([7, 8, 9, 8, 10]), some_candidates([1, 2]))
    table = drafter.state()["token_ids"]
    assert table[8].tolist() == [51, 52]
    assert table[9].tolist() == [52, 53]
    assert set(np.flatnonzero((table != -1).any(axis=1))) == {8, 9}


def test_aded_knows_the_token_before_each_position_it_is_given(sequence_of_tokens):
    text = [7, 8, 9, 8, 10]
    every, some = Aded(), Aded()
    every.begin(sequence_of_tokens(text), replaced(some_candidates([0, 1, 2, 3]), None))
    some.begin(sequence_of_tokens(text), some_candidates([0, 1, 2, 3]))
    for key, array in every.state().items():
        assert np.array_equal(array, some.state()[key]), key
    few = Aded()
    few.begin(sequence_of_tokens(text), some_candidates([0, 2]))
    drafted = few.propose(sequence_of_tokens([8, 9]), 8).token_ids.tolist()
    assert 52 in drafted
    assert 50 not in few.state()["successors"]  # the first token has none before it


def test_stand_knows_the_context_of_each_position_it_is_given(sequence_of_tokens):
    text = [7, 8, 9, 8, 10]
    every, some, few = Stand(200), Stand(200), Stand(200)
    every.begin(sequence_of_tokens(text), replaced(some_candidates([0, 1, 2, 3]), None))
    some.begin(sequence_of_tokens(text), some_candidates([0, 1, 2, 3]))
    for key, array in every.state().items():
        assert np.array_equal(array, some.state()[key]), key
    few.begin(sequence_of_tokens(text), some_candidates([2]))
    assert few.propose(sequence_of_tokens([7, 8, 9]), 8).token_ids[0] == 52
    assert not len(few.propose(sequence_of_tokens([7, 8]), 8))


def test_logitspec_takes_candidates_of_the_last_place_only(sequence_of_tokens):
    for places, count in (([1, 3], 2), ([1, 2], 0)):
        drafter, sequence = LogitSpec(num_guesses=2), sequence_of_tokens([7, 8, 9, 8, 10])
        drafter.begin(sequence, some_candidates(places))
        row = drafter._rows.get(sequence)
        assert (0 if row is None else len(row[0])) == count


def replaced(candidates, positions):
    return TopCandidates(candidates.token_ids, candidates.probs, positions)


@pytest.fixture
def sequence_of_tokens(models):
    def make(token_ids):
        [job] = models()._requests.jobs([list(token_ids)], PARAMS, None)
        return job.sequence

    return make
