"""The adaptive tree: what it gains by a simulated clock, what it learns, and the law of sampled texts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from laws import law_is_kept
from oracles import MODES, Pair, grow, sequence_of, simulate

from hasten.core import Acceptance
from hasten.drafters.trees.adaptive import Adaptive
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.eagle import Eagle
from hasten.drafters.trees.sequoia import Sequoia
from hasten.errors import ConfigError
from hasten.tree import DraftTree


@pytest.mark.parametrize(
    ("proposals", "temperature", "price", "agreement", "budget"),
    [
        ("coupled", 0.0, 0.05, 0.95, 32),
        ("coupled", 0.0, 0.2, 0.6, 8),
        ("distinct", 1.0, 0.05, 0.6, 16),
        ("distinct", 1.0, 0.05, 0.95, 8),
    ],
)
def test_it_gains_as_much_as_the_best_fixed_shape_and_more_than_chains(
    proposals, temperature, price, agreement, budget
):
    options = {"price": price, "budget": budget, "proposals": proposals, "temperature": temperature}
    pair = Pair(agreement=agreement)
    chains = [simulate(Chain(length), pair, num_rounds=80, **options) for length in (1, 4)]
    fixed = [simulate(shape, pair, num_rounds=80, **options) for shape in (Sequoia(), Eagle(1, 6))]
    gained = simulate(Adaptive(), pair, num_rounds=80, **options)
    assert gained >= max(chains)
    assert gained >= 0.92 * max(fixed)


@pytest.mark.parametrize("proposals", MODES)
def test_budget_and_depth_are_kept_in_every_mode(proposals):
    shape = Adaptive()
    for budget, max_depth in itertools.product((0, 1, 6, 40), (0, 1, 3, 99)):
        tree, _ = grow(shape, sequence_of(proposals), Pair().draft, budget, max_depth=max_depth)
        assert len(tree) <= budget
        assert tree.depths().max(initial=0) <= max_depth
        assert bool(len(tree)) == bool(budget and max_depth)


@pytest.mark.parametrize("proposals", MODES)
def test_the_dearer_a_pass_the_fewer_there_are(proposals):
    passes = [
        sum(
            grow(Adaptive(), sequence_of(proposals, seed=seed), Pair(seed=seed).draft, 20, token_price=price)[
                1
            ]
            for seed in range(5)
        )
        for price in (0.0, 0.2, 0.6, 9.0)
    ]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[2] > passes[3] == 5


def test_where_the_draft_is_sure_the_tree_is_long_and_where_it_is_not_wide():
    sure, unsure = torch.full((24,), -20.0), torch.zeros(24)
    sure[3] = 20.0
    long, _ = grow(Adaptive(), sequence_of(temperature=0.0), lambda _: sure, 8, token_price=0.1)
    wide, _ = grow(Adaptive(), sequence_of(temperature=0.0), lambda _: unsure, 8, token_price=0.1)
    assert long.depths().max() > 3
    assert wide.depths().max() == 1
    assert len(wide) == 8


def test_chosen_nodes_are_the_best_of_those_that_were_read():
    """Before anything is learnt, a node is worth the draft's probability of it."""
    draft = Pair(vocab_size=12, seed=5).draft
    whole, _ = grow(Eagle(6, 12), sequence_of(temperature=0.0), draft, 10)
    found, _ = grow(Adaptive(width=12), sequence_of(temperature=0.0), draft, 10)
    assert found.scores.sum() == pytest.approx(whole.scores.sum(), rel=1e-5)


def test_a_draft_that_is_always_wrong_is_soon_read_once_only():
    shape, draft = Adaptive(), Pair(seed=2).draft
    for _ in range(300):
        tree, _ = grow(shape, sequence_of(temperature=0.0), draft, 8, token_price=0.1)
        shape.learn(tree, Acceptance([], [99]))
    assert grow(shape, sequence_of(temperature=0.0), draft, 8, token_price=0.1)[1] == 1


def test_ranks_of_a_probability_are_worth_what_they_were():
    shape = Adaptive()
    tree = DraftTree([5, 6], [-1, -1], [0.9, 0.05])
    for _ in range(400):
        shape.learn(tree, Acceptance([1], [6, 1]))
    assert shape._chosen.of(0, 0.9, 0.9) < 0.05
    assert shape._chosen.of(1, 0.05, 0.05) > 0.95
    assert shape._sampled.of(1, 0.05, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("price", [0.0, 0.3])
@pytest.mark.parametrize(
    ("proposals", "verify"),
    [("distinct", "residual"), ("distinct", "traversal"), ("independent", "k-sequential")],
)
def test_sampled_texts_keep_their_law(proposals, verify, price):
    law_is_kept(lambda: Adaptive(width=2), proposals, verify, budget=3, price=price)


def test_this_must_fail_sampled_tokens_ranked_like_chosen_ones():
    class Ranked(Adaptive):
        def grow(self, tree):
            yield from super().grow(tree)
            tree._kept = [
                node for node in range(len(tree)) if tree.score(node) > 0.3 and tree.depth(node) == 1
            ]

    with pytest.raises(AssertionError, match="law"):
        law_is_kept(lambda: Ranked(width=2), "distinct", "residual", budget=3)


def test_nothing_that_is_learnt_is_lost_to_rounding():
    shape, rng = Adaptive(), np.random.default_rng(0)
    for proposals in MODES:
        simulate(
            shape, Pair(seed=int(rng.integers(9))), price=0.1, budget=9, proposals=proposals, temperature=1.0,
            num_rounds=20,
        )  # fmt: skip
    for worth in (shape._chosen, shape._sampled):
        assert (worth._counts[..., 0] <= worth._counts[..., 1]).all()
        assert worth._counts[..., 1].sum() > 20


def test_options_that_cannot_work():
    with pytest.raises(ConfigError, match="width=0 cannot work"):
        Adaptive(width=0)
    with pytest.raises(ConfigError, match="depth=0 cannot work"):
        Adaptive(depth=0)
