"""How much to draft, from synthetic milliseconds: no clock is read here."""

from __future__ import annotations

import numpy as np
import pytest

from adversaries import Adversary, Oracle, Recorder, very_wide
from hasten.core import SamplingParams
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError
from hasten.policies import (
    MAX_DRAFT_TOKENS,
    POLICIES,
    SYSTEMS,
    BassPolicy,
    CostPolicy,
    EmsPolicy,
    FixedPolicy,
    ForwardCost,
)
from hasten.tree import DraftTree

NEARLY_FREE = 0.01
"""Milliseconds of another row, where the first costs 10."""


def chain(chance, length):
    return DraftTree.chain([1] * length, chance ** np.arange(1, length + 1))


def pass_time(row_ms):
    return lambda rows: 10 + row_ms * (rows - 1)


def run(policy, trees, steps, row_ms, *, overhead_ms=0.1, plain_overhead_ms=0.05, extra_rows=0):
    """``steps`` steps of one batch; returns the sizes of the trees that were verified, None while asleep.

    extra_rows: what the drafter adds to the pass of every sequence, in steps in which it was asked.
    """
    sizes = []
    for _ in range(steps):
        budget = policy.budget()
        chosen = policy.choose(
            [tree.head(budget) for tree in trees] if budget else [DraftTree() for _ in trees]
        )
        size = max(map(len, chosen))
        sizes.append(size if budget else None)
        overhead = overhead_ms if budget else plain_overhead_ms
        num_rows = len(trees) * (size + 1 + (extra_rows if budget else 0))
        policy.observe(num_rows, pass_time(row_ms)(num_rows), overhead, [0] * len(trees))
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


def test_what_a_lucky_sequence_gains_does_not_repay_those_that_wait():
    """Summed up, four nodes each would pay: 5.6 tokens instead of 2, for 19 ms instead of 11."""
    lucky, unlucky = (DraftTree.chain([1, 2, 3, 4], [score] * 4) for score in (0.9, 0.01))
    mixed = CostPolicy(taught_cost(1.0)).choose([lucky, unlucky])
    alike = CostPolicy(taught_cost(1.0)).choose([lucky, lucky])
    assert [len(tree) for tree in mixed] == [1, 1]
    assert [len(tree) for tree in alike] == [4, 4]


def test_rows_that_the_drafter_adds_are_priced():
    tree = chain(0.8, 64)
    sizes = {}
    for extra_rows in (0, 15):
        policy = CostPolicy(taught_cost(0.2))
        found = run(policy, [tree, tree], 80, row_ms=0.2, overhead_ms=0.0, extra_rows=extra_rows)
        gains = 1 + np.concatenate(([0], np.cumsum(tree.scores)))
        speeds = gains[:30] / pass_time(0.2)(2 * (np.arange(1, 31) + extra_rows))
        sizes[extra_rows] = found[-1]
        assert abs(found[-1] - int(np.argmax(speeds))) <= 1
    assert sizes[15] > sizes[0]  # the rows are there anyway: then more nodes pay


def test_a_drafter_whose_own_rows_cost_more_than_it_gains_is_not_asked():
    trees = [chain(0.3, 8)]
    assert not any(size is None for size in run(CostPolicy(taught_cost(0.2)), trees, 300, row_ms=0.2))
    sizes = run(CostPolicy(taught_cost(0.2)), trees, 300, row_ms=0.2, extra_rows=40)
    assert sum(size is None for size in sizes) > 150


def test_a_model_that_takes_chains_only_has_no_negative_rows():
    policy = CostPolicy(taught_cost(0.1))
    for _ in range(20):
        policy.choose([chain(0.9, 40).head(policy.budget())])
        policy.observe(3, pass_time(0.1)(3), 0.1, [2])
    assert policy._extra_rows == 0


def lengths(policy, drafts, accepted):
    """The sizes of the drafts, step by step. drafts: one length a sequence; accepted: a list a step."""
    found = []
    for num_accepted in accepted:
        budget = policy.budget()
        chosen = policy.choose([chain(0.9, min(budget, length)) for length in drafts])
        found.append([len(tree) for tree in chosen])
        num_rows = len(drafts) * (max(found[-1]) + 1)
        policy.observe(num_rows, 1.0, 0.1, num_accepted)
    return found


def test_ems_lets_every_sequence_draft_its_own_copy():
    assert lengths(EmsPolicy(), [9, 0, 3, 7], [[7, 0, 0, 1], [0, 0, 3, 0]]) == [[7, 0, 3, 7]] * 2
    assert lengths(EmsPolicy(), [0, 0], [[0, 0]]) == [[0, 0]]
    assert lengths(EmsPolicy(4), [9, 0], [[4, 0]]) == [[4, 0]]


def test_bass_grows_by_two_while_a_sequence_accepts_everything():
    accepted = [[0, 7, 2], [9, 0, 0], [11, 11, 11], [0, 0, 13]]
    assert lengths(BassPolicy(), [64] * 3, accepted) == [[7] * 3, [9] * 3, [11] * 3, [13] * 3]
    policy = BassPolicy()
    found = lengths(policy, [64], [[length] for length in [*range(7, 32, 2), 32, 32]])
    assert [size for [size] in found] == [*range(7, 32, 2), 31 + 1, 32]
    assert policy.budget() == 32


