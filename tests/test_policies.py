"""How much to draft, from synthetic milliseconds: no clock is read here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hasten.policies import (
    MAX_DRAFT_TOKENS,
    BassPolicy,
    CostPolicy,
    EmsPolicy,
    FixedPolicy,
)
from hasten.tree import DraftTree
from policy_worlds import (
    World,
    alternating,
    blocks,
    boasting,
    cliff,
    honest,
    linear,
    stock_float32,
    taught_cost,
)

NEARLY_FREE = 0.01
"""Milliseconds of another row, where the first costs 10."""


def chain(chance, length):
    return DraftTree.chain([1] * length, chance ** np.arange(1, length + 1))


def told(pass_ms, **options):
    return CostPolicy(taught_cost(pass_ms), **options)


def sizes_of(world, policy, num_tokens, batch=1):
    world.write(policy, num_tokens, batch=batch)
    return world.sizes


def share(sizes, wanted):
    return sum(size == wanted for size in sizes) / len(sizes)


def mean_size(sizes):
    return np.mean([size or 0 for size in sizes[len(sizes) // 2 :]])


def test_a_fixed_policy_never_changes_its_mind():
    world = World(linear(100), boasting(0.9))
    assert sizes_of(world, FixedPolicy(3), 20) == [3] * 20
    assert sizes_of(World(linear(0), honest(0.9)), FixedPolicy(0), 5) == [None] * 5


def test_many_nodes_are_drafted_where_rows_are_free():
    world = World(linear(NEARLY_FREE), honest(0.95))
    assert mean_size(sizes_of(world, told(world.pass_ms), 400)) > 15


def test_nothing_is_drafted_where_every_row_costs_a_pass():
    world = World(linear(10), honest(0.5))
    assert not any(sizes_of(world, told(world.pass_ms), 60))


def test_trees_end_where_another_node_gains_less_than_it_costs():
    world = World(linear(0.5), honest(0.6), propose_ms=0.0, other_ms=0.0)
    found = mean_size(sizes_of(world, told(world.pass_ms), 2000))
    gains = 1 + np.concatenate(([0], np.cumsum(0.6 ** np.arange(1, 30))))
    best = int(np.argmax(gains / np.array([world.pass_ms(rows) for rows in range(1, 31)])))
    assert abs(found - best) <= 1


def test_trees_fill_the_blocks_that_kernels_work_in():
    world = World(blocks(8), honest(0.9), propose_ms=0.0)
    policy = told(world.pass_ms)
    world.write(policy, 1500)
    sizes = [size for size in world.sizes[100:] if size]
    assert share([size % 8 for size in sizes], 7) > 0.8  # and the root


def test_the_dearer_the_rows_the_smaller_the_trees():
    worlds = [World(linear(ms), honest(0.8)) for ms in (0.01, 0.3, 1, 10)]
    sizes = [mean_size(sizes_of(world, told(world.pass_ms), 600)) for world in worlds]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0


def test_the_cost_is_learnt_online():
    assert mean_size(sizes_of(World(linear(NEARLY_FREE), honest(0.8)), CostPolicy(), 400)) > 10
    assert not any(sizes_of(World(linear(10), honest(0.5)), CostPolicy(), 400)[-50:])


def test_the_first_step_of_all_is_plain_so_that_plain_steps_have_a_price():
    sizes = sizes_of(World(linear(NEARLY_FREE), honest(0.8)), CostPolicy(), 60)
    assert sizes[0] is None
    assert sizes[1]


def test_an_unknown_pass_is_no_wider_than_four_times_the_widest_known_one():
    world = World(linear(NEARLY_FREE), honest(0.999))
    sizes = sizes_of(world, CostPolicy(), 400)
    widest = 1
    for size in sizes:
        assert 1 + (size or 0) <= 4 * widest
        widest = max(widest, 1 + (size or 0))
    assert widest > 30


def test_what_does_not_pay_is_asked_for_ever_less():
    world = World(linear(0.3), boasting(0.9), propose_ms=2.0)
    sizes = sizes_of(world, told(world.pass_ms), 1000)
    assert share(sizes, None) > 0.8
    awake = [index for index, size in enumerate(sizes) if size is not None]
    assert awake[-1] > 800  # it still wakes up to look


def test_a_sleeping_policy_wakes_up_to_a_text_that_became_easy():
    world = World(linear(0.5), boasting(0.9), propose_ms=2.0)
    policy = told(world.pass_ms)
    world.write(policy, 200)
    assert share(world.sizes[-80:], None) > 0.6
    world.draft = honest(0.95)
    world.write(policy, 600)
    assert mean_size(world.sizes[-40:]) > 5


def test_drafting_that_takes_too_long_does_not_pay():
    world = World(linear(0.1), honest(0.3), propose_ms=50.0)
    assert share(sizes_of(world, told(world.pass_ms), 300), None) > 0.9


def test_what_a_drafter_takes_for_each_node_is_part_of_the_price():
    sizes = [
        mean_size(sizes_of(World(linear(0.1), honest(0.8), node_ms=ms), told(linear(0.1)), 600))
        for ms in (0.0, 2.2)
    ]
    assert sizes[0] > 3 * sizes[1] > 0


def test_a_drafter_that_follows_cheaply_follows_and_a_dear_one_is_told_later():
    for upkeep_ms, expected in ((0.01, 1.0), (3.0, 0.05)):
        world = World(linear(10), honest(0.1), propose_ms=5.0, upkeep_ms=upkeep_ms)
        world.write(told(world.pass_ms), 400)
        assert np.mean(world.learning) == pytest.approx(expected, abs=0.05)


class Compiling(World):
    """The first two drafts load compiled kernels."""

    def _draft(self, step, budget):
        if budget:
            self.num_drafts = getattr(self, "num_drafts", 0) + 1
            self.propose_ms = 40.0 if self.num_drafts <= 2 else 0.3
        return super()._draft(step, budget)


def test_drafts_that_were_slow_while_kernels_loaded_are_not_slow_for_ever():
    world = Compiling(linear(0.45), honest(0.8))
    policy = told(world.pass_ms)
    for _ in range(5):
        world.write(policy, 32)
    before = world.total_ms, world.plain_ms
    world.write(policy, 32)
    assert world.total_ms - before[0] < 0.8 * (world.plain_ms - before[1])


PASSES = {
    "cheap": linear(0.1),
    "dear": linear(1.0),
    "hopeless": linear(10.0),
    "stock": stock_float32,
    "blocks": blocks(8),
    "cliff": cliff,
}
DRAFTS = {
    "poor": honest(0.05),
    "fair": honest(0.5),
    "good": honest(0.9),
    "boasting": boasting(0.95),
    "optimistic": boasting(0.95, 0.3),
    "moody": alternating([honest(0.95), boasting(0.95)], 7),
    "late": alternating([boasting(0.9), honest(0.9)], 100),
}


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("passes", PASSES)
def test_no_text_takes_much_longer_than_plainly_whatever_passes_cost_and_drafters_claim(
    passes, draft, is_known
):
    """A bound, not an average: 3 % and two plain steps over the whole life, for drafters of any price."""
    pass_ms = PASSES[passes]
    for seed, (prompt, length, texts) in enumerate(
        [(16, 32, 1), (16, 32, 12), (4096, 32, 3), (1800, 500, 1)]
    ):
        for propose, upkeep in ((0.002, 0.0), (0.3, 0.05)):
            plain_ms = pass_ms(1, prompt)
            world = World(
                pass_ms,
                DRAFTS[draft],
                propose_ms=propose * plain_ms,
                node_ms=propose * plain_ms / 30,
                upkeep_ms=upkeep * plain_ms,
                prompt_ms=prompt / 128 * plain_ms,
                noise=0.03,
                seed=seed,
            )
            policy = told(pass_ms) if is_known else CostPolicy()
            for _ in range(texts):
                world.write(policy, length, prompt)
            # Without any price, finding out is paid for too.
            assert world.total_ms <= 1.03 * world.plain_ms + (2 if is_known else 4) * plain_ms


@pytest.mark.parametrize("passes", ["cheap", "dear", "stock"])
def test_what_pays_is_drafted_from_the_first_text_on(passes):
    pass_ms = PASSES[passes]
    world = World(pass_ms, honest(0.9), noise=0.03)
    assert world.write(told(pass_ms), 64) < 1 / 1.8


def test_what_one_text_won_is_not_lost_in_the_next():
    policy = told(linear(1.0))
    World(linear(1.0), honest(0.95)).write(policy, 500)
    world = World(linear(1.0), boasting(0.95))
    world.write(policy, 100)
    assert world.total_ms <= 1.03 * world.plain_ms + 2 * 10


def test_a_pause_of_the_machine_is_not_held_against_drafting():
    slow = iter([False] * 60 + [True] + [False] * 10**6)
    base = linear(0.1)
    world = World(lambda rows, context=0: base(rows) * (100 if next(slow) else 1), honest(0.8))
    policy = told(base)
    world.write(policy, 600)
    assert share(world.sizes[80:], None) < 0.1


def test_the_price_of_plain_decoding_is_looked_at_now_and_then():
    sizes = sizes_of(World(linear(0.01), honest(0.9)), told(linear(0.01)), 4000)
    assert 0.002 < share(sizes, None) < 0.02


def test_a_batch_shares_one_width():
    policy = told(linear(0.2))
    trees = [chain(0.9, 40), chain(0.01, 40), chain(0.9, 3)]
    policy.cost.observe(3, 10.4, 16, 3)
    for _ in range(10):
        budget = policy.budget([16, 16, 16])
        chosen = policy.choose([tree.head(budget) for tree in trees])
    assert len(chosen[0]) == len(chosen[1])
    assert len(chosen[2]) == min(3, len(chosen[0]))


@pytest.mark.parametrize("row_ms", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("chances", [(0.9, 0.01), (0.9, 0.6, 0.3), (0.5, 0.5), (0.95, 0.0, 0.0, 0.0)])
def test_rows_without_padding_go_where_they_gain_most(chances, row_ms):
    """As the best of all ways to share them out."""
    count, most = len(chances), 5
    policy = told(linear(row_ms))
    policy.cost.observe(count, linear(row_ms)(count), 16, count)
    policy.begin(10_000)
    policy.budget([16] * count, pads_rows=False)
    trees = [chain(chance, most) for chance in chances]
    found = [len(tree) for tree in policy.choose(trees)]
    prices = policy.cost(np.arange(1, count * (most + 1) + 1), 16, count)

    def speed(sizes):
        tokens = [1 + tree.scores[:size].sum() for tree, size in zip(trees, sizes, strict=True)]
        return count / sum(1 / each for each in tokens) / prices[count + sum(sizes) - 1]

    best = max(speed(sizes) for sizes in itertools.product(range(most + 1), repeat=count))
    assert speed(found) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("row_ms", [0.05, 0.5, 3.0])
@pytest.mark.parametrize(
    "drafts",
    [
        [honest(0.9), honest(0.1)],
        [honest(0.95), *[boasting(0.9)] * 3],
        [boasting(0.99)] * 8,
        [honest(0.7)] * 8,
        [alternating([honest(0.9), boasting(0.9)], 25)] * 4,
    ],
)
def test_unequal_sequences_are_never_slower_than_plain(drafts, row_ms):
    world = World(linear(row_ms), None, noise=0.02)
    policy = told(world.pass_ms)
    for _ in range(3):
        world.write_apart(policy, 150, drafts)
    assert world.total_ms <= 1.03 * world.plain_ms + 2 * world.pass_ms(len(drafts), 16)


def test_a_lucky_sequence_beside_unlucky_ones_is_drafted_for():
    world = World(linear(0.3), None)
    world.write_apart(told(world.pass_ms), 400, [honest(0.95), *[boasting(0.05, 0.0)] * 3])
    drafted = [sizes for sizes in world.sizes if sizes and len(sizes) == 4]
    lucky, *unlucky = np.mean(drafted[20:], axis=0)
    assert lucky > 2
    assert lucky > 3 * max(unlucky)


def test_the_more_sequences_share_a_pass_the_smaller_their_trees():
    alone, eight = (
        mean_size(sizes_of(World(linear(0.3), honest(0.8)), told(linear(0.3)), 800, batch))
        for batch in (1, 8)
    )
    assert 0 < eight < alone


def test_what_a_lucky_sequence_gains_does_not_repay_those_that_wait():
    """Summed up, four nodes each would pay: 5.6 tokens instead of 2, for 19 ms instead of 11."""
    lucky, unlucky = (DraftTree.chain([1, 2, 3, 4], [score] * 4) for score in (0.9, 0.01))
    sizes = []
    for trees in ([lucky, unlucky], [lucky, lucky]):
        policy = told(linear(1.0))
        policy.cost.observe(2, 11, 16, 2)
        policy.begin(10_000)
        policy.budget([16, 16])
        sizes.append([len(tree) for tree in policy.choose(trees)])
    assert sizes == [[1, 1], [4, 4]]


def test_rows_that_the_drafter_adds_are_priced():
    sizes = {}
    for extra_rows in (0, 15):
        world = World(linear(0.2), honest(0.8), propose_ms=0.0, other_ms=0.0, extra_rows=extra_rows)
        sizes[extra_rows] = mean_size(sizes_of(world, told(linear(0.2)), 2000, batch=2))
        gains = 1 + np.concatenate(([0], np.cumsum(0.8 ** np.arange(1, 30))))
        speeds = gains[:30] / linear(0.2)(2 * (np.arange(1, 31) + extra_rows))
        assert abs(sizes[extra_rows] - int(np.argmax(speeds))) <= 2
    assert sizes[15] > sizes[0]  # the rows are there anyway: then more nodes pay


def test_a_drafter_whose_own_rows_cost_more_than_it_gains_is_not_asked():
    world = World(linear(0.2), honest(0.3))
    assert share(sizes_of(world, told(linear(0.2)), 400), None) < 0.3
    world = World(linear(0.2), honest(0.3), extra_rows=40)
    assert share(sizes_of(world, told(linear(0.2)), 400), None) > 0.7


def test_a_model_that_takes_chains_only_has_no_negative_rows():
    policy = told(linear(0.1))
    for _ in range(20):
        policy.choose([chain(0.9, 40).head(policy.budget([16]))])
        policy.observe(3, linear(0.1)(3), 0.1, [2])
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


def test_the_budget_leaves_room_to_grow_and_has_a_bound():
    policy = told(linear(0))
    World(linear(0), honest(1.0)).write(policy, 3000)
    policy.account.credit = 1000.0
    assert policy.budget([16]) == MAX_DRAFT_TOKENS
    assert told(linear(0), max_draft_tokens=5).budget([16]) == 5


def test_no_sequence_may_have_a_tree():
    policy = told(linear(1))
    assert [len(tree) for tree in policy.choose([DraftTree(), DraftTree()])] == [0, 0]
