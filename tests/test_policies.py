"""How much to draft, from synthetic milliseconds: no clock is read here."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.policies import MAX_DRAFT_TOKENS, CostPolicy, FixedPolicy, ForwardCost
from hasten.tree import DraftTree

NEARLY_FREE = 0.01
"""Milliseconds of another row, where the first costs 10."""


def chain(chance, length):
    return DraftTree.chain([1] * length, chance ** np.arange(1, length + 1))


def pass_time(row_ms):
    return lambda rows: 10 + row_ms * (rows - 1)


def run(policy, trees, steps, row_ms, *, overhead_ms=0.1, plain_overhead_ms=0.05):
    """``steps`` steps of one batch; returns the sizes of the trees that were verified, None while asleep."""
    sizes = []
    for _ in range(steps):
        budget = policy.budget()
        chosen = policy.choose(
            [tree.head(budget) for tree in trees] if budget else [DraftTree() for _ in trees]
        )
        size = max(map(len, chosen))
        sizes.append(size if budget else None)
        overhead = overhead_ms if budget else plain_overhead_ms
        policy.observe(len(trees) * (size + 1), pass_time(row_ms)(len(trees) * (size + 1)), overhead)
    return sizes


def taught_cost(row_ms):
    cost = ForwardCost()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128):
        cost.observe(rows, pass_time(row_ms)(rows))
    return cost


def test_a_fixed_policy_never_changes_its_mind():
    policy = FixedPolicy(3)
    assert run(policy, [chain(0.01, 9)], 20, row_ms=100) == [3] * 20
    assert run(FixedPolicy(0), [chain(0.9, 9)], 5, row_ms=0) == [None] * 5


def test_many_nodes_are_drafted_where_rows_are_free():
    sizes = run(CostPolicy(taught_cost(NEARLY_FREE)), [chain(0.9, 64)], 30, NEARLY_FREE)
    assert min(sizes[-10:]) > 15


def test_nothing_is_drafted_where_every_row_costs_a_pass():
    sizes = run(CostPolicy(taught_cost(10)), [chain(0.5, 64)], 60, row_ms=10)
    assert not any(sizes)


def test_trees_end_where_another_node_gains_less_than_it_costs():
    tree = chain(0.6, 64)
    sizes = run(CostPolicy(taught_cost(0.5)), [tree], 20, row_ms=0.5, overhead_ms=0.0)
    gains = 1 + np.concatenate(([0], np.cumsum(tree.scores)))
    speeds = gains[:30] / pass_time(0.5)(np.arange(1, 31))
    assert abs(sizes[-1] - int(np.argmax(speeds))) <= 1


def test_the_dearer_the_rows_the_smaller_the_trees():
    sizes = [run(CostPolicy(taught_cost(ms)), [chain(0.8, 64)], 30, ms)[-1] or 0 for ms in (0.01, 0.3, 1, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0


def test_the_cost_is_learnt_online():
    assert run(CostPolicy(), [chain(0.8, 64)], 40, NEARLY_FREE)[-1] > 10
    assert not any(run(CostPolicy(), [chain(0.5, 64)], 400, row_ms=10)[-50:])


def test_the_first_step_of_all_is_plain_so_that_plain_steps_have_a_price():
    assert run(CostPolicy(), [chain(0.8, 64)], 3, NEARLY_FREE)[0] is None


def test_what_does_not_pay_is_asked_for_ever_less():
    policy = CostPolicy(taught_cost(10))
    sizes = run(policy, [chain(0.3, 64)], 1000, row_ms=10)
    assert sum(size is None for size in sizes) > 800
    awake = [index for index, size in enumerate(sizes) if size is not None]
    assert awake[-1] > 800  # it still wakes up to look


def test_a_sleeping_policy_wakes_up_to_a_text_that_became_easy():
    policy = CostPolicy(taught_cost(0.5))
    assert not any(run(policy, [chain(0.001, 64)], 200, row_ms=0.5, overhead_ms=2.0)[-80:])
    assert run(policy, [chain(0.95, 64)], 150, row_ms=0.5)[-1] > 5


def test_drafting_that_takes_too_long_does_not_pay():
    sizes = run(CostPolicy(taught_cost(0.1)), [chain(0.3, 64)], 300, row_ms=0.1, overhead_ms=50.0)
    assert sum(size is None for size in sizes) > 150


def test_a_batch_shares_one_width():
    policy = CostPolicy(taught_cost(0.2))
    trees = [chain(0.9, 40), chain(0.01, 40), chain(0.9, 3)]
    for _ in range(10):
        chosen = policy.choose([tree.head(policy.budget()) for tree in trees])
    assert len(chosen[0]) == len(chosen[1])
    assert len(chosen[2]) == min(3, len(chosen[0]))


def test_the_more_sequences_share_a_pass_the_smaller_their_trees():
    alone = run(CostPolicy(taught_cost(0.3)), [chain(0.8, 64)], 30, 0.3)[-1]
    eight = run(CostPolicy(taught_cost(0.3)), [chain(0.8, 64)] * 8, 30, 0.3)[-1]
    assert 0 < (eight or 0) < alone


def test_the_budget_leaves_room_to_grow_and_has_a_bound():
    policy = CostPolicy(taught_cost(0))
    run(policy, [chain(1.0, 500)], 50, row_ms=0)
    assert policy.budget() == MAX_DRAFT_TOKENS
    assert CostPolicy(taught_cost(1), max_draft_tokens=5).budget() == 5


def test_no_sequence_may_have_a_tree():
    policy = CostPolicy(taught_cost(1))
    assert [len(tree) for tree in policy.choose([DraftTree(), DraftTree()])] == [0, 0]


def test_without_measurements_a_row_is_believed_to_be_cheap():
    cost = ForwardCost()(np.array([1, 2, 64]))
    assert (np.diff(cost) > 0).all()
    assert cost[-1] < 3 * cost[0]


def test_cost_is_interpolated_between_and_scaled_beyond_what_was_seen():
    cost = ForwardCost()
    cost.observe(4, 8.0)
    cost.observe(16, 20.0)
    found = cost(np.array([1, 4, 10, 16, 64]))
    assert found[1:4].tolist() == [8.0, 14.0, 20.0]
    assert found[0] < 8.0
    assert found[4] > 20.0


def test_one_slow_pass_is_forgotten():
    cost = ForwardCost()
    for milliseconds in (10, 10, 900, 10, 10):
        cost.observe(8, milliseconds)
    assert cost(np.array([8]))[0] == 10
    for _ in range(9):
        cost.observe(8, 30)
    assert cost(np.array([8]))[0] == 30


@pytest.mark.parametrize("seed", range(5))
def test_more_rows_are_never_believed_to_be_faster(seed):
    rng = np.random.default_rng(seed)
    cost = ForwardCost()
    for _ in range(60):
        cost.observe(int(rng.integers(1, 130)), float(rng.uniform(1, 50)))
    assert (np.diff(cost(np.arange(1, 200))) >= -1e-9).all()
