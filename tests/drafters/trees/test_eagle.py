"""EAGLE-2: the best connected nodes of the beam search, and what is legal where tokens are drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from laws import law_is_kept
from oracles import MODES, Pair, grow, sequence_of

from hasten.drafters.trees.eagle import Eagle, best_nodes
from hasten.errors import ConfigError
from hasten.tree import ROOT


def paths(tree):
    return {tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))}


def beam_search(draft, depth, width):
    """path -> probability of every node that the search looks at."""
    values, beams = {}, {(): 1.0}
    for _ in range(depth + 1):
        found = {}
        for path, above in beams.items():
            probs = torch.softmax(draft([0, 0, *path]), -1).tolist()
            for token in sorted(range(len(probs)), key=lambda token: -probs[token])[:width]:
                found[*path, token] = above * probs[token]
        values |= found
        beams = dict(sorted(found.items(), key=lambda item: -item[1])[:width])
    return values


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("depth", "width", "budget"), [(0, 3, 2), (2, 2, 4), (3, 3, 7), (2, 4, 60)])
def test_the_nodes_are_the_likeliest_of_the_search(seed, depth, width, budget):
    draft = Pair(vocab_size=6, seed=seed, sharpness=1.5).draft
    values = beam_search(draft, depth, width)
    tree, passes = grow(Eagle(depth, width), sequence_of(temperature=0.0), draft, budget)
    best = sorted(values, key=lambda path: -values[path])[:budget]
    assert paths(tree) == set(best)
    assert passes == depth + 1
    for node in range(len(tree)):
        path = tuple(tree.token_ids[tree.path_to(node)].tolist())
        assert tree.scores[node] == pytest.approx(values[path], rel=1e-4)


@settings(max_examples=60)
@given(
    parents=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    factors=st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=9, max_size=9),
    count=st.integers(0, 9),
)
def test_the_best_nodes_are_connected_even_if_all_are_equal_and_worth_most(parents, factors, count):
    parents = [parent - 1 if parent - 1 < node else ROOT for node, parent in enumerate(parents)]
    values = {ROOT: 1.0}
    for node, parent in enumerate(parents):
        values[node] = values[parent] * factors[node]
    best = best_nodes(values, range(len(parents)), count)
    assert len(best) == min(count, len(parents))
    assert all(parents[node] == ROOT or parents[node] in best for node in best)
    closed = [
        nodes
        for nodes in itertools.combinations(range(len(parents)), len(best))
        if all(parents[node] == ROOT or parents[node] in nodes for node in nodes)
    ]
    assert sum(values[node] for node in best) == max(sum(values[n] for n in nodes) for nodes in closed)


def test_a_probability_that_rounds_to_more_than_one_leaves_no_child_without_its_parent(monkeypatch):
    from hasten.drafters.trees import siblings

    class Optimist(siblings.Ranked):
        def take(self, count, *, distinct=False):
            taken = super().take(count, distinct=distinct)
            return [each._replace(prob=1.0000002 if rank == 0 else 0.4) for rank, each in enumerate(taken)]

    monkeypatch.setattr(siblings, "Ranked", Optimist)
    for budget in range(1, 12):
        tree, _ = grow(Eagle(4, 2), sequence_of(temperature=0.0), Pair().draft, budget)
        assert len(tree) == budget
        assert all(-1 <= parent < node for node, parent in enumerate(tree.parents.tolist()))


@pytest.mark.parametrize("proposals", MODES)
@pytest.mark.parametrize("budget", [0, 1, 5, 33])
@pytest.mark.parametrize("max_depth", [0, 1, 3, 99])
def test_budget_and_depth_are_kept_in_every_mode(proposals, budget, max_depth):
    tree, _ = grow(Eagle(3, 4), sequence_of(proposals), Pair().draft, budget, max_depth=max_depth)
    assert len(tree) <= budget
    assert tree.depths().max(initial=0) <= min(max_depth, 4)
    if max_depth and budget:
        assert len(tree) > 0
    if proposals in ("coupled", "chosen") and max_depth > 2:
        assert len(tree) == budget


def test_sampled_budget_reaches_every_level_and_goes_where_the_draft_is_unsure():
    sure, unsure = torch.full((24,), -20.0), torch.zeros(24)
    sure[3] = 20.0
    tree, _ = grow(Eagle(3, 8), sequence_of("distinct"), lambda _: sure, 16)
    assert len(tree) == 4  # one token has all of the law
    tree, _ = grow(Eagle(3, 8), sequence_of("distinct"), lambda _: unsure, 16)
    assert np.bincount(tree.depths()).tolist() == [0, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("proposals", "verify"),
    [("distinct", "residual"), ("distinct", "traversal"), ("independent", "k-sequential")],
)
def test_sampled_texts_keep_their_law(proposals, verify):
    law_is_kept(lambda: Eagle(1, 2), proposals, verify, budget=3)


def test_this_must_fail_sampled_tokens_left_out_for_what_they_are(monkeypatch):
    class Pruned(Eagle):
        def grow(self, tree):
            yield from super().grow(tree)
            best = max(range(len(tree)), key=tree.score)
            tree._kept = [] if tree.score(best) < 0.5 else sorted(set(path_to(tree, best)))

    def path_to(tree, node):
        path = []
        while node != ROOT:
            path.append(node)
            node = tree.parents[node]
        return path

    with pytest.raises(AssertionError, match="law"):
        law_is_kept(lambda: Pruned(1, 2), "distinct", "residual", budget=3)


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match="width=0 cannot work"):
        Eagle(width=0)
    with pytest.raises(ConfigError, match="depth=-1 cannot work"):
        Eagle(depth=-1)
