"""DySpec: the most valuable slots, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from grown import Grown, Table, path_of, text_of

from hasten.drafters.trees import DySpec, DySpecThreshold
from hasten.errors import ConfigError
from hasten.tree import ROOT

DRAFT = Table(3, 4)


@pytest.fixture
def drawn(monkeypatch):
    """Draws that depend on the law alone, so that every tree has the same tokens in the same slots."""

    def draw(law, generator):
        [token_id] = np.random.default_rng(int(1e6 * law.max())).choice(len(law), 1, p=law / law.sum())
        return int(token_id)

    monkeypatch.setattr("hasten.drafters.trees.siblings.draw", draw)
    return lambda law: draw(law.astype(np.float32).astype(np.float64), None)


def slots_below(path, score, drawn, draft):
    """(value, path of the child) of all slots of a node, in their order."""
    law, found = draft.law([0, *path]), []
    left = law.copy()
    while left.sum() > 1e-9:
        token = drawn(left / left.sum())
        found.append((score * left.sum(), (*path, token), score * law[token]))
        left[token] = 0
    return found


def best_value(size, drawn, draft):
    """The largest sum of values of so many slots, each with all that must be filled before it."""

    def best(size, open_slots):
        if not size or not open_slots:
            return 0.0
        (slot, *others), *rest = open_slots
        value, path, score = slot
        below = slots_below(path, score, drawn, draft)
        filled = value + best(size - 1, [each for each in (others, below, *rest) if each])
        return max(filled, best(size, rest))

    return best(size, [slots_below((), 1.0, drawn, draft)])


def values(grown, draft):
    """Of the slots that were filled, in the order they were."""
    taken = {}
    for node in range(len(grown.tree)):
        parent = int(grown.tree.parents[node])
        law = draft.law([0, *path_of(grown.growing, parent)])
        score = 1.0 if parent == ROOT else float(grown.growing.scores[parent])
        left = law.copy()
        left[taken.get(parent, [])] = 0
        taken.setdefault(parent, []).append(int(grown.tree.token_ids[node]))
        yield score * left.sum()


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("seed", range(3))
def test_the_slots_are_worth_the_most_of_all_that_many(size, seed, drawn):
    draft = Table(3, seed)
    grown = Grown(DySpec(), text_of("distinct"), draft, size)
    found = list(values(grown, draft))
    assert len(found) == size
    assert sum(found) == pytest.approx(best_value(size, drawn, draft), rel=1e-5)


@pytest.mark.parametrize("proposals", ["distinct", "independent"])
def test_slots_are_filled_from_the_most_valuable_down(proposals):
    for seed in range(30):
        found = list(values(Grown(DySpec(), text_of(proposals, seed=seed), DRAFT, 12), DRAFT))
        assert all(after <= before + 1e-6 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_sampling_the_tree_holds_the_likeliest_paths(temperature):
    for seed, size in itertools.product(range(4), (1, 3, 6)):
        draft = Table(3, seed)
        grown = Grown(DySpec(), text_of("chosen", temperature), draft, size)
        every = {path: chance for length in range(1, 7) for path, chance in draft.texts([0], length).items()}
        best = sorted(every, key=lambda path: -every[path])[:size]
        assert grown.paths() == best


def test_a_node_is_read_only_for_a_child_it_gets():
    for seed in range(20):
        for proposals in ("coupled", "distinct"):
            grown = Grown(DySpec(), text_of(proposals, seed=seed), Table(6, 1), 10)
            assert all(len(nodes) == 1 for nodes in grown.passes)
            if proposals == "distinct":
                assert all(grown.children(node) for [node] in grown.passes)


def test_nodes_worth_less_than_a_pass_are_not_read():
    draft, sequence = Table(4, 1, spread=0.7), text_of("distinct")
    free, dear = (Grown(DySpec(), sequence, draft, 10, token_price=each) for each in (0, 0.3))
    assert all(dear.growing.score(node) >= 0.3 for [node] in dear.passes)
    assert len(dear.passes) < len(free.passes)
    assert not Grown(DySpecThreshold(0.01), sequence, draft, 10, token_price=1.1).passes
    assert Grown(DySpecThreshold(0.01), sequence, draft, 10, token_price=0.5).passes


@pytest.mark.parametrize("proposals", ["distinct", "chosen"])
@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
def test_all_slots_above_the_threshold_are_filled(proposals, threshold, drawn):
    grown = Grown(DySpecThreshold(threshold), text_of(proposals), DRAFT, 999)
    expected, level = set(), [((), 1.0)]
    while level:
        found = [slot for path, score in level for slot in slots_of(proposals, path, score, drawn)]
        chosen = [(path, score) for value, path, score in found if value > threshold]
        expected |= {path for path, _ in chosen}
        level = [(path, score) for path, score in chosen if score > threshold]
    assert {*grown.paths()} == expected
    read = {path_of(grown.growing, node) for nodes in grown.passes for node in nodes}
    assert read == {path for path in expected if grown.growing.score(grown.paths().index(path)) > threshold}
    assert len(grown.passes) == max(map(len, read))


def slots_of(proposals, path, score, drawn):
    if proposals == "distinct":
        return slots_below(path, score, drawn, DRAFT)
    law = DRAFT.law([0, *path])
    return [(score * chance, (*path, token), score * chance) for token, chance in enumerate(law)]


def test_where_room_is_short_the_most_valuable_slots_of_a_level_are_filled():
    grown = Grown(DySpecThreshold(0.0), text_of("chosen"), Table(9, 1), 13)
    assert {len(path) for path in grown.paths()} == {1, 2}
    read = {path_of(grown.growing, node) for nodes in grown.passes for node in nodes}
    assert read == {path for path, _ in sorted_texts(Table(9, 1), 1)[:4]}
    second = [chance for path, chance in sorted_texts(Table(9, 1), 2) if path[:1] in read][:4]
    found = [grown.growing.score(node) for node, path in enumerate(grown.paths()) if len(path) == 2]
    assert found == pytest.approx(second, rel=1e-4)


def sorted_texts(draft, length):
    return sorted(draft.texts([0], length).items(), key=lambda item: -item[1])


def test_a_sure_draft_gives_a_chain():
    draft = Table(4, 0, spread=200.0)
    for shape in (DySpec(), DySpecThreshold()):
        for proposals in ("coupled", "chosen", "distinct", "independent"):
            grown = Grown(shape, text_of(proposals), draft, 6)
            assert [len(path) for path in grown.paths()] == [1, 2, 3, 4, 5, 6]


def test_the_threshold_follows_from_the_budget():
    sizes = [
        len(Grown(DySpecThreshold(), text_of("distinct"), Table(9, 1), each).tree) for each in (4, 12, 30)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_that_cannot_work_are_refused(threshold):
    with pytest.raises(ConfigError, match="below 1"):
        DySpecThreshold(threshold)
