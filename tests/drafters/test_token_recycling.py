"""Token Recycling keeps the target's best tokens and drafts the most probable paths through them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from proposals import candidates, check_tree, gains, paths, sequence_of, step

from hasten.core import Acceptance
from hasten.drafters.base import Observation
from hasten.drafters.tables import token_recycling
from hasten.drafters.tables.token_recycling import TokenRecycling, template_nodes
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

VOCAB = 40


def markov(text: list[int]) -> tuple[list[int], list[float]]:
    """A target that looks at the last token only; the best next tokens are scattered, the rest follow."""
    best = (text[-1] * 7 + 3) % VOCAB
    return [(best + rank) % VOCAB for rank in range(8)], [0.5 / 2**rank for rank in range(8)]


def full_table(vocab_size: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    token_ids = np.argsort(random.random((vocab_size, vocab_size)), axis=1)[:, :width].astype(np.int32)
    probs = -np.sort(-random.random((vocab_size, width)), axis=1)
    return {"token_ids": token_ids, "probs": probs.astype(np.float32)}


def test_every_node_teaches_its_best_tokens() -> None:
    drafter = TokenRecycling(VOCAB)
    sequence = sequence_of([1, 2, 3])
    root = sequence.token_ids[-1]
    for _ in range(3):
        tree, acceptance = step(drafter, sequence, markov, budget=20)
        table, probs = drafter.state()["token_ids"], drafter.state()["probs"]
        for token in [root, *tree.token_ids.tolist()]:
            assert table[token].tolist() == markov([token])[0]
            np.testing.assert_allclose(probs[token], markov([token])[1])
        root = acceptance.token_ids[-1]


def test_among_equal_tokens_the_shallowest_then_the_first_wins() -> None:
    drafter = TokenRecycling(VOCAB, width=1)
    sequence = sequence_of([5, 9])
    # Tokens 6 and 7 stand twice at different depths, 8 at the same; node 4 carries the root's own token.
    tree = DraftTree([4, 6, 7, 6, 5, 7, 8, 8], [-1, 0, 0, -1, -1, 1, 0, 3])
    rows = [([row], [0.5]) for row in range(30, 39)]
    drafter.observe(sequence, Observation(tree, Acceptance([], [9]), candidates(rows)))
    table = drafter.state()["token_ids"][:, 0]
    assert table[[5, 4, 6, 7, 8]].tolist() == [30, 31, 34, 33, 37]
    assert (table == -1).sum() == VOCAB - 5


def test_the_prompt_teaches_and_its_last_occurrence_wins() -> None:
    drafter = TokenRecycling(VOCAB, width=2)
    rows = [([10, 11], [0.6, 0.4]), ([12, 13], [0.7, 0.2]), ([14, 15], [0.9, 0.1])]
    drafter.begin(sequence_of([3, 4, 3, 4]), candidates(rows))
    table = drafter.state()["token_ids"]
    assert table[3].tolist() == [14, 15]
    assert table[4].tolist() == [12, 13]
    assert paths(drafter.propose(sequence_of([4]), 10)) == {(12,), (13,)}


def test_an_empty_table_drafts_nothing() -> None:
    for template in (False, True):
        assert len(TokenRecycling(VOCAB, template=template).propose(sequence_of([1]), 64)) == 0


def test_fewer_candidates_than_the_width_leave_empty_cells() -> None:
    drafter = TokenRecycling(VOCAB)
    rows = [([10, 11, 12], [0.6, 0.4, 0.0])]
    drafter.observe(sequence_of([3, 10]), Observation(DraftTree(), Acceptance([], [10]), candidates(rows)))
    assert drafter.state()["token_ids"][3].tolist() == [10, 11] + [-1] * 6
    assert paths(drafter.propose(sequence_of([3]), 64)) == {(10,), (11,)}


@pytest.mark.parametrize("budget", [1, 7, 30, 200])
def test_the_budgeted_tree_holds_the_most_probable_paths(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_recycling, "MAX_DEPTH", 3)
    state = full_table(vocab_size=9, width=4)
    drafter = TokenRecycling(9, width=4)
    drafter.restore(state)
    tree = drafter.propose(sequence_of([2]), budget)
    check_tree(tree, budget)
    expected = []
    for depth in (1, 2, 3):
        for ranks in itertools.product(range(4), repeat=depth):
            token, path_prob, path = 2, 1.0, []
            for rank in ranks:
                path_prob *= float(state["probs"][token, rank])
                token = int(state["token_ids"][token, rank])
                path.append(token)
            expected.append((path_prob, tuple(path)))
    expected.sort(reverse=True)
    expected = expected[:budget]
    assert len(tree) == len(expected)
    assert paths(tree) == {path for _, path in expected}
    np.testing.assert_allclose(tree.scores, [prob for prob, _ in expected], rtol=1e-5)


TEMPLATE = """
0 1 2 3 4 5 6 7
00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70
000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500
0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000
00000 00001 00002 00010 00020 00100 01000 10000
000000 000001 000100
"""
"""The published nodes as paths of ranks, breadth-first."""


def test_the_template_has_the_papers_nodes() -> None:
    parents, ranks = template_nodes()
    tree = DraftTree(ranks, parents)
    paths_of_ranks = ["".join(map(str, ranks[tree.path_to(node)])) for node in range(len(tree))]
    assert paths_of_ranks == TEMPLATE.split()


def test_the_template_is_filled_from_the_table() -> None:
    state = full_table(VOCAB, 8)
    drafter = TokenRecycling(VOCAB, template=True)
    drafter.restore(state)
    tree = drafter.propose(sequence_of([7]), 100)
    check_tree(tree, 80)
    parents, ranks = template_nodes()
    assert tree.parents.tolist() == parents.tolist()
    for node in range(80):
        above = 7 if parents[node] < 0 else int(tree.token_ids[parents[node]])
        assert tree.token_ids[node] == state["token_ids"][above, ranks[node]]
    cut = drafter.propose(sequence_of([7]), 30)
    check_tree(cut, 30)
    assert cut.token_ids.tolist() == tree.token_ids[:30].tolist()
    assert cut.scores.tolist() == tree.scores[:30].tolist()


def test_the_template_prunes_below_empty_cells() -> None:
    state = full_table(VOCAB, 8)
    best = int(state["token_ids"][7, 0])
    state["token_ids"][best] = -1
    drafter = TokenRecycling(VOCAB, template=True)
    drafter.restore(state)
    tree = drafter.propose(sequence_of([7]), 80)
    check_tree(tree, 80)
    assert {path[0] for path in paths(tree) if len(path) == 1} == set(state["token_ids"][7].tolist())
    assert not any(best in path[:-1] for path in paths(tree))


@pytest.mark.parametrize(("template", "depth"), [(False, 8), (True, 6)])
def test_a_markov_target_is_drafted_to_full_depth_on_the_second_visit(template: bool, depth: int) -> None:
    def sure(text: list[int]) -> tuple[list[int], list[float]]:
        return markov(text)[0], [0.9] + [0.01] * 7

    drafter = TokenRecycling(VOCAB, template=template)
    sequence = sequence_of([1])
    while len(set(sequence.token_ids)) == len(sequence.token_ids):
        step(drafter, sequence, sure, budget=80)
    gained = gains(drafter, sequence, sure, budget=80, num_steps=8)
    assert set(gained[1:]) == {depth + 1}


def test_the_same_history_gives_the_same_drafts() -> None:
    trees = []
    for _ in range(2):
        drafter = TokenRecycling(VOCAB)
        sequence = sequence_of([1, 2])
        trees.append([step(drafter, sequence, markov, budget=24)[0] for _ in range(6)])
    for one, other in zip(*trees, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.parents.tolist() == other.parents.tolist()


def test_a_saved_table_drafts_the_same() -> None:
    drafter = TokenRecycling(VOCAB)
    sequence = sequence_of([1, 2])
    gains(drafter, sequence, markov, budget=16, num_steps=5)
    saved = drafter.state()
    before = drafter.propose(sequence, 32)
    other = TokenRecycling(VOCAB)
    other.restore(saved)
    after = other.propose(sequence, 32)
    assert after.token_ids.tolist() == before.token_ids.tolist()
    assert after.scores.tolist() == before.scores.tolist()
    kept = saved["token_ids"].copy()
    gains(other, sequence_of([9]), lambda text: ([0, 1], [0.5, 0.5]), budget=16, num_steps=1)
    np.testing.assert_array_equal(saved["token_ids"], kept)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("probs"), r"needs \['probs', 'token_ids'\]"),
        (lambda state: state.update(more=np.zeros(1)), r"needs \['probs', 'token_ids'\]"),
        (lambda state: state.update(probs=state["probs"][:-1]), "probs must be float32"),
        (lambda state: state.update(probs=state["probs"].astype(np.float64)), "probs must be float32"),
        (lambda state: state["token_ids"].__setitem__((0, 0), VOCAB), "between -1 and 39"),
        (lambda state: state["token_ids"].__setitem__((0, 0), -2), "between -1 and 39"),
        (lambda state: state["token_ids"].__setitem__((0, slice(None)), 3), "twice in one row"),
        (lambda state: state["probs"].__setitem__((0, 0), np.nan), "between 0 and 1"),
        (lambda state: state["probs"].__setitem__((0, 0), 1.5), "between 0 and 1"),
    ],
)
def test_a_damaged_table_is_refused(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    drafter = TokenRecycling(VOCAB)
    state = full_table(VOCAB, 8)
    damage(state)
    with pytest.raises(StoreError, match=message):
        drafter.restore(state)
    assert (drafter.state()["token_ids"] == -1).all()


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size=0"):
        TokenRecycling(0)
    with pytest.raises(ConfigError, match="width=4"):
        TokenRecycling(VOCAB, width=4, template=True)
