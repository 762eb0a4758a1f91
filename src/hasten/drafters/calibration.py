"""What a score is worth: merges the trees of several sources into one pool of calibrated nodes, and learns.

Three steps lead from a source's own score to the probability that a node is accepted:

1. for every source, depth and score bin, how often a guess whose parent was accepted was accepted itself;
2. for every *set* of sources, a logistic pool of their log-odds and of the highest of them: agreement raises
   the chance as far as it proved to, and one overconfident source is believed no more than it deserved;
3. for every depth, an offset that makes the nodes chosen keep in sum what they promise: the best of many
   uncertain estimates are too high on average, and whole paths are right or wrong together.

All proposals are judged against what the target wrote, not only the nodes that made it into the tree, so that
calibration costs nothing and goes on while nothing pays. Knows trees and numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.errors import StoreError
from hasten.tree import DraftTree

_NUM_DEPTHS = 8
_NUM_BINS = 16
_PRIOR_WEIGHT = 4.0  # a source's own score counts as this many observations
_MEMORY = 256.0  # a cell that saw more halves its counts, so that it follows the text
_LEAST = 1e-3  # no source's probability is nearer to 0 or 1
_SHARED, _HIGHEST, _AGREEMENT = 0.3, 0.8, 0.1
"""A fresh pool of several sources: the weight they share, the highest's, and an offset for each but one."""
_STIFFNESS = 10.0  # a fresh weight resists like so many observations of log-odds 1
_STIFFEST = 400.0  # and never more than this, so that it follows the text
_MOST_WEIGHT = 100.0


