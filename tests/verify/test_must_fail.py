"""Published biases, each put in on purpose: were one not found, the tests of the laws would be blind."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from forks import Forks, distance, sequence_of
from sampled_trees import Laws, completed, grown, one_hot, one_round, patch_draw, rule_of

from hasten import laws
from hasten.tree import DraftTree

WEIGHING = ["residual", "k-sequential", "block", "traversal"]


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()
    patch_draw(monkeypatch, forks)
    return forks


def bias(forks, name, change, *, seed, kind="distinct", branching=(2, 1)):
    """How far the law is off where ``change`` spoils the trees."""
    target, draft = Laws(3, 2 * seed), Laws(3, 2 * seed + 1)

    def propose():
        return change(grown(draft, (0,), kind, branching, forks.choose), draft)

    law, _ = one_round(forks, rule_of(name), target, propose)
    length = len(branching) + 1
    return distance(completed(law, target, (0,), length), target.texts([0], length))


def most_biased(forks, name, change, **tree):
    return max(bias(forks, name, change, seed=seed, **tree) for seed in range(4))


def whole_law(tree, draft):
    """Siblings drawn without replacement, as if each had been drawn from the law of the first."""
    probs = [draft.law([0, *tree.token_ids[tree.path_to(node)[:-1]].tolist()]) for node in range(len(tree))]
    return DraftTree(tree.token_ids, tree.parents, draft_probs=np.array(probs))


def sorted_siblings(tree, draft):
    """Likeliest first instead of first drawn, each with a law as if drawn in that order."""
    at_root = tree.drawn_below(-1)
    law = draft.law([0])
    order = sorted(at_root, key=lambda node: -law[tree.token_ids[node]])
    probs, left = tree.draft_probs.copy(), law.copy()
    for node in order:
        probs[node] = left / left.sum()
        left[tree.token_ids[node]] = 0
    others = [node for node in range(len(tree)) if node not in at_root]
    return DraftTree(tree.token_ids, tree.parents, draft_probs=probs, draws=np.array([*order, *others]))


def unlikely_dropped(tree, draft):
    """A drawn token is left out because it is unlikely."""
    probs = tree.draft_probs[np.arange(len(tree)), tree.token_ids]
    size = next((node for node in range(len(tree)) if probs[node] < 0.3), len(tree))
    return tree.head(size)


def likely_chosen_as_drawn(tree, draft):
    """The best children, as if they had been drawn without replacement."""
    law = draft.law([0])
    best = np.argsort(-law)[:2]
    second = law.copy()
    second[best[0]] = 0
    return DraftTree(best, [-1, -1], draft_probs=np.array([law, second / second.sum()]))


def likely_chosen_as_drawn_again(tree, draft):
    """The best child, as if all draws had given it."""
    law = draft.law([0])
    return DraftTree([int(np.argmax(law))], [-1], draft_probs=law[None], draws=np.array([0, 0]))


def repeats_once(tree, draft):
    """Independent draws of which only different ones are counted."""
    return DraftTree(tree.token_ids, tree.parents, draft_probs=tree.draft_probs)


@pytest.mark.parametrize("name", ["residual", "traversal", "k-sequential"])
@pytest.mark.parametrize("change", [whole_law, sorted_siblings])
def test_this_must_fail_siblings_with_laws_that_are_not_theirs(forks, name, change):
    assert most_biased(forks, name, change) > 1e-3


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("kind", ["distinct", "iid"])
def test_this_must_fail_a_draw_left_out_for_its_value(forks, name, kind):
    assert most_biased(forks, name, unlikely_dropped, kind=kind, branching=(1, 1)) > 1e-3


@pytest.mark.parametrize("name", WEIGHING)
def test_this_must_fail_chosen_tokens_as_if_drawn(forks, name):
    change = likely_chosen_as_drawn_again if name == "k-sequential" else likely_chosen_as_drawn
    assert most_biased(forks, name, change) > 1e-3


def test_this_must_fail_repeats_counted_once(forks):
    assert most_biased(forks, "k-sequential", repeats_once, kind="iid", branching=(3,)) > 1e-3


@pytest.mark.parametrize("name", ["naive", "point-mass"])
@pytest.mark.parametrize("change", [whole_law, sorted_siblings, unlikely_dropped, likely_chosen_as_drawn])
def test_rules_that_ask_for_no_law_bear_all_of_it(forks, name, change):
    assert most_biased(forks, name, change) < 1e-12


@pytest.mark.parametrize("name", WEIGHING)
def test_this_must_fail_recovering_from_another_law(forks, name, monkeypatch):
    """What is left of the target's law, sharpened once more."""
    patch_draw(monkeypatch, forks, lambda law: law**2)
    assert most_biased(forks, name, lambda tree, draft: tree, kind="iid") > 1e-3


