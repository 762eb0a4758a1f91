"""Every exact rule has the law of plain sampling to the last digit: all draws and decisions enumerated."""

from __future__ import annotations

import numpy as np
import pytest
from forks import Forks, distance
from sampled_trees import EXACT, Laws, completed, grown, one_round, patch_draw, rule_of

SHAPES = [
    (3, "iid", (1, 1, 1)),
    (3, "mixed", (1, 1, 1)),
    (2, "distinct", (1, 1, 1, 1)),
    (3, "chosen", (2, 2)),
    (3, "mixed", (3, 1)),
    (3, "distinct", (2, 2)),
    (3, "distinct", (3, 1)),
    (3, "iid", (2, 2)),
    (3, "iid", (3, 1)),
    (4, "distinct", (2, 1)),
    (4, "mixed", (2, 1)),
    (5, "iid", (2,)),
    (5, "distinct", (3,)),
]


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()
    patch_draw(monkeypatch, forks)
    return forks


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("vocab_size", "kind", "branching"), SHAPES)
def test_the_joint_law_is_that_of_plain_sampling(forks, name, vocab_size, kind, branching):
    target, draft = Laws(vocab_size, seed=1), Laws(vocab_size, seed=2)
    length = len(branching) + 1
    law, _ = one_round(
        forks, rule_of(name), target, lambda: grown(draft, (0,), kind, branching, forks.choose)
    )
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert distance(completed(law, target, (0,), length), target.texts([0], length)) < 1e-12


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["iid", "distinct"])
def test_a_tree_that_grows_where_its_draws_lead_leaves_the_law_as_it_is(forks, name, kind):
    """What is drawn next, and where, may depend on all draws before, also on those of other branches."""
    target, draft = Laws(3, seed=3), Laws(3, seed=4)

    def propose():
        tree = grown(draft, (0,), kind, (2,), forks.choose)
        first, last = int(tree.token_ids[0]), int(tree.token_ids[-1])
        if last == 1:
            return tree
        return _with_child_below_the_first(tree, draft, first, forks, count=1 + (last == 2))

    law, _ = one_round(forks, rule_of(name), target, propose)
    assert distance(completed(law, target, (0,), 3), target.texts([0], 3)) < 1e-12


def _with_child_below_the_first(tree, draft, first, forks, count):
    below = grown(draft, (0, first), "iid", (count,), forks.choose)
    tokens = [*tree.token_ids, *below.token_ids]
    parents = [*tree.parents, *[0] * len(below)]
    laws = np.concatenate((tree.draft_probs, below.draft_probs))
    draws = np.concatenate((tree.draws, below.draws + len(tree)))
    return type(tree)(tokens, parents, draft_probs=laws, draws=draws)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["iid", "distinct"])
def test_disjoint_laws_accept_nothing_and_leave_the_law_as_it_is(forks, name, kind):
    target = Laws(4, 0, lambda at: np.array([0.3, 0.7, 0.0, 0.0]))
    draft = Laws(4, 0, lambda at: np.array([0.0, 0.0, 0.6, 0.4]))
    law, accepted = one_round(
        forks, rule_of(name), target, lambda: grown(draft, (0,), kind, (2, 2), forks.choose)
    )
    assert accepted == 0
    assert distance(law, {(0,): 0.3, (1,): 0.7}) < 1e-12


@pytest.mark.parametrize("name", ["residual", "k-sequential", "block", "traversal"])
@pytest.mark.parametrize(("kind", "branching"), [("iid", (1, 1, 1)), ("iid", (2, 1)), ("distinct", (2, 2))])
def test_a_draft_that_is_the_target_is_accepted_whole(forks, name, kind, branching):
    target = Laws(3, seed=5)
    _, accepted = one_round(
        forks, rule_of(name), target, lambda: grown(target, (0,), kind, branching, forks.choose)
    )
    assert accepted == pytest.approx(len(branching), abs=1e-12)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["iid", "distinct", "mixed", "chosen"])
def test_a_target_that_is_sure_of_a_token_gets_it(forks, name, kind):
    """The law of greedy decoding; a draft that is sure too, of the same or of another."""
    draft = Laws(3, seed=6)
    sure = Laws(3, 0, lambda at: np.eye(3)[at % 3])
    for token in range(3):
        target = Laws(3, 0, lambda at, token=token: np.eye(3)[(token + at) % 3])
        for laws, branching in ((draft, (2, 1)), (sure, (1, 1))):

            def propose(laws=laws, branching=branching):
                return grown(laws, (0,), kind, branching, forks.choose)

            law, _ = one_round(forks, rule_of(name), target, propose)
            for written in law:
                assert written == tuple((token + 1 + at) % 3 for at in range(len(written)))