@dataclass(slots=True)
class Pool:
    """All proposals of one step as a trie; a node's parent comes before it."""

    token_ids: NDArray[np.int64]
    parents: NDArray[np.int64]
    depths: NDArray[np.int64]
    source_sets: NDArray[np.int64]  # bit mask
    source_bins: NDArray[np.int64]  # [nodes, sources], -1 where a source did not propose the node
    evidence: NDArray[np.float64]  # [nodes, sources + 2], log-odds: the sources', the highest; and a 1
    chances: NDArray[np.float64]  # of the node given its parent, as pooled
    scores: NDArray[np.float32]  # of the whole path, as told to others
    chosen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def choose(self, budget: int, num_fixed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first ``num_fixed`` nodes as they are, then the best: their places, and parents in these."""
        order, parents, self.chosen = _select(self.scores, self.parents, budget, num_fixed)
        return order, parents


class Calibration:
    """What the scores of some sources, and their agreement, have been worth so far."""

    def __init__(self, num_sources: int) -> None:
        self._by_source = np.zeros((num_sources, _NUM_DEPTHS, _NUM_BINS, 2))  # accepted, seen
        self._by_set = _fresh_pools(num_sources)
        self._by_depth = np.zeros((_NUM_DEPTHS, 2))  # offset, stiffness
        self._by_depth[:, 1] = _STIFFNESS

    def merge(self, trees: AbstractSequence[DraftTree]) -> Pool:
        """The prefix union of one tree a source, at least one node in all; the columns must be checked."""
        token_ids, parents, depths, sets, bins, priors = _merge(
            np.concatenate([tree.token_ids for tree in trees]),
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.scores for tree in trees]),
            np.cumsum([len(tree) for tree in trees]),
        )
        worth = _calibrate(parents, depths, sets, bins, priors, self._by_source, self._by_set, self._by_depth)
        return Pool(token_ids, parents, depths, sets, bins, *worth)

    def learn(self, pool: Pool, written: NDArray[np.int64]) -> None:
        """Judge a pool of which nodes were chosen by the tokens that were written."""
        _learn(
            written,
            pool.token_ids,
            pool.parents,
            pool.depths,
            pool.source_sets,
            pool.source_bins,
            pool.evidence,
            pool.chances,
            pool.scores,
            pool.chosen,
            self._by_source,
            self._by_set,
            self._by_depth,
        )

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The arrays themselves, which go on learning."""
        return {"by_source": self._by_source, "by_set": self._by_set, "by_depth": self._by_depth}

    def check(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Raises StoreError for what ``restore`` could not take over."""
        for key, own in self.state().items():
            saved = state.get(key)
            if saved is None or saved.shape != own.shape or not _can_be(key, saved):
                raise StoreError(
                    f"calibration/{key} is missing, of other drafters, or holds impossible values"
                )

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        self.check(state)
        self._by_source = np.array(state["by_source"], np.float64)
        self._by_set = np.array(state["by_set"], np.float64)
        self._by_depth = np.array(state["by_depth"], np.float64)


def _can_be(key: str, values: NDArray[np.generic]) -> bool:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return False
    first, second = np.asarray(values, np.float64)[..., 0], np.asarray(values, np.float64)[..., 1]
    if key == "by_source":
        return bool((first >= 0).all() and (first <= second).all() and (second <= _MEMORY).all())
    is_stiff = (second >= _STIFFNESS) & (second <= _STIFFEST)
    return bool((np.abs(first) <= _MOST_WEIGHT).all() and is_stiff.all())


def _fresh_pools(num_sources: int) -> NDArray[np.float64]:
    """[sets, sources + 2, 2]: weights of the sources and the highest, and an offset; each one's stiffness."""
    pools = np.zeros((2**num_sources, num_sources + 2, 2))
    pools[..., 1] = _STIFFNESS
    for members in range(1, 2**num_sources):
        inside = [source for source in range(num_sources) if members >> source & 1]
        pools[members, inside, 0] = 1.0 if len(inside) == 1 else _SHARED / len(inside)
        pools[members, num_sources, 0] = 0.0 if len(inside) == 1 else _HIGHEST
        pools[members, num_sources + 1, 0] = _AGREEMENT * (len(inside) - 1)
    return pools


# Kernels take plain arrays one by one, which keeps numba's calls cheap and its cache valid.
# ruff: noqa: PLR0917


@numba.njit(cache=True)
def _bin(probability):  # type: ignore[no-untyped-def]
    """Score bins are half units of log-odds: ..., 0.27, 0.38, 0.5, 0.62, 0.73, ..., 0.98."""
    odds = np.log(max(probability, 1e-6) / max(1.0 - probability, 1e-6))
    return int(min(max(2.0 * odds + 8.0, 0.0), _NUM_BINS - 1.0))


@numba.njit(cache=True)
def _estimate(cell, prior):  # type: ignore[no-untyped-def]
    return (cell[0] + _PRIOR_WEIGHT * prior) / (cell[1] + _PRIOR_WEIGHT)


@numba.njit(cache=True)
def _chance(odds):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + np.exp(-min(max(odds, -8.0), 8.0)))


@numba.njit(cache=True)
def _pooled(pool, evidence):  # type: ignore[no-untyped-def]
    """The probability that a pool's weights make of its sources' log-odds and of the highest of them."""
    odds = 0.0
    for s in range(len(evidence)):
        odds += pool[s, 0] * evidence[s]
    return _chance(odds)


@numba.njit(cache=True)
def _merge(all_tokens, all_parents, all_scores, ends):  # type: ignore[no-untyped-def]
    """The prefix union of several trees; each node with its bins and conditional probabilities by source."""
    total = len(all_tokens)
    num_sources = len(ends)
    token_ids = np.empty(total, np.int64)
    parents = np.empty(total, np.int64)
    depths = np.empty(total, np.int64)
    sets = np.zeros(total, np.int64)
    bins = np.full((total, num_sources), -1, np.int64)
    priors = np.empty((total, num_sources))
    first_child = np.full(total + 1, -1, np.int64)
    next_sibling = np.full(total, -1, np.int64)
    merged = np.empty(total, np.int64)
    count = 0
    source = 0
    start = 0
    for i in range(total):
        while i >= ends[source]:
            start = ends[source]
            source += 1
        parent = -1
        parent_score = 1.0
        if all_parents[i] >= 0:
            parent = merged[start + all_parents[i]]
            parent_score = max(np.float64(all_scores[start + all_parents[i]]), 1e-9)
        conditional = np.float64(all_scores[i]) / parent_score
        conditional = np.float64(min(conditional, 1.0) if conditional > 1e-6 else 1e-6)  # NaN: 1e-6
        node = first_child[parent + 1]
        while node >= 0 and token_ids[node] != all_tokens[i]:
            node = next_sibling[node]
        if node < 0:
            node = count
            count += 1
            token_ids[node] = all_tokens[i]
            parents[node] = parent
            depths[node] = 1 if parent < 0 else depths[parent] + 1
            next_sibling[node] = first_child[parent + 1]
            first_child[parent + 1] = node
        merged[i] = node
        sets[node] |= 1 << source
        bins[node, source] = _bin(conditional)
        priors[node, source] = conditional
    return token_ids[:count], parents[:count], depths[:count], sets[:count], bins[:count], priors[:count]


@numba.njit(cache=True)
def _calibrate(parents, depths, sets, bins, priors, by_source, by_set, by_depth):  # type: ignore[no-untyped-def]
    """The evidence for every node, its chance given its parent, and the score of its whole path."""
    count, num_sources = bins.shape
    evidence = np.zeros((count, num_sources + 2))
    chances = np.empty(count)
    scores = np.empty(count, np.float32)
    for node in range(count):
        depth = min(depths[node], _NUM_DEPTHS) - 1
        evidence[node, num_sources] = -np.inf
        evidence[node, num_sources + 1] = 1.0
        for s in range(num_sources):
            if bins[node, s] >= 0:
                chance = _estimate(by_source[s, depth, bins[node, s]], priors[node, s])
                chance = min(max(chance, _LEAST), 1.0 - _LEAST)
                evidence[node, s] = np.log(chance / (1.0 - chance))
                evidence[node, num_sources] = max(evidence[node, num_sources], evidence[node, s])
        chances[node] = _pooled(by_set[sets[node]], evidence[node])
        odds = np.log(chances[node] / (1.0 - chances[node]))
        chance = _chance(odds + by_depth[depth, 0])
        scores[node] = chance if parents[node] < 0 else chance * scores[parents[node]]
    return evidence, chances, scores


@numba.njit(cache=True)
def _select(scores, parents, budget, num_fixed):  # type: ignore[no-untyped-def]
    """The first ``num_fixed`` nodes as they are, then the best, and their parents in that order.

    Closed, as children score lower and the fixed nodes hold their own ancestors.
    """
    ranks = -scores
    for node in range(num_fixed):
        ranks[node] = np.float32(node - num_fixed - 1)  # probabilities stop at -1
    order = np.argsort(ranks, kind="mergesort")[:budget]
    place = np.full(len(scores), -1, np.int64)
    new_parents = np.empty(len(order), np.int64)
    chosen = np.zeros(len(scores), np.bool_)
    for i in range(len(order)):
        chosen[order[i]] = True
        place[order[i]] = i
        parent = parents[order[i]]
        new_parents[i] = -1 if parent < 0 else place[parent]
    return order, new_parents, chosen


@numba.njit(cache=True)
def _count(cell, accepted):  # type: ignore[no-untyped-def]
    cell[0] += accepted
    cell[1] += 1.0
    if cell[1] > _MEMORY:
        cell[0] *= 0.5
        cell[1] *= 0.5


@numba.njit(cache=True)
def _learn_pool(pool, evidence, chance, accepted):  # type: ignore[no-untyped-def]
    """One damped Newton step of the logistic pool, coordinate by coordinate."""
    slope = accepted - chance
    curvature = max(chance * (1.0 - chance), 1e-3)
    for s in range(len(pool)):
        value = evidence[s]
        if value != 0.0:
            pool[s, 1] = min(pool[s, 1] + curvature * value * value, _STIFFEST)
            moved = pool[s, 0] + slope * value / pool[s, 1]
            pool[s, 0] = min(max(moved, -_MOST_WEIGHT), _MOST_WEIGHT)


@numba.njit(cache=True)
def _learn_offset(offset, chance, score, is_right):  # type: ignore[no-untyped-def]
    """As ``_learn_pool``, of a node's whole path: what is promised in sum is what is kept in sum."""
    offset[1] = min(offset[1] + max(score * (1.0 - chance), 1e-4), _STIFFEST)
    moved = offset[0] + ((1.0 if is_right else 0.0) - score) / offset[1]
    offset[0] = min(max(moved, -_MOST_WEIGHT), _MOST_WEIGHT)


@numba.njit(cache=True)
def _learn(  # type: ignore[no-untyped-def]
    written,
    token_ids,
    parents,
    depths,
    sets,
    bins,
    evidence,
    chances,
    scores,
    chosen,
    by_source,
    by_set,
    by_depth,
):
    """Walk what was written through the pool; every child of a node on the way was right or wrong."""
    is_right = np.zeros(len(token_ids), np.bool_)
    current = -1
    for token in written:
        following = -2
        for node in range(current + 1, len(token_ids)):
            if parents[node] != current:
                continue
            accepted = 1.0 if token_ids[node] == token else 0.0
            depth = min(depths[node], _NUM_DEPTHS) - 1
            for s in range(bins.shape[1]):
                if bins[node, s] >= 0:
                    _count(by_source[s, depth, bins[node, s]], accepted)
            _learn_pool(by_set[sets[node]], evidence[node], chances[node], accepted)
            if accepted:
                is_right[node] = True
                following = node
        if following == -2:
            break
        current = following
    for node in range(len(token_ids)):
        if chosen[node]:
            _learn_offset(
                by_depth[min(depths[node], _NUM_DEPTHS) - 1], chances[node], scores[node], is_right[node]
            )
