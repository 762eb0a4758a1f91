"""ADED (arXiv 2407.12021): a trigram table that follows the target, searched like a game tree.

The table maps two tokens to the successors seen after them. Each step raises the value of every trigram in the
last tokens of the text; a PUCT search over the table then spends a fixed number of visits, and the visited
nodes are the draft. Ours: the target's own probabilities at verified nodes are kept beside those values and
added to them; nodes are taken by visits with their ancestors, where the paper drops its longest paths first;
the table is bounded; the random numbers depend on the seed and the context only, so drafts are reproducible.
Knows token ids only.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SYSTEM = System(
    name="aded",
    title="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    arxiv="2407.12021",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.aded",
    summary="tree search over a trigram table that adapts to what the target writes",
)

Tokens = NDArray[np.int64]
Successors = NDArray[np.int32]
Values = NDArray[np.float32]
Numbers = NDArray[np.float64]

NUM_SUCCESSORS = 12
NUM_CANDIDATES = 8
EMPTY = -1
PROBE_WINDOW = 16
WINDOW = 16
"""Trigrams of that many last tokens are raised each step."""
BUMP = np.float32(0.04)
MAX_VALUE = np.float32(3.0)
NUM_ITERATIONS = 150
SEARCH_DEPTH = 3
"""The search looks that far; each end is then followed by its single best successor."""
EXPLORATION, EXPLORATION_GROWTH = 32.0, 8.0
PRIOR = 0.04
"""Added to a row's sum where it normalises a score, so that a trigram seen once is no certainty."""

# Columns of a search node: its token, the token before, the table row that continues it.
TOKEN, BEFORE, PARENT, DEPTH, ROW, FIRST_CHILD, NUM_CHILDREN, VISITS = range(8)
UNKNOWN = -2
VALUE, RETURNS, SCORE = range(3)


@numba.njit(cache=True)
def _mixed(number: np.uint64) -> np.uint64:
    """SplitMix64's scramble: the table's hash and the source of random numbers."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@numba.njit(cache=True)
def _row_of(keys: Tokens, before: int, token: int) -> int:
    """The row of two tokens, or EMPTY. Rows are never freed, so a free one ends the search."""
    key = (np.int64(before) << 32) | np.int64(token)
    home = np.int64(_mixed(np.uint64(key)) % np.uint64(len(keys)))
    for offset in range(PROBE_WINDOW):
        row = (home + offset) % len(keys)
        if keys[row] == key:
            return int(row)
        if keys[row] == EMPTY:
            break
    return EMPTY


@numba.njit(cache=True)
def _claim_row(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    last_used: Tokens,
    before: int,
    token: int,
    clock: int,
) -> int:
    """The row of two tokens, made if need be in place of the least recently written one it could be in."""
    row = _row_of(keys, before, token)
    if row == EMPTY:
        key = (np.int64(before) << 32) | np.int64(token)
        home = np.int64(_mixed(np.uint64(key)) % np.uint64(len(keys)))
        row = home
        for offset in range(PROBE_WINDOW):
            tried = (home + offset) % len(keys)
            if keys[tried] == EMPTY:
                row = tried
                break
            if last_used[tried] < last_used[row]:
                row = tried
        keys[row] = key
        for place in range(NUM_SUCCESSORS):
            successors[row, place] = EMPTY
            bumps[row, place] = 0.0
            probs[row, place] = 0.0
    last_used[row] = clock
    return int(row)


@numba.njit(cache=True)
def _place_of(successors: Successors, bumps: Values, probs: Values, row: int, token: int) -> int:
    """Where a successor is, or else made room for: on an empty place, or the one worth least."""
    least = 0
    for place in range(NUM_SUCCESSORS):
        if successors[row, place] == token:
            return place
        if bumps[row, place] + probs[row, place] < bumps[row, least] + probs[row, least]:
            least = place
    successors[row, least] = token
    bumps[row, least] = 0.0
    probs[row, least] = 0.0
    return least


@numba.njit(cache=True)
def _adapt(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    last_used: Tokens,
    tokens: Tokens,
    clock: int,
) -> None:
    for end in range(2, len(tokens)):
        row = _claim_row(
            keys, successors, bumps, probs, last_used, tokens[end - 2], tokens[end - 1], clock
        )
        place = _place_of(successors, bumps, probs, row, tokens[end])
        bumps[row, place] = min(MAX_VALUE, bumps[row, place] + BUMP)


@numba.njit(cache=True)
def _feed(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    last_used: Tokens,
    before: Tokens,
    tokens: Tokens,
    candidate_ids: Tokens,
    candidate_probs: Values,
    clock: int,
) -> None:
    """Replace the probabilities of each position's row; of equal positions the first wins."""
    for position in range(len(tokens) - 1, -1, -1):
        row = _claim_row(
            keys, successors, bumps, probs, last_used, before[position], tokens[position], clock
        )
        for place in range(NUM_SUCCESSORS):
            probs[row, place] = 0.0
        for rank in range(min(NUM_CANDIDATES, candidate_ids.shape[1])):
            if candidate_probs[position, rank] > 0:
                place = _place_of(successors, bumps, probs, row, candidate_ids[position, rank])
                probs[row, place] = min(candidate_probs[position, rank], np.float32(1.0))
        for place in range(NUM_SUCCESSORS):
            if bumps[row, place] + probs[row, place] == 0:
                successors[row, place] = EMPTY


@numba.njit(cache=True)
def _value(bumps: Values, probs: Values, row: int, place: int) -> float:
    return min(float(MAX_VALUE), float(bumps[row, place]) + float(probs[row, place]))


@numba.njit(cache=True)
def _row_sum(bumps: Values, probs: Values, row: int) -> float:
    total = 0.0
    for place in range(NUM_SUCCESSORS):
        total += _value(bumps, probs, row, place)
    return total


