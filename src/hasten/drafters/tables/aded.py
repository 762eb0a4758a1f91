"""ADED (arXiv 2407.12021): a trigram table that follows the target, searched like a game tree.

The table maps two tokens to the successors seen after them. Each step raises the value of every trigram in
the last tokens of the text; a PUCT search over the table then spends a fixed number of visits, and what it
visited most is the draft. The numbers of the window, of the raise and its cap, of the visits, the depth and
the exploration are those of the published code.

Ours: no corpus fills the table beforehand, as theirs is (253 MB for 1.9 x), so that published speeds are not
to be expected; the target's own probabilities at verified nodes are kept beside the raised values and added
to them; nodes are taken by visits with their ancestors up to the budget, where theirs are the 24 most visited
prefixes, each with its best successor, cut longest first; scores are probabilities (PRIOR is ours); the table
is bounded; the random numbers depend on the seed and the context only. Knows token ids only.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation, require_alike
from hasten.drafters.tables.trigrams import (
    EMPTY,
    LAST_USED,
    NUM_CANDIDATES,
    NUM_SUCCESSORS,
    PROBE_WINDOW,
    Heads,
    Probs,
    Successors,
    Tokens,
    Values,
    adapt,
    check_table,
    feed,
    mixed,
    row_of,
    row_sum_of,
    value_of,
)
from hasten.errors import ConfigError
from hasten.tree import DraftTree

SYSTEM = System(
    name="aded",
    title="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    arxiv="2407.12021",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.tables.aded",
    summary="tree search over a trigram table that adapts to what the target writes",
)

Numbers = NDArray[np.float64]

WINDOW = 16
"""Trigrams of that many last tokens are raised each step."""
NUM_ITERATIONS = 150
SEARCH_DEPTH = 3
"""The search looks that far; each end is then followed by its single best successor."""
EXPLORATION, EXPLORATION_GROWTH = 32.0, 8.0
RANDOM_INCREMENT = 0x1E3779B97F4A7C15
PRIOR = 0.04
"""Added to a row's sum where it normalises a score, so that a trigram seen once is no certainty."""

# Columns of a search node; ROW is the table row that continues it.
TOKEN, BEFORE, PARENT, DEPTH, ROW, FIRST_CHILD, NUM_CHILDREN, VISITS = range(8)
UNKNOWN = -2
# and the numbers that go with it; PATH_VALUE sums the values from the root.
VALUE, PATH_VALUE, RETURNS, SCORE = range(4)


@numba.njit(cache=True)
def _add_child(
    nodes: Tokens, numbers: Numbers, num_nodes: int, parent: int, token: int, value: float, row_sum: float
) -> int:
    nodes[num_nodes, TOKEN] = token
    nodes[num_nodes, BEFORE] = nodes[parent, TOKEN]
    nodes[num_nodes, PARENT] = parent
    nodes[num_nodes, DEPTH] = nodes[parent, DEPTH] + 1
    nodes[num_nodes, ROW] = UNKNOWN
    nodes[num_nodes, NUM_CHILDREN] = 0
    nodes[num_nodes, VISITS] = 0
    numbers[num_nodes, VALUE] = value
    numbers[num_nodes, PATH_VALUE] = numbers[parent, PATH_VALUE] + value
    numbers[num_nodes, RETURNS] = 0.0
    numbers[num_nodes, SCORE] = numbers[parent, SCORE] * (value / (row_sum + PRIOR))
    return num_nodes + 1


@numba.njit(cache=True)
def _expand(
    heads: Heads,
    successors: Successors,
    values: Values,
    nodes: Tokens,
    numbers: Numbers,
    num_nodes: int,
    node: int,
) -> int:
    """All successors become children; returns the number of nodes."""
    row = row_of(heads, nodes[node, BEFORE], nodes[node, TOKEN])
    nodes[node, ROW] = row
    nodes[node, FIRST_CHILD] = num_nodes
    if row == EMPTY:
        return num_nodes
    row_sum = row_sum_of(values, row)
    for place in range(NUM_SUCCESSORS):
        if successors[row, place] != EMPTY:
            value = value_of(values, row, place)
            num_nodes = _add_child(nodes, numbers, num_nodes, node, successors[row, place], value, row_sum)
    nodes[node, NUM_CHILDREN] = num_nodes - nodes[node, FIRST_CHILD]
    return num_nodes


@numba.njit(cache=True)
def _best_child(nodes: Tokens, numbers: Numbers, node: int) -> int:
    """PUCT: the mean return, and the table's value as long as visits are few. The first best wins."""
    visits = np.float64(nodes[node, VISITS])
    weight = EXPLORATION + math.log((visits + EXPLORATION_GROWTH + 1) / EXPLORATION_GROWTH)
    weight *= math.sqrt(visits)
    first = nodes[node, FIRST_CHILD]
    best, best_score = first, 0.0
    for child in range(first, first + nodes[node, NUM_CHILDREN]):
        child_visits = nodes[child, VISITS]
        if child_visits == 0:
            return int(child)
        score = numbers[child, RETURNS] / child_visits
        score += weight * numbers[child, VALUE] / (1 + child_visits)
        if score > best_score:
            best, best_score = child, score
    return int(best)


