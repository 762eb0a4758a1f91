"""ADED's trigram table follows the text, and its search drafts what the table holds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from proposals import candidates, check_tree, gains, paths, periodic, sequence_of

from hasten.core import Acceptance, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.tables.aded import Aded
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree


def row(drafter: Aded, before: int, token: int) -> dict[int, tuple[float, float]]:
    """What the table holds after two tokens: successor -> (raised value, probability)."""
    state = drafter.state()
    found = np.flatnonzero(state["heads"][:, 0] == before * 2**32 + token)
    assert len(found) <= 1
    return {
        int(successor): (float(value), float(prob))
        for at in found
        for successor, (value, prob) in zip(state["successors"][at], state["values"][at], strict=True)
        if successor >= 0
    }


def commit(drafter: Aded, sequence_tokens: list[int], num_new: int) -> None:
    acceptance = Acceptance([], sequence_tokens[-num_new:])
    drafter.observe(sequence_of(sequence_tokens), Observation(DraftTree(), acceptance))


def test_values_rise_with_every_step_up_to_the_cap() -> None:
    drafter = Aded()
    text = [5, 1, 2, 3, 1, 2, 3, 1, 2, 4]
    for num_steps in range(1, 101):
        commit(drafter, text, 1)
        value = row(drafter, 1, 2)
        assert value[3][0] == pytest.approx(min(3.0, 0.04 * num_steps * 2), rel=1e-4)
        assert value[4][0] == pytest.approx(min(3.0, 0.04 * num_steps), rel=1e-4)
    assert row(drafter, 2, 3).keys() == {1}
    assert row(drafter, 9, 9) == {}


def test_only_the_window_rises_unless_a_step_gained_more() -> None:
    text = list(range(100, 140))
    drafter = Aded()
    commit(drafter, text, 3)
    assert row(drafter, 124, 125).keys() == {126}
    assert row(drafter, 123, 124) == {}
    drafter = Aded()
    commit(drafter, text, 30)
    assert row(drafter, 108, 109).keys() == {110}
    assert row(drafter, 107, 108) == {}


@pytest.mark.parametrize("feed_candidates", [False, True])
def test_a_repeating_target_is_drafted_to_full_depth(feed_candidates: bool) -> None:
    drafter = Aded(feed_candidates=feed_candidates)
    sequence = sequence_of([0])
    drafter.begin(sequence, None)
    while len(sequence.token_ids) < 14:
        gains(drafter, sequence, periodic(7), budget=32, num_steps=1)
    assert gains(drafter, sequence, periodic(7), budget=32, num_steps=6) == [5] * 6


def test_verified_nodes_teach_probabilities_after_two_tokens() -> None:
    drafter = Aded()
    tree = DraftTree([20, 30, 20], [-1, 0, -1])
    rows = [([20, 21], [0.6, 0.3]), ([31, 30], [0.5, 0.4]), ([40, 41], [0.8, 0.1]), ([50, 51], [0.7, 0.2])]
    observation = Observation(tree, Acceptance([], [60]), candidates(rows))
    drafter.observe(sequence_of([9, 10, 60]), observation)
    assert {token: prob for token, (_, prob) in row(drafter, 9, 10).items()} == pytest.approx(
        {20: 0.6, 21: 0.3, 60: 0.0}
    )
    assert row(drafter, 9, 10)[60][0] == pytest.approx(0.04)
    # Nodes 0 and 2 both are (10, 20): the first wins.
    assert row(drafter, 10, 20) == {31: (0.0, 0.5), 30: (0.0, pytest.approx(0.4))}
    assert row(drafter, 20, 30).keys() == {40, 41}


def test_newer_probabilities_replace_older_ones_and_raised_values_stay() -> None:
    drafter = Aded()
    for ids, new in (([20, 21], 5), ([22, 23], 6)):
        rows = [(ids, [0.5, 0.25])]
        drafter.observe(
            sequence_of([9, 10, new]), Observation(DraftTree(), Acceptance([], [new]), candidates(rows))
        )
    assert row(drafter, 9, 10).keys() == {5, 22, 23, 6}
    silent = Aded(feed_candidates=False)
    assert silent.top_k == 0
    assert drafter.top_k == 8


def test_the_prompt_teaches_and_its_last_occurrence_wins() -> None:
    drafter = Aded()
    prompt = [1, 2, 7, 1, 2, 8]
    drafter.begin(sequence_of(prompt), candidates([([40 + at], [0.5]) for at in range(5)]))
    probs = {token: prob for token, (_, prob) in row(drafter, 1, 2).items()}
    assert probs == {44: 0.5, 7: 0.0, 8: 0.0}
    assert 42 in row(drafter, 2, 7)
    assert row(drafter, 2, 8) == {}
    none = TopCandidates(np.zeros((0, 8), np.int64), np.zeros((0, 8), np.float32))
    drafter.begin(sequence_of([1]), none)


def test_a_full_row_gives_up_its_least_successor() -> None:
    drafter = Aded()
    for successor in range(100, 112):
        for _ in range(2):
            commit(drafter, [1, 2, successor], 1)
    commit(drafter, [1, 2, 99], 1)
    kept = row(drafter, 1, 2)
    assert len(kept) == 12
    assert kept[99][0] == pytest.approx(0.04)
    assert 100 not in kept


def test_scores_are_normalised_products_along_the_path() -> None:
    drafter = Aded()
    rows = [([20, 21], [0.6, 0.3])]
    drafter.observe(
        sequence_of([9, 10, 20]), Observation(DraftTree(), Acceptance([], [20]), candidates(rows))
    )
    commit(drafter, [10, 20, 30], 1)
    tree = drafter.propose(sequence_of([9, 10]), 64)
    check_tree(tree, 64)
    scores = {
        tuple(int(tree.token_ids[at]) for at in tree.path_to(node)): float(tree.scores[node])
        for node in range(len(tree))
    }
    # 20: probability 0.6 and one sighting; 30: one sighting, halved by the prior.
    assert scores == pytest.approx(
        {(20,): 0.64 / 0.98, (21,): 0.3 / 0.98, (20, 30): 0.64 / 0.98 / 2}, rel=1e-5
    )


def random_table(seed: int, vocab_size: int = 12) -> Aded:
    drafter = Aded(seed=seed)
    random = np.random.default_rng(7)
    text = random.integers(0, vocab_size, 600).tolist()
    commit(drafter, text, 500)
    return drafter


Table = dict[tuple[int, int], list[tuple[int, float]]]
MASK = 2**64 - 1


class Node:
    """The paper's search once more, without arrays: the kernels' reference implementation."""

    def __init__(self, path: tuple[int, ...], value: float, path_value: float) -> None:
        self.path, self.value, self.path_value = path, value, path_value
        self.children: list[Node] = []
        self.visits, self.returns = 0, 0.0

    def best_child(self) -> Node:
        weight = (32 + math.log((self.visits + 9) / 8)) * math.sqrt(self.visits)

        def score(child: Node) -> float:
            if not child.visits:
                return math.inf
            return child.returns / child.visits + weight * child.value / (1 + child.visits)

        return max(self.children, key=score)


def uniforms(state: int) -> Iterator[float]:
    while True:
        state = (state + 0x1E3779B97F4A7C15) & MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        yield ((mixed ^ (mixed >> 31)) >> 11) / 2**53


def rollout(table: Table, path: tuple[int, ...], random: Iterator[float]) -> float:
    returned = 0.0
    while len(path) < 5 and path[-2:] in table:
        successors = table[path[-2:]]
        left = next(random) * sum(value for _, value in successors)
        for token, value in successors:  # noqa: B007
            left -= value
            if left < 0:
                break
        returned += value
        path = (*path, token)
    return returned


def search(table: Table, before: int, token: int, seed: int) -> dict[tuple[int, ...], int]:
    """Visits of every path the search met."""
    random = uniforms(seed)
    root = Node((before, token), 0.0, 0.0)
    nodes = []
    for _ in range(150):
        route = [root]
        while route[-1].children:
            route.append(route[-1].best_child())
        leaf = route[-1]
        if len(leaf.path) < 5:
            for successor, value in table.get(leaf.path[-2:], []):
                leaf.children.append(Node((*leaf.path, successor), value, leaf.path_value + value))
            nodes += leaf.children
            route += leaf.children[-1:]
        returned = 1 + route[-1].path_value + rollout(table, route[-1].path, random)
        for node in route:
            node.visits += 1
            node.returns += returned
    return {node.path[2:]: node.visits for node in nodes if node.visits}


def test_visits_equal_those_of_the_reference_search() -> None:
    drafter = random_table(seed=5)
    state = drafter.state()
    table: Table = {}
    for (key, _), successors, values in zip(*state.values(), strict=True):
        if key >= 0:
            kept = [
                (int(s), min(3.0, float(v) + float(p))) for s, (v, p) in zip(successors, values, strict=True)
            ]
            table[divmod(int(key), 2**32)] = [pair for pair in kept if pair[0] >= 0]
    for before, token in list(table)[::3]:
        seed = (5 + 0x9E3779B97F4A7C15 * 2) % 2**63
        visits = search(table, before, token, seed)
        tree = drafter.propose(sequence_of([before, token]), 1000)
        drafted = [tuple(int(tree.token_ids[at]) for at in tree.path_to(node)) for node in range(len(tree))]
        searched = [path for path in drafted if len(path) < 4 and path in visits]
        assert len(searched) == len(visits) > 5
        ordered = [visits[path] for path in searched]
        assert ordered == sorted(ordered, reverse=True)


def test_trees_keep_their_invariants_at_every_budget() -> None:
    drafter = random_table(seed=0)
    full = drafter.propose(sequence_of([3, 4]), 1000)
    check_tree(full, 1000)
    assert full.depths().max() == 4
    for budget in (0, 1, 2, 5, 16, 64, 100):
        tree = drafter.propose(sequence_of([3, 4]), budget)
        check_tree(tree, budget)
        assert len(tree) == min(budget, len(full))
        assert tree.token_ids.tolist() == full.token_ids[: len(tree)].tolist()


def test_the_search_spends_its_visits_where_the_table_is_heavy() -> None:
    drafter = Aded()
    heavy, light = [1, 2, 10, 11, 12, 13], [1, 2, 20, 21, 22, 23]
    for _ in range(20):
        commit(drafter, heavy, 1)
    commit(drafter, light, 1)
    tree = drafter.propose(sequence_of([1, 2]), 4)
    assert paths(tree) == {(10,), (10, 11), (10, 11, 12), (10, 11, 12, 13)}
    assert (20,) in paths(drafter.propose(sequence_of([1, 2]), 8))


def test_the_same_seed_gives_the_same_drafts_and_proposing_learns_nothing() -> None:
    one, same = random_table(seed=3), random_table(seed=3)
    before = one.state()
    others = [random_table(seed=seed) for seed in range(4, 8)]
    texts = [[first, second] for first in range(12) for second in range(12)]
    for text in texts:
        expected = one.propose(sequence_of(text), 24)
        assert same.propose(sequence_of(text), 24).token_ids.tolist() == expected.token_ids.tolist()
    assert any(
        other.propose(sequence_of(text), 24).token_ids.tolist()
        != one.propose(sequence_of(text), 24).token_ids.tolist()
        for other in others
        for text in texts
    )
    for key, value in one.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_a_short_text_and_an_unknown_one_draft_nothing() -> None:
    drafter = Aded()
    assert len(drafter.propose(sequence_of([1]), 8)) == 0
    assert len(drafter.propose(sequence_of([1, 2]), 8)) == 0
    drafter.begin(sequence_of([1]), None)
    commit(drafter, [1, 2], 1)


def test_the_table_is_bounded_and_the_least_recently_written_row_goes() -> None:
    drafter = Aded(capacity=16)
    for token in range(100, 200):
        commit(drafter, [1, 2, 3], 1)
        commit(drafter, [token, token, token], 1)
    heads = drafter.state()["heads"]
    assert (heads[:, 0] >= 0).all()
    assert row(drafter, 1, 2)[3][0] == pytest.approx(3.0)
    kept = [token for token in range(100, 200) if row(drafter, token, token)]
    assert kept == list(range(185, 200))


def test_a_saved_table_drafts_the_same_and_goes_on_learning() -> None:
    drafter = random_table(seed=0)
    other = Aded()
    other.restore(drafter.state())
    for text in ([3, 4], [5, 6]):
        expected, found = (one.propose(sequence_of(text), 32) for one in (drafter, other))
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
    commit(other, [1, 2, 3], 1)
    assert other.state()["heads"][:, 1].max() > drafter.state()["heads"][:, 1].max()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("values"), "needs \\['heads', 'successors', 'values'\\]"),
        (lambda state: state.update(more=np.zeros(1)), "found .*more"),
        (lambda state: state.update(heads=state["heads"][:-1]), "heads must be int64"),
        (
            lambda state: state.update(values=state["values"].astype(np.float64)),
            "values must be float32",
        ),
        (lambda state: state["heads"].__setitem__((0, 0), -5), "-1 or more"),
        (lambda state: state["successors"].__setitem__((0, 0), -5), "-1 or more"),
        (lambda state: state["successors"].__setitem__((0, slice(None)), 5), "twice in one row"),
        (lambda state: state["values"].__setitem__((0, 0, 0), np.nan), "between 0 and 3"),
        (lambda state: state["values"].__setitem__((0, 0, 1), 1.5), "between 0 and 3"),
        (lambda state: state["values"].__setitem__((slice(None), slice(None), 0), 1.0), "no successor"),
    ],
)
def test_a_damaged_table_is_refused(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    drafter = Aded(capacity=64)
    state = Aded(capacity=64).state()
    damage(state)
    with pytest.raises(StoreError, match=message):
        drafter.restore(state)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity=8"):
        Aded(capacity=8)
    with pytest.raises(ConfigError, match="seed=-1"):
        Aded(seed=-1)