@numba.njit(cache=True)
def _add_child(
    nodes: Tokens, numbers: Numbers, num_nodes: int, parent: int, token: int, value: float, total: float
) -> int:
    nodes[num_nodes, TOKEN] = token
    nodes[num_nodes, BEFORE] = nodes[parent, TOKEN]
    nodes[num_nodes, PARENT] = parent
    nodes[num_nodes, DEPTH] = nodes[parent, DEPTH] + 1
    nodes[num_nodes, ROW] = UNKNOWN
    nodes[num_nodes, NUM_CHILDREN] = 0
    nodes[num_nodes, VISITS] = 0
    numbers[num_nodes, VALUE] = value
    numbers[num_nodes, RETURNS] = 0.0
    numbers[num_nodes, SCORE] = numbers[parent, SCORE] * (value / (total + PRIOR))
    return num_nodes + 1


@numba.njit(cache=True)
def _expand(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    nodes: Tokens,
    numbers: Numbers,
    num_nodes: int,
    node: int,
) -> int:
    """All successors become children; returns the number of nodes."""
    row = _row_of(keys, nodes[node, BEFORE], nodes[node, TOKEN])
    nodes[node, ROW] = row
    nodes[node, FIRST_CHILD] = num_nodes
    if row == EMPTY:
        return num_nodes
    total = _row_sum(bumps, probs, row)
    for place in range(NUM_SUCCESSORS):
        if successors[row, place] != EMPTY:
            value = _value(bumps, probs, row, place)
            num_nodes = _add_child(nodes, numbers, num_nodes, node, successors[row, place], value, total)
    nodes[node, NUM_CHILDREN] = num_nodes - nodes[node, FIRST_CHILD]
    return num_nodes


@numba.njit(cache=True)
def _best_child(nodes: Tokens, numbers: Numbers, node: int) -> int:
    """PUCT: the mean return so far, and the table's value while visits are few. The first best wins."""
    visits = float(nodes[node, VISITS])
    weight = EXPLORATION + math.log((visits + EXPLORATION_GROWTH + 1) / EXPLORATION_GROWTH)
    weight *= math.sqrt(visits)
    best, best_score = -1, 0.0
    first = nodes[node, FIRST_CHILD]
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
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    before: int,
    token: int,
    depth: int,
    random: Tokens,
) -> float:
    """The summed values of a random continuation, each successor as likely as its value."""
    returned = 0.0
    while depth < SEARCH_DEPTH:
        row = _row_of(keys, before, token)
        if row == EMPTY:
            break
        random[0] += np.int64(0x1E3779B97F4A7C15)
        uniform = float(_mixed(np.uint64(random[0])) >> np.uint64(11)) / 2.0**53
        left = uniform * _row_sum(bumps, probs, row)
        chosen = -1
        for place in range(NUM_SUCCESSORS):
            if successors[row, place] != EMPTY:
                chosen = place
                left -= _value(bumps, probs, row, place)
                if left < 0:
                    break
        if chosen < 0:
            break
        returned += _value(bumps, probs, row, chosen)
        before, token = token, int(successors[row, chosen])
        depth += 1
    return returned


@numba.njit(cache=True)
def _search(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    before: int,
    token: int,
    random: Tokens,
    nodes: Tokens,
    numbers: Numbers,
) -> int:
    """Grow the search tree below node 0, the text's last token; returns the number of nodes."""
    nodes[0, :] = 0
    nodes[0, TOKEN], nodes[0, BEFORE], nodes[0, PARENT], nodes[0, ROW] = token, before, -1, UNKNOWN
    numbers[0, VALUE], numbers[0, RETURNS], numbers[0, SCORE] = 0.0, 0.0, 1.0
    num_nodes = 1
    for _ in range(NUM_ITERATIONS):
        node = 0
        while nodes[node, NUM_CHILDREN] > 0:
            node = _best_child(nodes, numbers, node)
        if nodes[node, ROW] == UNKNOWN and nodes[node, DEPTH] < SEARCH_DEPTH:
            num_nodes = _expand(keys, successors, bumps, probs, nodes, numbers, num_nodes, node)
            if nodes[node, NUM_CHILDREN] > 0:
                node = num_nodes - 1
        returned = 1.0 + _rollout(
            keys,
            successors,
            bumps,
            probs,
            nodes[node, BEFORE],
            nodes[node, TOKEN],
            nodes[node, DEPTH],
            random,
        )
        above = node
        while above >= 0:
            returned += numbers[above, VALUE]
            above = nodes[above, PARENT]
        while node >= 0:
            nodes[node, VISITS] += 1
            numbers[node, RETURNS] += returned
            node = nodes[node, PARENT]
    return num_nodes


@numba.njit(cache=True)
def _append_best(
    keys: Tokens,
    successors: Successors,
    bumps: Values,
    probs: Values,
    nodes: Tokens,
    numbers: Numbers,
    num_nodes: int,
) -> int:
    """Below every visited node without children: its single best successor; returns the number of nodes."""
    for node in range(1, num_nodes):
        if nodes[node, VISITS] == 0 or nodes[node, NUM_CHILDREN] > 0:
            continue
        row = _row_of(keys, nodes[node, BEFORE], nodes[node, TOKEN])
        if row == EMPTY:
            continue
        best = 0
        for place in range(NUM_SUCCESSORS):
            if _value(bumps, probs, row, place) > _value(bumps, probs, row, best):
                best = place
        if successors[row, best] != EMPTY:
            value, total = _value(bumps, probs, row, best), _row_sum(bumps, probs, row)
            num_nodes = _add_child(nodes, numbers, num_nodes, node, successors[row, best], value, total)
    return num_nodes