@numba.njit(cache=True)
def _rollout(
    heads: Heads, successors: Successors, values: Values, nodes: Tokens, node: int, random: Tokens
) -> float:
    """The summed values of a random continuation, each successor as likely as its value."""
    before, token, returned = nodes[node, BEFORE], nodes[node, TOKEN], 0.0
    for _ in range(nodes[node, DEPTH], SEARCH_DEPTH):
        row = row_of(heads, before, token)
        if row == EMPTY:
            break
        random[0] += RANDOM_INCREMENT
        uniform = np.float64(mixed(np.uint64(random[0])) >> np.uint64(11)) / 2.0**53
        left = uniform * row_sum_of(values, row)
        chosen = 0
        for place in range(NUM_SUCCESSORS):
            if successors[row, place] != EMPTY:
                chosen = place
                left -= value_of(values, row, place)
                if left < 0:
                    break
        returned += value_of(values, row, chosen)
        before, token = token, np.int64(successors[row, chosen])
    return returned


@numba.njit(cache=True)
def _search(
    heads: Heads, successors: Successors, values: Values, random: Tokens, nodes: Tokens, numbers: Numbers
) -> int:
    """Grow the search tree below node 0; returns the number of nodes."""
    # Constants are typed, because numba compiles a function anew for each literal argument.
    num_nodes = int(np.int64(1))
    for _ in range(NUM_ITERATIONS):
        node = int(np.int64(0))
        while nodes[node, NUM_CHILDREN] > 0:
            node = _best_child(nodes, numbers, node)
        if nodes[node, ROW] == UNKNOWN and nodes[node, DEPTH] < SEARCH_DEPTH:
            num_nodes = _expand(heads, successors, values, nodes, numbers, num_nodes, node)
            if nodes[node, NUM_CHILDREN] > 0:
                node = num_nodes - 1
        returned = 1.0 + numbers[node, PATH_VALUE]
        returned += _rollout(heads, successors, values, nodes, node, random)
        while node >= 0:
            nodes[node, VISITS] += 1
            numbers[node, RETURNS] += returned
            node = nodes[node, PARENT]
    return num_nodes


@numba.njit(cache=True)
def _append_best(
    heads: Heads, successors: Successors, values: Values, nodes: Tokens, numbers: Numbers, num_searched: int
) -> int:
    """Below each visited node without children its single best successor; returns the number of nodes."""
    num_nodes = num_searched
    for node in range(1, num_searched):
        row = row_of(heads, nodes[node, BEFORE], nodes[node, TOKEN])
        if nodes[node, VISITS] == 0 or nodes[node, NUM_CHILDREN] > 0 or row == EMPTY:
            continue
        best = int(np.int64(0))
        for place in range(NUM_SUCCESSORS):
            if value_of(values, row, place) > value_of(values, row, best):
                best = place
        if successors[row, best] != EMPTY:
            value, row_sum = value_of(values, row, best), row_sum_of(values, row)
            num_nodes = _add_child(nodes, numbers, num_nodes, node, successors[row, best], value, row_sum)
    return num_nodes


@numba.njit(cache=True)
def _draft(
    heads: Heads, successors: Successors, values: Values, before: int, token: int, budget: int, seed: int
) -> tuple[Tokens, Tokens, Probs]:
    """Search, then take the nodes with the most visits; a parent has no fewer than its child."""
    most_nodes = 1 + NUM_ITERATIONS * (NUM_SUCCESSORS + 1)
    nodes = np.empty((most_nodes, 8), np.int64)
    numbers = np.empty((most_nodes, 4), np.float64)
    nodes[0, :] = 0
    nodes[0, TOKEN], nodes[0, BEFORE], nodes[0, PARENT], nodes[0, ROW] = token, before, -1, UNKNOWN
    numbers[0, :] = 0.0
    numbers[0, SCORE] = 1.0
    random = np.full(1, seed, np.int64)
    num_searched = _search(heads, successors, values, random, nodes, numbers)
    num_nodes = _append_best(heads, successors, values, nodes, numbers, num_searched)
    weights = np.zeros(num_nodes, np.float64)
    for node in range(1, num_nodes):
        parent = nodes[node, PARENT]
        if node < num_searched:
            weights[node] = nodes[node, VISITS]
        else:
            weights[node] = nodes[parent, VISITS] * numbers[node, SCORE] / numbers[parent, SCORE]
    node_of = np.full(num_nodes, -1, np.int64)
    tokens, parents = np.empty(budget, np.int64), np.empty(budget, np.int64)
    scores = np.empty(budget, np.float32)
    for drafted in range(min(budget, num_nodes)):
        node = 0
        for other in range(num_nodes):
            if weights[other] > weights[node]:
                node = other
        if weights[node] == 0:
            return tokens[:drafted], parents[:drafted], scores[:drafted]
        weights[node] = 0.0
        node_of[node] = drafted
        tokens[drafted] = nodes[node, TOKEN]
        parents[drafted] = node_of[nodes[node, PARENT]]
        scores[drafted] = numbers[node, SCORE]
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


