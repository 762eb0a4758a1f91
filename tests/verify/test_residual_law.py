"""`residual` keeps the law of plain sampling, exactly, whatever was drafted."""

from __future__ import annotations

import importlib
import itertools
from collections import Counter

import numpy as np
import pytest
from forks import ForkedSampler, Forks, Language, distance, sequence_of, written
from hypothesis import given, settings, strategies as st

from adversaries import trees
from hasten.drafters.base import Observation
from hasten.drafters.itself.jacobi import Jacobi
from hasten.laws import draw
from hasten.tree import DraftTree
from hasten.verify import residual

MODULE = importlib.import_module("hasten.verify.residual")


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()

    def choose(law, generator):
        return forks.choose((law / law.sum()).tolist())

    monkeypatch.setattr(MODULE, "draw", choose)
    monkeypatch.setattr("hasten.drafters.itself.jacobi.draw", choose)
    return forks


def with_jacobi(language, forks, window, length, change=None):
    """A run drafted by the window with its laws; ``change`` spoils its trees."""

    def run():
        sequence = sequence_of(ForkedSampler(forks))
        drafter = Jacobi(window=window)
        drafter.begin(sequence, None)

        def propose():
            tree = drafter.propose(sequence, window)
            return tree if change is None else change(tree)

        def observe(tree, acceptance, logits):
            drafter.observe(sequence, Observation(tree, acceptance, None, logits))

        return written(language, sequence, propose, observe, length)

    return run


@pytest.mark.parametrize(
    ("vocab_size", "window", "length", "seed"), [(5, 1, 2, 0), (3, 1, 3, 0), (3, 2, 3, 0), (3, 2, 3, 1)]
)
def test_texts_drafted_by_a_carried_window_have_the_law_of_plain_sampling(
    forks, vocab_size, window, length, seed
):
    language = Language(vocab_size, seed)
    found = forks.law_of(with_jacobi(language, forks, window, length))
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert distance(found, language.texts([0], length)) < 1e-12


def laws(vocab_size, count):
    return st.lists(
        st.lists(st.floats(0.01, 1), min_size=vocab_size, max_size=vocab_size), min_size=count, max_size=count
    ).map(lambda rows: np.array([np.array(row) / sum(row) for row in rows]))


@settings(max_examples=25)
@given(vocab_size=st.integers(3, 5), num_drawn=st.integers(0, 3), chosen=st.integers(0, 2), data=st.data())
def test_siblings_drawn_and_chosen_leave_the_law_as_it_is(vocab_size, num_drawn, chosen, data):
    """Drawn ones without replacement, each with its law given those before it; chosen ones after them."""
    forks, language = Forks(), Language(vocab_size, seed=vocab_size)
    draft_law = data.draw(laws(vocab_size, 1))[0]

    def run():
        token_ids, rows, left = [], [], draft_law.copy()
        for _ in range(num_drawn):
            left = left / left.sum()
            token_ids.append(forks.choose(left.tolist()))
            rows.append(left.copy())
            left[token_ids[-1]] = 0
        others = [token for token in range(vocab_size) if token not in token_ids]
        for token in others[:chosen]:
            token_ids.append(token)
            rows.append(np.eye(vocab_size)[token])
        probs = np.array(rows) if rows else None
        tree = DraftTree(token_ids, [-1] * len(token_ids), draft_probs=probs)
        sequence = sequence_of(ForkedSampler(forks))
        return residual(tree, language.rows([0], tree), sequence).token_ids[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "draw", lambda law, _: forks.choose((law / law.sum()).tolist()))
        found = forks.law_of(run)
    assert distance(found, dict(enumerate(language.law([0])))) < 1e-12


def test_a_token_drawn_from_the_target_itself_is_always_accepted(forks):
    language = Language(4, seed=2)

    def run():
        law = language.law([0])
        tree = DraftTree.chain([forks.choose(law.tolist())])
        tree.draft_probs = law[None]
        return len(residual(tree, language.rows([0], tree), sequence_of(ForkedSampler(forks))).path)

    assert forks.law_of(run)[1] == pytest.approx(1)


@settings(max_examples=20)
@given(drafts=st.lists(trees(max_nodes=5, vocab=3), min_size=1, max_size=2))
def test_any_trees_without_laws_leave_the_law_as_it_is(drafts):
    forks, language = Forks(), Language(3, seed=5)

    def run():
        sequence, cycle = sequence_of(ForkedSampler(forks)), itertools.cycle(drafts)

        def propose():
            return next(cycle).sanitised(3, 3)

        return written(language, sequence, propose, lambda *_: None, 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "draw", lambda law, _: forks.choose((law / law.sum()).tolist()))
        found = forks.law_of(run)
    assert distance(found, language.texts([0], 3)) < 1e-12


def test_this_must_fail_a_law_used_for_another_token(forks):
    def change(tree):
        if tree.draft_probs is None:
            return tree
        return DraftTree((tree.token_ids + 1) % 3, tree.parents, tree.scores, draft_probs=tree.draft_probs)

    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3, change))
    assert distance(found, language.texts([0], 3)) > 1e-3


def test_this_must_fail_a_tree_that_is_cut_by_the_token_drawn(forks):
    def change(tree):
        return tree if len(tree) and tree.token_ids[0] == 0 else DraftTree()

    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3, change))
    assert distance(found, language.texts([0], 3)) > 1e-3


def test_this_must_fail_the_rest_warped_again(forks, monkeypatch):
    def warped(law, generator):
        return forks.choose((law**2 / (law**2).sum()).tolist())

    monkeypatch.setattr(MODULE, "draw", warped)
    language = Language(3, 0)
    found = forks.law_of(with_jacobi(language, forks, 2, 3))
    assert distance(found, language.texts([0], 3)) > 1e-3


def accepted_law(language, draft_law, num_points, is_coupled):
    """The law of a token whose draft is drawn with one number and judged with the same, or with another."""
    law = Counter()
    points = (np.arange(num_points) + 0.5) / num_points
    target = language.law([0])
    for first, second in itertools.product(points, points):
        drawn = draw(draft_law, _Given(first))
        if (first if is_coupled else second) * draft_law[drawn] < target[drawn]:
            law[drawn] += 1 / num_points**2
        else:
            rest = np.maximum(target - draft_law, 0)
            for token, chance in enumerate(rest / rest.sum()):
                law[token] += chance / num_points**2
    return dict(law)


class _Given:
    def __init__(self, *numbers):
        self._numbers = list(numbers)

    def random(self):
        return self._numbers.pop(0)


def test_this_must_fail_a_draft_judged_with_the_noise_it_was_drawn_with():
    language, draft_law = Language(3, 0), np.array([0.2, 0.2, 0.6])
    expected = dict(enumerate(language.law([0])))
    assert distance(accepted_law(language, draft_law, 200, is_coupled=False), expected) < 5e-3
    assert distance(accepted_law(language, draft_law, 200, is_coupled=True), expected) > 5e-2


def test_draws_have_the_law_and_never_what_cannot_be():
    law = np.array([0, 0.25, 0, 0.5, 0.25, 0])
    counts = Counter(draw(law, _Given((at + 0.5) / 64)) for at in range(64))
    assert counts == {1: 16, 3: 32, 4: 16}
    for number in (0.0, 1 - 2**-53):
        for scale in (1.0, 1 / 3, 1 + 1e-10, 1e-300):
            assert law[draw(law * scale, _Given(number))] > 0
