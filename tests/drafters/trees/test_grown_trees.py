"""What every shape keeps to, whatever the rule wants of its drafts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from grown import PROPOSALS, SHAPES, Grown, Table, path_of, text_of
from hypothesis import given, settings, strategies as st

from hasten.core import SAMPLED
from hasten.tree import ROOT
from hasten.verify import follow

EVERY = pytest.mark.parametrize("name", SHAPES)


def check(grown, budget, max_depth, proposals, temperature):
    tree = grown.tree
    draws = range(len(tree)) if tree.draws is None else tree.draws
    assert len(draws) <= budget
    assert {*draws} == {*range(len(tree))}
    assert len(tree) == 0 or tree.depths().max() <= max_depth
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()))
    edges = set(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    assert len(edges) == len(tree)
    scores = [*tree.scores.tolist(), 1.0]
    assert all(0 < scores[node] <= scores[parent] for node, parent in enumerate(tree.parents.tolist()))
    is_sampled = proposals in SAMPLED and temperature > 0
    assert (tree.draft_probs is not None) == (is_sampled and len(tree) > 0)
    assert tree.draws is None or (proposals == "independent" and temperature > 0)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    proposals=st.sampled_from(PROPOSALS),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    budget=st.integers(0, 24),
    max_depth=st.integers(0, 6),
    vocab_size=st.integers(1, 6),
    price=st.sampled_from([0.0, 0.2, 2.0]),
    seed=st.integers(0, 5),
    top_k=st.sampled_from([None, 1, 2]),
)
def test_trees_stay_in_their_bounds_in_every_mode(
    *, name, proposals, temperature, budget, max_depth, vocab_size, price, seed, top_k
):
    sequence = text_of(proposals, temperature, seed, top_k=top_k)
    draft = Table(vocab_size, seed)
    grown = Grown(SHAPES[name](), sequence, draft, budget, max_depth=max_depth, token_price=price)
    check(grown, budget, max_depth, proposals, temperature)
    assert name == "dyspec-threshold" or not grown.unused
    assert all(
        len(path) < max_depth for nodes in grown.passes for path in map(grown.paths().__getitem__, nodes)
    )
    assert name == "dyspec-threshold" or bool(len(grown.tree)) == (budget > 0 and max_depth > 0)


@EVERY
@pytest.mark.parametrize("proposals", PROPOSALS)
def test_a_tree_is_grown_from_logits_no_law_can_be_made_of(name, proposals):
    draft = Table(4, 0)
    draft.logits = lambda text: torch.full((4,), torch.nan)
    for temperature in (0.0, 1.0):
        assert len(Grown(SHAPES[name](), text_of(proposals, temperature), draft, 8).tree) == 0


@EVERY
def test_greedy_trees_are_the_same_for_every_rule(name):
    for seed in range(5):
        trees = [Grown(SHAPES[name](), text_of(each, 0.0), Table(5, seed), 9).tree for each in PROPOSALS]
        for tree in trees[1:]:
            assert tree.begins(trees[0])
            assert len(tree) == len(trees[0])
        tree = trees[0]
        for node in [ROOT, *range(len(tree))]:
            children = tree.drawn_below(node)
            path = tree.token_ids[tree.path_to(node)].tolist()
            ranked = np.argsort(-Table(5, seed).law([0, *path]))
            assert [int(tree.token_ids[each]) for each in children] == ranked[: len(children)].tolist()


@EVERY
def test_a_draft_that_is_the_target_is_right_all_the_way(name):
    """Coupled: both draw with the same noise."""
    for seed in range(20):
        sequence, model = text_of("coupled", 1.0, seed), Table(6, 3)
        tree = Grown(SHAPES[name](), sequence, model, 12).tree
        path = follow(tree, model.rows(sequence.token_ids, tree), sequence).path
        assert path
        assert not tree.drawn_below(path[-1])
        assert path[0] == 0


@EVERY
def test_chosen_trees_know_no_noise(name):
    trees = [Grown(SHAPES[name](), text_of("chosen", 1.0, seed), Table(6, 3), 12).tree for seed in range(4)]
    assert all(tree.begins(trees[0]) and len(tree) == len(trees[0]) for tree in trees)


@EVERY
def test_sampled_trees_are_drawn_anew_at_every_place_and_seed(name):
    draft = Table(6, 3, spread=0.1)
    draft.logits = lambda text: torch.zeros(6)
    prompts = [(0,), (0, 0), (0, 0, 0)]
    found = {
        tuple(Grown(SHAPES[name](), text_of("distinct", 1.0, seed, prompt), draft, 8).paths())
        for seed, prompt in itertools.product(range(4), prompts)
    }
    assert len(found) > 9


def draws_of(grown, draft, node):
    """(node, law it was drawn from, what it should have been) of all draws below a node."""
    path = path_of(grown.growing, node)
    law = draft.law([0, *path])
    left = law.copy()
    for child in grown.tree.drawn_below(node):
        yield child, grown.tree.draft_probs[child], left / left.sum(), law
        left[grown.tree.token_ids[child]] = 0


@EVERY
def test_siblings_carry_the_law_of_what_was_left(name):
    draft = Table(5, 2)
    for seed in range(20):
        grown = Grown(SHAPES[name](), text_of("distinct", 1.0, seed), draft, 12)
        for node in [ROOT, *range(len(grown.tree))]:
            for child, found, left, law in draws_of(grown, draft, node):
                assert found == pytest.approx(left, abs=1e-6)
                token_id = grown.tree.token_ids[child]
                above = 1.0 if node == ROOT else grown.tree.scores[node]
                assert grown.tree.scores[child] == pytest.approx(above * law[token_id], rel=1e-4)


@pytest.mark.parametrize("name", ["chain", "multi-candidate", "spectr", "rsd-c"])
def test_independent_siblings_carry_the_law_itself(name):
    draft = Table(3, 2)
    num_again = 0
    for seed in range(20):
        grown = Grown(SHAPES[name](), text_of("independent", 1.0, seed), draft, 12)
        num_again += grown.tree.draws is not None
        for node in [ROOT, *range(len(grown.tree))]:
            for _, found, _, law in draws_of(grown, draft, node):
                assert found == pytest.approx(law, abs=1e-6)
    assert name == "chain" or num_again > 5


@pytest.mark.parametrize("name", ["rsd-s", "dyspec", "dyspec-threshold"])
def test_some_shapes_draw_without_replacement_whatever_the_rule_wants(name):
    draft = Table(3, 2)
    for seed in range(20):
        trees = [Grown(SHAPES[name](), text_of(each, 1.0, seed), draft, 12).tree for each in SAMPLED]
        assert trees[0].begins(trees[1])
        assert len(trees[0]) == len(trees[1])
        assert np.array_equal(trees[0].draft_probs, trees[1].draft_probs)


@pytest.mark.parametrize("proposals", sorted(SAMPLED))
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "rsd-s"])
def test_whether_a_token_is_proposed_does_not_depend_on_the_token(name, proposals, monkeypatch):
    """Any one draw gives another token: it stands in the same place of the tree."""
    draft, calls, other = Table(4, 6), [], {}

    def fake(law, generator):
        key = np.float32(law).tobytes(), sum(key == np.float32(law).tobytes() for key, _ in calls)
        ranked = [int(each) for each in np.argsort(-law, kind="stable") if law[each] > 0]
        calls.append((key[0], key[1]))
        return other.get(key, ranked[0])

    monkeypatch.setattr("hasten.drafters.trees.siblings.draw", fake)
    first = Grown(SHAPES[name](), text_of(proposals), draft, 8).tree
    places = [
        (first.token_ids[first.path_to(node)].tolist(), rank)
        for node in [ROOT, *range(len(first))]
        for rank in range(len(first.drawn_below(node)))
    ]
    laws = list(calls)
    assert len(laws) == len(places)
    for key in laws:
        law = np.frombuffer(key[0], np.float32)
        for token_id in np.flatnonzero(law).tolist():
            calls.clear()
            other.clear()
            other[key] = token_id
            tree = Grown(SHAPES[name](), text_of(proposals), draft, 8).tree
            assert proposed(tree, law, key[1]) == token_id


def proposed(tree, law, place):
    """The token of a draw from a law, where several were drawn from it: of that one."""
    nodes = range(len(tree)) if tree.draws is None else tree.draws.tolist()
    found = [
        int(tree.token_ids[node]) for node in nodes if np.allclose(tree.draft_probs[node], law, atol=1e-7)
    ]
    return found[place]