class Aded:
    """One table for all sequences.

    Args:
        capacity: rows of the table, one for each two tokens met. A row that finds no room replaces the one
            not written for the longest time among the few places it could have.
        feed_candidates: learn the target's probabilities at every verified node too. They count like 25
            sightings shared out over the successors, and newer ones replace older ones.
        seed: of the search's random numbers.
        vocab_size: the target's, to tell a store of other tokens.
    """

    name = "aded"

    def __init__(
        self,
        *,
        capacity: int = 65536,
        feed_candidates: bool = True,
        seed: int = 0,
        vocab_size: int | None = None,
    ) -> None:
        if capacity < PROBE_WINDOW:
            raise ConfigError(f"capacity={capacity} cannot work; it must be at least {PROBE_WINDOW}")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed} cannot work; it must be between 0 and 2**63 - 1")
        self.top_k = NUM_CANDIDATES if feed_candidates else 0
        self._seed = seed
        self._vocab_size = 2**31 if vocab_size is None else vocab_size
        self._clock = 0
        self._heads = np.full((capacity, 2), EMPTY, np.int64)
        self._successors = np.full((capacity, NUM_SUCCESSORS), EMPTY, np.int32)
        self._values = np.zeros((capacity, NUM_SUCCESSORS, 2), np.float32)

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        if prompt_candidates is not None and self.top_k:
            rows = len(prompt_candidates.token_ids)
            places = np.arange(rows) if prompt_candidates.positions is None else prompt_candidates.positions
            # Newest first: of two places with the same two tokens the later one wins. The first token of all
            # has none before it.
            order = np.flatnonzero(places > 0)[::-1]
            tokens = np.array(sequence.token_ids, np.int64)
            newest_first = TopCandidates(prompt_candidates.token_ids[order], prompt_candidates.probs[order])
            self._learn_candidates(tokens[places[order] - 1], tokens[places[order]], newest_first)
        self._adapt(sequence.token_ids[-WINDOW:])

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        if len(sequence.token_ids) < 2 or budget < 1:
            return DraftTree(source_names=(self.name,))
        before, token = sequence.token_ids[-2:]
        seed = (self._seed + 0x9E3779B97F4A7C15 * len(sequence.token_ids)) % 2**63
        token_ids, parents, scores = _draft(
            self._heads, self._successors, self._values, before, token, budget, seed
        )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        num_new = len(observation.acceptance.token_ids)
        root_position = len(sequence.token_ids) - num_new - 1
        if observation.candidates is not None and self.top_k and root_position > 0:
            before, root = sequence.token_ids[root_position - 1 : root_position + 1]
            tokens = np.concatenate(([root], observation.tree.token_ids))
            tokens_before = np.concatenate(([before], tokens[observation.tree.parents + 1]))
            self._learn_candidates(tokens_before, tokens, observation.candidates)
        # A step may have gained more than the window.
        self._adapt(sequence.token_ids[-max(WINDOW, num_new + 2) :])

    def end(self, sequence: Sequence) -> None:
        """Nothing belongs to one sequence alone."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {
            "heads": self._heads.copy(),
            "successors": self._successors.copy(),
            "values": self._values.copy(),
        }

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        require_alike(state, self.state(), "the trigram table")
        heads = state["heads"].astype(np.int64)
        successors = state["successors"].astype(np.int32)
        values = state["values"].astype(np.float32)
        check_table(heads, successors, values, self._vocab_size)
        self._heads, self._successors, self._values = heads, successors, values
        self._clock = int(heads[:, LAST_USED].max()) + 1

    def _adapt(self, token_ids: list[int]) -> None:
        tokens = np.array(token_ids, np.int64)
        adapt(self._heads, self._successors, self._values, tokens, self._clock)
        self._clock += 1

    def _learn_candidates(self, before: Tokens, tokens: Tokens, candidates: TopCandidates) -> None:
        assert len(before) == len(tokens) == len(candidates.token_ids)
        feed(
            self._heads,
            self._successors,
            self._values,
            np.ascontiguousarray(before, np.int64),
            np.ascontiguousarray(tokens, np.int64),
            np.ascontiguousarray(candidates.token_ids, np.int64),
            np.ascontiguousarray(candidates.probs, np.float32),
            self._clock,
        )
        self._clock += 1