@pytest.mark.parametrize("name", ["block", "traversal"])
def test_this_must_fail_the_rest_of_a_token_rule_after_a_block(forks, name, monkeypatch):
    """norm(max(0, p - q)) instead of norm(max(0, a p - q)): a bug found in serving engines."""

    def left_over(law, weight, draft):
        _, kept = laws.left_over(law, weight, draft)
        return laws.left_over(law, 1.0, draft)[0], kept

    monkeypatch.setattr(importlib.import_module(f"hasten.verify.{name}"), "left_over", left_over)
    assert most_biased(forks, name, lambda tree, draft: tree, kind="iid", branching=(1, 1)) > 1e-3


@pytest.mark.parametrize("name", ["block", "traversal"])
def test_this_must_fail_stopping_where_a_prefix_is_rejected(forks, name, monkeypatch):
    """The weight after a rejection taken as 0: shorter prefixes are never tried again."""

    def left_over(law, weight, draft):
        rest, kept = laws.left_over(law, weight, draft)
        return rest, kept if weight == 1.0 else 0.0

    monkeypatch.setattr(importlib.import_module(f"hasten.verify.{name}"), "left_over", left_over)
    assert most_biased(forks, name, lambda tree, draft: tree, kind="iid", branching=(1, 1)) > 1e-3


def test_this_must_fail_typical_acceptance(forks):
    assert most_biased(forks, "typical", lambda tree, draft: tree, kind="chosen") > 1e-2


class GivenSampler:
    """Laws by row of the logits, and given random numbers."""

    is_greedy = False

    def __init__(self, laws, numbers):
        self._laws, self._numbers = np.array(laws), iter(numbers)

    def draws(self, logits): ...

    def guess(self, logits, position): ...

    def noisy(self, logits, position): ...

    def law(self, logits, token_ids=None):
        return self._laws[logits]

    def generator(self, position, stream):
        return self

    def random(self):
        return next(self._numbers)

    def fork(self):
        return self


def test_the_longest_kept_prefix_is_written_though_a_shorter_one_was_rejected():
    """Of the first token, p = 0.1 and q = 0.9; of the second, p = 0.9 and q = 0.1: the path's weight is 1."""
    laws = [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]
    tree = DraftTree.chain([0, 0])
    tree.draft_probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    for name, path in (("block", [0, 1]), ("traversal", [0, 1]), ("residual", [])):
        sequence = sequence_of(GivenSampler(laws, [0.9, 0.0]))
        assert rule_of(name)(tree, [0, 1, 2], sequence).path == path


@pytest.mark.parametrize("name", WEIGHING)
def test_equal_laws_whose_rounding_rejects_still_write_a_token(name):
    """A ratio of 1 - 2**-49 where both laws are the same but for rounding, and the largest uniform number."""
    almost = [0.5 - 2.0**-50, 0.5]
    tree = DraftTree.chain([0])
    tree.draft_probs = np.array([[0.5, 0.5]])
    sequence = sequence_of(GivenSampler([almost, almost], [1 - 2.0**-53] * 9))
    token_ids = rule_of(name)(tree, [0, 1], sequence).token_ids
    assert token_ids
    assert {*token_ids} <= {0, 1}


def test_one_hot_laws_are_what_chosen_tokens_count_as(forks):
    def change(tree, draft):
        probs = np.array([one_hot(token, 3) for token in tree.token_ids])
        return DraftTree(tree.token_ids, tree.parents, draft_probs=probs, draws=tree.draws)

    for name in WEIGHING:
        assert most_biased(forks, name, change, kind="iid") < 1e-12
