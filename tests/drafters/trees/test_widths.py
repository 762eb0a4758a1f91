"""Widths that follow from a budget; full trees (MCSD, RSD-C) and sequences side by side (SpecTr)."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from grown import Grown, Table, distinct_pairs, misfit, path_of, text_of

from hasten.core import Acceptance
from hasten.drafters.trees import MultiCandidate, RsdBeams, RsdConstant, SpecTr
from hasten.drafters.trees.widths import Widths, best_trees
from hasten.errors import ConfigError
from hasten.tree import ROOT

DRAFT = Table(7, 3)


def levels(grown):
    return Counter(len(path) for path in grown.paths())


def size(widths):
    return sum(itertools.accumulate(widths, lambda above, width: above * width))


def gain(widths, chances):
    return sum(itertools.accumulate((chances[width - 1] for width in widths), lambda a, b: a * b))


def test_the_widths_are_the_best_of_all_that_fit():
    chances = (0.55, 0.7, 0.8, 0.83)
    for room, depth in itertools.product(range(13), range(5)):
        fitting = [
            widths
            for length in range(depth + 1)
            for widths in itertools.product(range(1, 5), repeat=length)
            if size(widths) <= room
        ]
        best = max(gain(widths, chances) for widths in fitting)
        found = best_trees(chances, room, depth)
        assert len(found) == depth + 1
        assert found[depth][0] == pytest.approx(best)
        assert gain(found[depth][1], chances) == pytest.approx(best)
        assert size(found[depth][1]) <= room


def test_dear_passes_make_wide_trees_and_cheap_ones_deep_trees():
    cheap, dear = (Grown(MultiCandidate(), text_of(), DRAFT, 28, token_price=each) for each in (0, 0.4))
    assert max(levels(cheap)) > max(levels(dear))
    assert levels(cheap)[1] < levels(dear)[1]
    cheap, dear = (Grown(SpecTr(), text_of(), DRAFT, 28, token_price=each) for each in (0, 0.4))
    assert max(levels(cheap)) > max(levels(dear))


def test_a_draft_that_is_right_gets_deep_trees():
    shape, widths = MultiCandidate(), {}
    for name in ("at first", "learnt"):
        grown = Grown(shape, text_of(temperature=0.0), DRAFT, 24)
        widths[name] = levels(grown)
        path = [0]
        while grown.tree.drawn_below(path[-1]):
            path.append(grown.tree.drawn_below(path[-1])[0])
        for _ in range(100):
            shape.learn(grown.tree, Acceptance(path, [*grown.tree.token_ids[path].tolist(), 0]))
    assert max(widths["learnt"]) > max(widths["at first"])


@pytest.mark.parametrize("shape", [MultiCandidate((4, 2, 2)), RsdConstant((4, 2, 2))])
def test_every_node_of_a_level_has_as_many_children(shape):
    for proposals in ("coupled", "chosen", "distinct"):
        grown = Grown(shape, text_of(proposals), DRAFT, 28)
        assert levels(grown) == {1: 4, 2: 8, 3: 16}
        assert [len(nodes) for nodes in grown.passes] == [4, 8]
        for node, path in enumerate(grown.paths()):
            assert len(grown.children(node)) == (0, 2, 2, 0)[len(path)]


def test_nodes_that_get_no_children_are_not_read():
    grown = Grown(MultiCandidate((4, 2, 2)), text_of(), DRAFT, 9)
    assert levels(grown) == {1: 4, 2: 5}
    assert [len(nodes) for nodes in grown.passes] == [3]
    best = sorted(range(4), key=lambda node: -grown.growing.score(node))
    assert [len(grown.children(node)) for node in best] == [2, 2, 1, 0]
    grown = Grown(MultiCandidate((4, 2, 2)), text_of(), DRAFT, 99, max_depth=1)
    assert levels(grown) == {1: 4}
    assert not grown.passes


def test_children_of_a_token_drawn_again_are_drawn_once():
    for seed in range(20):
        grown = Grown(MultiCandidate((3, 2)), text_of("independent", seed=seed), Table(2, 1), 9)
        drawn = grown.tree.drawn_below(ROOT)
        assert len(drawn) == 3
        for node in {*drawn}:
            assert len(grown.children(node)) == 2


def test_pairs_of_rsd_c_have_the_law_of_draws_without_replacement():
    draft = Table(4, 2, spread=1.0)
    shape = RsdConstant((2, 2))
    first, second = Counter(), Counter()
    for seed in range(2000):
        grown = Grown(shape, text_of("distinct", seed=seed), draft, 6)
        first[tuple(grown.children(ROOT))] += 1
        for node in grown.tree.drawn_below(ROOT):
            if path_of(grown.growing, node) == (1,):
                second[tuple(grown.children(node))] += 1
    assert misfit(first, distinct_pairs(draft.law([0]))) < 1
    assert misfit(second, distinct_pairs(draft.law([0, 1]))) < 1


def test_sequences_that_agree_are_merged_and_drawn_on_as_many_times():
    num_again = 0
    for seed in range(30):
        grown = Grown(SpecTr(4, 3), text_of("independent", seed=seed), Table(3, 5), 12)
        assert len(grown.tree.drawn_below(ROOT)) == 4
        num_again += len(grown.tree) < 12
        for node, path in enumerate(grown.paths()):
            parent = int(grown.tree.parents[node])
            times = grown.tree.drawn_below(parent).count(node)
            assert len(grown.tree.drawn_below(node)) == (times if len(path) < 3 else 0)
    assert num_again > 20


@pytest.mark.parametrize("shape", [SpecTr(4, 3), MultiCandidate((3, 3, 3))])
def test_a_token_drawn_again_takes_room_again(shape):
    """So that the size of a tree does not depend on what was drawn."""
    num_again = 0
    for seed in range(20):
        tree = Grown(shape, text_of("independent", seed=seed), Table(2, 5), 9).tree
        assert len(tree if tree.draws is None else tree.draws) == 9
        num_again += tree.draws is not None
    assert num_again == 20


def test_sequences_are_independent():
    draft = Table(3, 5, spread=1.0)
    pairs = Counter()
    for seed in range(2000):
        grown = Grown(SpecTr(2, 1), text_of("independent", seed=seed), draft, 2)
        pairs[tuple(grown.children(ROOT))] += 1
    law = draft.law([0])
    assert misfit(pairs, {(a, b): law[a] * law[b] for a in range(3) for b in range(3)}) < 1


def test_sequences_part_at_the_root_where_draws_are_distinct():
    for proposals in ("coupled", "chosen", "distinct"):
        grown = Grown(SpecTr(4, 3), text_of(proposals), DRAFT, 12)
        assert levels(grown) == {1: 4, 2: 4, 3: 4}
        assert len(grown.passes) == 2


@pytest.mark.parametrize("shape", [SpecTr, RsdBeams])
def test_numbers_not_given_follow_from_the_budget(shape):
    for budget in (1, 2, 5, 12, 28):
        for arguments in ({}, {"depth" if shape is RsdBeams else "length": 3}):
            grown = Grown(shape(**arguments), text_of("distinct"), DRAFT, budget)
            assert budget / 2 < len(grown.tree) <= budget
    assert max(levels(Grown(shape(2), text_of(), DRAFT, 12))) == 6


def test_chances_grow_with_the_width():
    chances = Widths()._chances()
    assert np.all(np.diff(chances) >= 0)
    assert 0 < chances[0] < chances[-1] <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiCandidate(()),
        lambda: MultiCandidate((2, 0)),
        lambda: RsdConstant((-1,)),
        lambda: SpecTr(0),
        lambda: SpecTr(length=0),
        lambda: RsdBeams(width=0),
        lambda: RsdBeams(depth=-1),
    ],
)
def test_numbers_no_tree_has_are_refused(make):
    with pytest.raises(ConfigError, match="at least 1"):
        make()
