"""Sequoia: the best static tree by brute force, what is learnt of ranks, and what a level costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from oracles import MODES, Pair, grow, sequence_of, simulate

from hasten.core import Acceptance
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.rank_acceptance import RankAcceptance
from hasten.drafters.trees.sequoia import MAX_NODES, Sequoia, StaticTrees
from hasten.errors import ConfigError
from hasten.tree import DraftTree


def all_trees(num_nodes, depth, width):
    """Every ordered tree as (value of its nodes given P): tuples of child subtrees."""
    if num_nodes == 0 or depth == 0:
        return [()] if num_nodes == 0 else []
    found = []
    for num_children in range(1, min(width, num_nodes) + 1):
        for cuts in itertools.combinations(range(1, num_nodes), num_children - 1):
            sizes = np.diff([0, *cuts, num_nodes])
            below = [all_trees(size - 1, depth - 1, width) for size in sizes]
            found += itertools.product(*below)
    return found


def value_of(tree, probs):
    return sum(prob * (1 + value_of(child, probs)) for prob, child in zip(probs, tree, strict=False))


@settings(max_examples=40)
@given(
    probs=st.lists(st.floats(0, 1), min_size=3, max_size=3).map(lambda row: np.array(row) / max(1, sum(row))),
    budget=st.integers(1, 6),
    depth=st.integers(1, 4),
)
def test_the_best_tree_is_the_best_of_all(probs, budget, depth):
    trees = [tree for size in range(budget + 1) for tree in all_trees(size, depth, 3)]
    best = max(value_of(tree, probs) for tree in trees)
    static = StaticTrees(probs, budget, depth)
    assert static.value(budget, depth) == pytest.approx(best, abs=1e-12)
    # The tree that is built is the one that was valued.
    row, total = [1.0], 0.0
    levels = static.levels(budget, depth)
    for counts in levels:
        row = [above * probs[rank] for above, count in zip(row, counts, strict=True) for rank in range(count)]
        total += sum(row)
    assert total == pytest.approx(best, abs=1e-12)
    assert sum(map(sum, levels)) <= budget
    assert len(levels) <= depth


def test_where_only_the_first_child_is_ever_right_the_tree_is_a_chain():
    static = StaticTrees(np.array([0.8, 0.0, 0.0]), 5, 5)
    assert static.levels(5, 5) == [[1]] * 5
    assert 1 + static.value(5, 5) == pytest.approx(sum(0.8**depth for depth in range(6)))
    assert static.smallest(5, 5) == pytest.approx(0.8**5)


def test_a_level_is_added_while_it_gains_more_than_a_pass_costs():
    static = StaticTrees(np.array([0.8, 0.0]), 10, 10)
    for price in (0.05, 0.3, 0.5, 0.9):
        gains = [0.8**depth for depth in range(2, 11)]
        assert static.depth_for(10, 10, price) == 1 + sum(gain > price for gain in gains)
    assert static.depth_for(10, 3, 0.0) == 3
    assert static.depth_for(10, 0, 0.0) == 0


def test_ranks_are_counted_where_elder_siblings_were_wrong():
    ranks = RankAcceptance(3)
    tree = DraftTree([5, 6, 7, 8, 9], [-1, -1, 0, 0, 2])
    for _ in range(4000):  # 6, the second child, is right, then nothing; then 5, 8 and nothing
        ranks.learn(tree, Acceptance([1], [6, 1]))
        ranks.learn(tree, Acceptance([0, 3], [5, 8, 1]))
    assert ranks.hazards() == pytest.approx([1 / 3, 1.0, 0.6 * 0.36], abs=0.02)
    assert ranks.probs()[:2] == pytest.approx([1 / 3, 2 / 3], abs=0.02)
    assert ranks.probs().sum() < 1 + 1e-9


def test_a_rank_that_is_not_drafted_any_more_is_forgotten():
    ranks = RankAcceptance(2)
    assumed = ranks.hazards()[1]
    for _ in range(200):
        ranks.learn(DraftTree([5, 6], [-1, -1]), Acceptance([], [1]))
    assert ranks.hazards()[1] < 0.1 * assumed
    for _ in range(5000):
        ranks.learn(DraftTree([5], [-1]), Acceptance([0], [5, 1]))
    assert ranks.hazards()[1] > 0.9 * assumed


@pytest.mark.parametrize("proposals", MODES)
@pytest.mark.parametrize("budget", [0, 1, 7, 40])
def test_the_budget_is_used_and_kept_in_every_mode(proposals, budget):
    shape = Sequoia()
    tree, _ = grow(shape, sequence_of(proposals), Pair(vocab_size=40).draft, budget)
    assert len(tree if tree.draws is None else tree.draws) == budget
    shallow, _ = grow(shape, sequence_of(proposals), Pair().draft, budget, max_depth=2)
    assert shallow.depths().max(initial=0) <= 2
    assert len(grow(shape, sequence_of(proposals), Pair().draft, budget, max_depth=0)[0]) == 0


def test_the_shape_is_the_same_whatever_is_drawn():
    shape = Sequoia()
    shapes = {
        tuple(grow(shape, sequence_of("distinct", seed=seed), Pair(seed=seed).draft, 20)[0].parents.tolist())
        for seed in range(8)
    }
    assert len(shapes) == 1


def test_a_law_of_two_tokens_leaves_the_others_places_empty():
    def two(text):
        logits = Pair().draft(text).clone()
        logits[2:] = -np.inf
        return logits

    for proposals in MODES:
        tree, _ = grow(Sequoia(), sequence_of(proposals), two, 30)
        assert set(tree.token_ids.tolist()) <= {0, 1}
        assert len(tree) > 3


def test_more_nodes_than_the_table_holds_are_not_planned():
    tree, _ = grow(Sequoia(width=4), sequence_of(), Pair(vocab_size=60).draft, 4 * MAX_NODES)
    assert len(tree) == MAX_NODES


def test_it_learns_to_draft_as_deep_as_the_draft_is_good():
    for agreement, shorter, longer in ((0.995, 0, 99), (0.3, 0, 2)):
        shape = Sequoia()
        simulate(
            shape, Pair(agreement=agreement), price=0.1, budget=16, proposals="coupled", temperature=0.0,
            num_rounds=130,
        )  # fmt: skip
        tree, _ = grow(
            shape, sequence_of(temperature=0.0), Pair(agreement=agreement).draft, 16, token_price=0.2
        )
        depth = int(tree.depths().max())
        assert shorter < depth <= longer
        assert agreement < 0.9 or depth >= 4


def test_the_tree_gains_more_than_the_best_chain():
    pair, options = Pair(agreement=0.9), {"price": 0.1, "budget": 16, "proposals": "distinct"}
    options |= {"temperature": 1.0, "num_rounds": 150}
    chains = [simulate(Chain(length), pair, **options) for length in (1, 2, 4, 8)]
    assert simulate(Sequoia(), pair, **options) > max(chains)


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match="width=0 cannot work"):
        Sequoia(width=0)
    with pytest.raises(ConfigError, match="depth=-1 cannot work"):
        Sequoia(depth=-1)