def test_bass_shrinks_by_a_tenth_and_by_one_more_in_a_row():
    # 7 - ceil(0.7) = 6; then 6 - 1 - 1 = 4; then 4 - 1 - 1 = 2; never below 1
    assert lengths(BassPolicy(), [64], [[0]] * 6) == [[7], [6], [4], [2], [1], [1]]
    # 25 - ceil(2.5) = 22; 22 - 3 - 1 = 18; whole: 20; the next loss is the first again: 20 - 2 = 18
    growing = [[length] for length in range(7, 25, 2)]
    found = lengths(BassPolicy(), [64], [*growing, [3], [3], [18], [3], [3]])
    assert found[len(growing) :] == [[25], [22], [18], [20], [18]]


def test_bass_never_shrinks_below_what_was_accepted():
    assert lengths(BassPolicy(), [64] * 2, [[1, 6], [1, 5], [3, 2], [0, 0]]) == [
        [7] * 2,
        [6] * 2,
        [5] * 2,
        [3] * 2,
    ]


def test_a_step_without_drafts_tells_bass_nothing():
    policy = BassPolicy()
    assert lengths(policy, [0, 0], [[0, 0]] * 5) == [[0, 0]] * 5
    assert policy.budget() == 7
    assert lengths(policy, [0, 3], [[0, 3]]) == [[0, 3]]
    assert policy.budget() == 6  # all that there was, but not all that was asked for


PROMPTS = [[5, 9, 13, 22] * 5, [40], [3, 60, 61, 62, 63, 3, 60], [88, 87, 86], [30, 31, 30, 31, 33, 30, 31]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["llma", "lookahead", "auto"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_writes_the_plain_text(models, policy, drafter, temperature):
    lm = models()
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=temperature, seed=3)
    expected = lm.generate(PROMPTS, params, drafter="off")
    for _ in range(2):
        found = lm.generate(PROMPTS, params, drafter=drafter, policy=policy)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    if policy != "cost":
        assert sum(one.stats.num_draft_tokens for one in found) > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["bloom-alibi", "lfm2-hybrid", "rwkv"])
def test_every_policy_writes_the_plain_text_in_every_mode(models, name, policy):
    lm = models(name)
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    expected = lm.generate(PROMPTS, params, drafter="off")
    found = lm.generate(PROMPTS, params, drafter=Adversary(very_wide), policy=policy)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


class Extending(NoDrafter):
    """Adds the same number of rows of its own to every pass."""

    def propose(self, sequence, budget):
        return DraftTree.chain([7, 8][:budget])

    def extend(self, sequence, tree):
        more = DraftTree([11, 12, 13], [-1, -1, -1])
        return DraftTree([*tree.token_ids, *more.token_ids], [*tree.parents, *more.parents])


class Watched(FixedPolicy):
    """Writes down what it is told."""

    def __init__(self, num_draft_tokens):
        super().__init__(num_draft_tokens)
        self.told = []

    def observe(self, num_rows, forward_ms, overhead_ms, num_accepted):
        self.told.append((num_rows, list(num_accepted)))


def test_a_policy_hears_of_all_rows_and_of_what_every_sequence_accepted(models, monkeypatch):
    lm = models()
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    policies = []
    monkeypatch.setattr(
        "hasten.engine.FixedPolicy", lambda size: policies.append(Watched(size)) or policies[-1]
    )
    plain = lm.generate(PROMPTS[0], params, drafter="off")
    oracle = Recorder(Oracle([*PROMPTS[0], *plain.token_ids], depth=3))
    lm.generate(PROMPTS[0], params, drafter=oracle, num_draft_tokens=40)
    told = [(len(seen.tree) + 1, [len(seen.acceptance.path)]) for _, _, seen in oracle.observed]
    assert policies[-1].told == told
    assert max(accepted for _, [accepted] in told) == 3
    lm.generate(PROMPTS[:2], params, drafter=Extending(), num_draft_tokens=2)
    assert policies[-1].told[0] == (2 * (1 + 2 + 3), [0, 0])


def test_policies_are_known_by_name(models):
    lm = models()
    params = SamplingParams(max_new_tokens=4)
    for options, message in (
        ({"policy": "best"}, "policy='best' is unknown; choose cost, ems, bass"),
        ({"policy": "bass", "num_draft_tokens": 4}, "num_draft_tokens=4 fixes the size that policy='bass'"),
    ):
        with pytest.raises(ConfigError, match=message):
            lm.generate(PROMPTS[1], params, drafter="llma", **options)
        with pytest.raises(ConfigError, match=message):
            list(lm.stream(PROMPTS[1], params, drafter="llma", **options))
    pieces = list(lm.stream(PROMPTS[1], params, drafter="llma", policy="bass"))
    assert pieces[-1].output.token_ids == lm.generate(PROMPTS[1], params, drafter="off").token_ids
    assert {system.name for system in SYSTEMS} == {"ems-sd", "bass"}


def test_every_policy_keeps_what_it_learnt_to_itself(models, monkeypatch):
    lm = models()
    params = SamplingParams(max_new_tokens=4)
    used = []
    monkeypatch.setattr(
        "hasten.engine.decode", lambda target, drafter, policy, *rest: used.append(policy) or iter(())
    )
    for _ in range(2):
        for name in POLICIES:
            for prompts in (PROMPTS[:1], PROMPTS[:2]):
                lm.generate(prompts, params, drafter="llma", policy=name)
    assert len(used) == 12
    assert used[:6] == used[6:]
    assert len(set(map(id, used))) == 6


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
