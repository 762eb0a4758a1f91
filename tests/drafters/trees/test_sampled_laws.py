"""Texts drafted by sampled trees have the law of plain sampling, shape by shape."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from forked import worst_error
from grown import Table, misfit, text_of, written

from hasten.drafters.trees import (
    DySpec,
    DySpecThreshold,
    MultiCandidate,
    RsdBeams,
    RsdConstant,
    SpecTr,
)
from hasten.tree import DraftTree

DRAFT, TARGET = Table(3, 0, spread=1.0), Table(3, 50, spread=1.0)
NUM_TEXTS = 1500
CASES = {
    "multi-candidate": (MultiCandidate(), 4),
    "multi-candidate 2 1": (MultiCandidate((2, 1)), 4),
    "multi-candidate 2 2 short of room": (MultiCandidate((2, 2)), 5),
    "spectr": (SpecTr(), 4),
    "spectr 3 2 short of room": (SpecTr(3, 2), 5),
    "rsd-c": (RsdConstant(), 5),
    "rsd-c 3 1": (RsdConstant((3, 1)), 6),
    "dyspec": (DySpec(), 5),
    "dyspec-threshold": (DySpecThreshold(), 5),
    "dyspec-threshold .3": (DySpecThreshold(0.3), 5),
}


@pytest.mark.parametrize("proposals", ["distinct", "independent"])
@pytest.mark.parametrize("case", CASES)
def test_two_tokens_have_exactly_the_law_of_plain_sampling(case, proposals, monkeypatch):
    shape, budget = CASES[case]
    assert worst_error(monkeypatch, shape, proposals, DRAFT, TARGET, budget=budget) < 1e-12


@pytest.mark.parametrize("case", ["rsd-c", "dyspec", "dyspec-threshold"])
def test_with_more_tokens_to_choose_from_too(case, monkeypatch):
    shape, _ = CASES[case]
    assert worst_error(monkeypatch, shape, "distinct", Table(4, 21), Table(4, 22), budget=4) < 1e-12


def without_the_unlikely(tree):
    """Drops sampled nodes for what they are."""
    kept = []
    for node, parent in enumerate(tree.parents.tolist()):
        own = tree.draft_probs[node][tree.token_ids[node]]
        if own > 0.4 and (parent == -1 or parent in kept):
            kept.append(node)
    places = {-1: -1} | {node: place for place, node in enumerate(kept)}
    return tree.select(kept, [places[parent] for parent in tree.parents[kept].tolist()])


def sorted_by_score(tree):
    return tree.best(len(tree))


def with_the_laws_of_the_first(tree):
    probs = tree.draft_probs.copy()
    for node, parent in enumerate(tree.parents.tolist()):
        probs[node] = tree.draft_probs[tree.drawn_below(parent)[0]]
    return DraftTree(tree.token_ids, tree.parents, tree.scores, draft_probs=probs)


@pytest.mark.parametrize("change", [without_the_unlikely, sorted_by_score, with_the_laws_of_the_first])
@pytest.mark.parametrize("case", ["multi-candidate 2 1", "rsd-c 3 1", "dyspec"])
def test_this_must_fail_trees_changed_for_what_was_drawn(case, change, monkeypatch):
    shape, budget = CASES[case]
    assert worst_error(monkeypatch, shape, "distinct", DRAFT, TARGET, budget=budget, change=change) > 5e-3


def test_this_must_fail_draws_given_in_another_order(monkeypatch):
    def best_first(tree):
        draws = range(len(tree)) if tree.draws is None else tree.draws.tolist()
        order = sorted(draws, key=lambda node: -tree.scores[node])
        probs = tree.draft_probs
        draws = np.array(order, np.int64)
        return DraftTree(tree.token_ids, tree.parents, tree.scores, draft_probs=probs, draws=draws)

    error = worst_error(monkeypatch, SpecTr(3, 1), "independent", DRAFT, TARGET, budget=3, change=best_first)
    assert error > 5e-3


def texts(shape, proposals, draft=DRAFT, target=TARGET, *, change=None):
    """Counts of two tokens, written in as many rounds as it takes."""
    return Counter(
        written(shape, draft, target, text_of(proposals, 1.0, seed), budget=4, length=2, change=change)
        for seed in range(NUM_TEXTS)
    )


@pytest.mark.parametrize("proposals", ["distinct", "independent"])
def test_stochastic_beams_leave_the_law_as_it_is(proposals):
    found = texts(RsdBeams(2, 2), proposals)
    assert misfit(found, TARGET.texts([0], 2)) < 1


def test_stochastic_beams_of_another_vocabulary_short_of_room():
    draft, target = Table(4, 21, spread=1.0), Table(4, 22, spread=0.5)
    assert misfit(texts(RsdBeams(3, 2), "distinct", draft, target), target.texts([0], 2)) < 1


@pytest.mark.parametrize("change", [without_the_unlikely, sorted_by_score, with_the_laws_of_the_first])
def test_this_must_fail_stochastic_beams_changed_for_what_was_drawn(change):
    found = texts(RsdBeams(3, 1), "distinct", change=change)
    assert misfit(found, TARGET.texts([0], 2)) > 1


@pytest.mark.parametrize("shape", [SpecTr(2, 2), DySpec()])
def test_round_after_round_with_noise_of_a_real_sampler(shape):
    """Enumeration sees one round; noise that rounds share would show here."""
    found = texts(shape, "independent")
    assert misfit(found, TARGET.texts([0], 2)) < 1
