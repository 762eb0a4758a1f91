"""Stochastic beam search: its formula, its laws, and beam search where nothing is sampled."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from grown import Grown, Table, misfit, text_of
from hypothesis import given, strategies as st

from hasten.drafters.trees import RsdBeams
from hasten.drafters.trees.rsd import conditioned

DRAFT = Table(3, 8, spread=1.0)


def leaves(grown, depth):
    return frozenset(path for path in grown.paths() if len(path) == depth)


def subsets(law, size):
    """The sets that draws without replacement give -> probability"""
    found = Counter()
    for order in itertools.permutations(law, size):
        chance, left = 1.0, 1.0
        for key in order:
            chance *= law[key] / left
            left -= law[key]
        found[frozenset(order)] += chance
    return found


@pytest.mark.parametrize("width", [2, 3])
def test_the_beams_of_a_level_are_sequences_drawn_without_replacement(width):
    for depth in (1, 2):
        law = DRAFT.texts([0], depth)
        found = Counter(
            leaves(Grown(RsdBeams(width, 2), text_of("distinct", seed=seed), DRAFT, 9), depth)
            for seed in range(1500)
        )
        if width < len(law):
            assert misfit(found, subsets(law, width)) < 1
        else:
            assert {*found} == {frozenset(law)}


def test_gumbels_drawn_for_whole_sequences_have_that_law_too():
    generator = np.random.default_rng(0)
    law = DRAFT.texts([0], 2)
    logs = np.log(list(law.values()))
    direct = Counter(
        frozenset(np.argsort(-(logs + generator.gumbel(size=len(logs))))[:2].tolist()) for _ in range(2000)
    )
    assert misfit(direct, subsets(dict(enumerate(law.values())), 2)) < 1


@given(
    scores=st.lists(st.floats(-30, 30), min_size=1, max_size=6),
    largest=st.floats(-30, 30),
)
def test_scores_are_conditioned_on_their_largest(scores, largest):
    scores = np.sort(np.array(scores))[::-1]
    found = conditioned(scores, largest)
    assert found[0] == pytest.approx(largest)
    assert (np.diff(found) <= 1e-9).all()
    with np.errstate(divide="ignore"):
        expected = -np.log(np.exp(-largest) - np.exp(-scores[0]) + np.exp(-scores))
    near = np.abs(scores - scores[0]) + abs(largest - scores[0]) < 20
    assert found[near] == pytest.approx(expected[near], rel=1e-4, abs=1e-4)


def test_conditioned_scores_do_not_overflow():
    found = conditioned(np.array([900.0, 20.0, -900.0, -np.inf]), -5.0)
    assert np.isfinite(found[:3]).all()
    assert found[0] == -5
    assert np.isneginf(found[3])
    assert found[2] == pytest.approx(-900)


def test_beams_without_sampling_are_the_likeliest_sequences_of_likely_prefixes():
    """Beam search by brute force; greedy and chosen trees alike."""
    draft = Table(5, 3)
    for width, depth in ((1, 3), (2, 3), (4, 2)):
        grown = Grown(RsdBeams(width, depth), text_of("chosen"), draft, 99)
        kept = {(): 1.0}
        for place in range(1, depth + 1):
            longer = {
                (*path, token): chance * after
                for path, chance in kept.items()
                for token, after in enumerate(draft.law([0, *path]))
            }
            kept = dict(sorted(longer.items(), key=lambda item: -item[1])[:width])
            assert leaves(grown, place) == {*kept}
        for node, path in enumerate(grown.paths()):
            if path in kept:
                assert grown.tree.scores[node] == pytest.approx(kept[path], rel=1e-5)


def test_coupled_beams_begin_with_what_the_target_would_write():
    for seed in range(20):
        sequence = text_of("coupled", 1.0, seed)
        grown = Grown(RsdBeams(2, 2), sequence, DRAFT, 9)
        assert grown.tree.token_ids[0] == sequence.sampler.guess(DRAFT.logits([0]), 1)


def test_the_last_level_is_as_wide_as_there_is_room():
    grown = Grown(RsdBeams(3, 3), text_of("distinct"), Table(6, 3), 8)
    assert Counter(map(len, grown.paths())) == {1: 3, 2: 3, 3: 2}
    assert [len(nodes) for nodes in grown.passes] == [3, 3]
    grown = Grown(RsdBeams(3, 3), text_of("distinct"), Table(6, 3), 6)
    assert Counter(map(len, grown.paths())) == {1: 3, 2: 3}
    assert len(grown.passes) == 1


def test_beams_end_where_a_law_holds_no_more():
    """Of top-1 texts there is one, however wide the beam."""
    for proposals in ("coupled", "chosen", "distinct", "independent"):
        grown = Grown(RsdBeams(3, 3), text_of(proposals, top_k=1), DRAFT, 9)
        assert Counter(map(len, grown.paths())) == {1: 1, 2: 1, 3: 1}
