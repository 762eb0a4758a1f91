"""What a pass costs, learnt from synthetic milliseconds: no clock is read here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hasten.errors import ConfigError
from hasten.policies import (
    ForwardCost,
)
from policy_worlds import (
    linear,
    stock_float32,
    taught_cost,
)


def test_without_measurements_a_row_is_believed_to_be_cheap():
    cost = ForwardCost()(np.array([1, 2, 64]))
    assert (np.diff(cost) > 0).all()
    assert cost[-1] < 3 * cost[0]


def test_cost_is_interpolated_between_and_scaled_beyond_what_was_seen():
    cost = ForwardCost()
    cost.observe(4, 8.0)
    cost.observe(16, 20.0)
    found = cost(np.array([1, 4, 10, 16, 64]))
    assert found[1:4] == pytest.approx([8.0, 14.0, 20.0])
    assert found[0] < 8.0
    assert found[4] > 20.0


def test_one_slow_pass_is_forgotten():
    cost = ForwardCost()
    for milliseconds in (10, 10, 900, 10, 10):
        cost.observe(8, milliseconds)
    assert cost(np.array([8]))[0] == pytest.approx(10)
    for _ in range(9):
        cost.observe(8, 30)
    assert cost(np.array([8]))[0] == pytest.approx(30)


def test_a_plain_pass_after_a_long_prompt_tells_what_larger_ones_cost_there():
    cost = taught_cost(linear(0.5))
    short = cost(np.array([1, 16, 64]), 64)
    assert cost(np.array([1, 16, 64]), 4096) == pytest.approx(short)  # nothing is known there
    assert not cost.is_measured(4096)
    for _ in range(3):
        cost.observe(1, 30.0, 4096)
    assert cost.is_measured(4096)
    assert cost(np.array([1, 16, 64]), 4096) == pytest.approx(3 * short, rel=0.1)
    assert cost(np.array([1, 16, 64]), 64) == pytest.approx(short, rel=0.05)
    assert short[0] < cost(np.array([1]), 600)[0] < 30  # in between


def test_a_batch_has_prices_of_its_own():
    cost = taught_cost(linear(0.5))
    for _ in range(3):
        cost.observe(8, 3 * linear(0.5)(8), 64, 8)
    assert cost(np.array([16]), 64, 8)[0] == pytest.approx(3 * linear(0.5)(16), rel=0.1)
    assert cost(np.array([16]), 64)[0] == pytest.approx(linear(0.5)(16), rel=0.05)


def test_a_step_of_two_rows_may_be_dearer_than_one_of_eight():
    cost = ForwardCost()
    for rows, milliseconds in ((1, 72.0), (2, 132.0), (8, 108.0)):
        for _ in range(3):
            cost.observe(rows, milliseconds)
    assert cost(np.array([1, 2, 8])) == pytest.approx([72, 132, 108], rel=0.01)


def test_prices_can_be_kept_and_what_is_measured_later_outvotes_them():
    cost = taught_cost(stock_float32, contexts=(64, 2048))
    kept = ForwardCost()
    kept.restore(json.loads(json.dumps(cost.state())))
    rows = np.array([1, 2, 8, 17, 64])
    for context in (64, 2048):
        assert kept(rows, context) == pytest.approx(cost(rows, context), rel=1e-3)
    for _ in range(5):
        kept.observe(1, 720.0, 64)
    assert kept(np.array([1]), 64)[0] == pytest.approx(720, rel=0.2)


@pytest.mark.parametrize(
    "entry", [[1, 2, 3], [0, 1, 0, 5.0], [1, 1, 0, -1.0], [1, 1, 0, float("nan")], ["a"] * 4]
)
def test_what_is_no_price_is_refused(entry):
    with pytest.raises(ConfigError, match="no cost of a pass"):
        ForwardCost().restore([entry])
