"""Every source in one tree, chosen best-first by calibrated acceptance probability.

Each source scores its guesses in its own way. What such a score is worth is learnt online: for every
source, depth and score bin, how often a guess whose parent was accepted was accepted itself; and for every
*set* of sources, how much their agreement adds. All proposals are judged against what the target wrote, not
only the nodes that made it into the tree, so that calibration costs nothing and goes on while nothing pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as AbstractSequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import SAMPLED, Sequence
from hasten.drafters.base import BatchDrafter, Drafter, FusedDrafter, Observation, SelfDrafter, TopCandidates
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree, with_chosen_laws

if TYPE_CHECKING:
    from hasten.models.session import Session

_MAX_SOURCES = 6
_NUM_DEPTHS = 8
_NUM_BINS = 16
_PRIOR_WEIGHT = 4.0  # a source's own score counts as this many observations
_MEMORY = 256.0  # a cell that saw more halves its counts, so that it follows the text


@dataclass(slots=True)
class _Pool:
    """All proposals of one step as a trie; a node's parent comes before it."""

    token_ids: NDArray[np.int64]
    parents: NDArray[np.int64]
    depths: NDArray[np.int64]
    source_sets: NDArray[np.int64]  # bit mask
    source_bins: NDArray[np.int64]  # [nodes, sources], -1 where a source did not propose the node
    set_bins: NDArray[np.int64]


class CombinedDrafter:
    """The union of several drafters; with one drafter, that drafter with calibrated scores.

    Raises ConfigError for no drafters, more than six, or several with extra rows of their own.
    """

    def __init__(self, drafters: AbstractSequence[Drafter], name: str = "auto") -> None:
        if not 1 <= len(drafters) <= _MAX_SOURCES:
            raise ConfigError(f"{len(drafters)} drafters cannot be combined; give 1 to {_MAX_SOURCES}")
        self.name = name
        self.drafters = list(drafters)
        self.top_k = max(drafter.top_k for drafter in drafters)
        count = len(self.drafters)
        self._by_source = np.zeros((count, _NUM_DEPTHS, _NUM_BINS, 2))  # accepted, seen
        self._by_set = np.zeros((2**count, _NUM_DEPTHS, _NUM_BINS, 2))
        names = [drafter.name for drafter in self.drafters]
        self._set_names = tuple(
            "+".join(name for bit, name in enumerate(names) if mask >> bit & 1) for mask in range(2**count)
        )
        self._pools: dict[Sequence, _Pool] = {}
        fused = [drafter for drafter in self.drafters if isinstance(drafter, FusedDrafter)]
        if len(fused) > 1:
            names = [drafter.name for drafter in fused]
            raise ConfigError(f"{'+'.join(names)} cannot be combined: each adds rows to the pass; choose one")
        self._fused = fused[0] if fused else None

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        for drafter in self.drafters:
            if isinstance(drafter, SelfDrafter):
                drafter.attach(session, sequences)

    def extend(self, sequence: Sequence, tree: DraftTree) -> DraftTree:
        return self._fused.extend(sequence, tree) if self._fused else tree

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        for drafter in self.drafters:
            drafter.begin(sequence, prompt_candidates if drafter.top_k else None)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        """Nodes come best first; scores are calibrated probabilities of the whole path."""
        return self.propose_all([sequence], budget)[0]

    def propose_all(self, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        """As ``propose``, a tree for each sequence.

        A tree that the first source sampled is kept whole and in its order, as the rules that weigh its laws
        demand; what others proposed follows, best first, in a third of the nodes that is left to them.
        """
        is_sampled = len(self.drafters) > 1 and any(each.proposals in SAMPLED for each in sequences)
        first_budget = budget - budget // 3 if is_sampled else budget
        by_source = [
            _proposals_of(drafter, sequences, budget if index else first_budget)
            for index, drafter in enumerate(self.drafters)
        ]
        return [
            self._union(sequence, list(trees), budget)
            for sequence, *trees in zip(sequences, *by_source, strict=True)
        ]

    def _union(self, sequence: Sequence, trees: list[DraftTree], budget: int) -> DraftTree:
        ends = np.cumsum([len(tree) for tree in trees])
        if not ends[-1]:
            self._pools.pop(sequence, None)
            return DraftTree()
        (token_ids, parents, depths, sets, bins, set_bins, scores) = _merge(
            np.concatenate([tree.token_ids for tree in trees]),
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.scores for tree in trees]),
            ends,
            self._by_source,
            self._by_set,
        )
        self._pools[sequence] = _Pool(token_ids, parents, depths, sets, bins, set_bins)
        laws = trees[0].draft_probs
        num_sampled = 0 if laws is None else len(trees[0])
        order, new_parents = _select(scores, parents, max(budget, num_sampled), num_sampled)
        if laws is not None and len(order) > num_sampled:
            laws = with_chosen_laws(laws, token_ids[order[num_sampled:]])
        return DraftTree(
            token_ids[order],
            new_parents,
            scores[order],
            sets[order],
            self._set_names,
            draft_probs=laws,
            draws=_with_chosen(trees[0].draws, num_sampled, len(order)),
        )

    @contextmanager
    def while_verifying(self, sequences: list[Sequence]) -> Iterator[None]:
        with ExitStack() as stack:
            for drafter in self.drafters:
                if isinstance(drafter, BatchDrafter):
                    stack.enter_context(drafter.while_verifying(sequences))
            yield

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        pool = self._pools.pop(sequence, None)
        if pool is not None and sequence.guarantee != "approximate":
            written = np.asarray(observation.acceptance.token_ids, np.int64)
            _learn(
                written,
                pool.token_ids,
                pool.parents,
                pool.depths,
                pool.source_sets,
                pool.source_bins,
                pool.set_bins,
                self._by_source,
                self._by_set,
            )
        for drafter in self.drafters:
            drafter.observe(sequence, observation)

    def end(self, sequence: Sequence) -> None:
        self._pools.pop(sequence, None)
        for drafter in self.drafters:
            drafter.end(sequence)

    def state(self) -> dict[str, NDArray[np.generic]]:
        state: dict[str, NDArray[np.generic]] = {
            "calibration/by_source": self._by_source,
            "calibration/by_set": self._by_set,
        }
        for drafter in self.drafters:
            state |= {f"{drafter.name}/{key}": value for key, value in drafter.state().items()}
        return state

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        mine = {"calibration/by_source": self._by_source, "calibration/by_set": self._by_set}
        for key, current in mine.items():
            saved = state.get(key)
            if saved is None or saved.shape != current.shape or not _is_calibration(saved):
                raise StoreError(
                    f"{key} is missing or does not fit the drafters {self._set_names[-1]}; a store is for "
                    "the drafters that wrote it, and auto with a draft model is another than auto without"
                )
        parts: dict[str, dict[str, NDArray[np.generic]]] = {drafter.name: {} for drafter in self.drafters}
        for key, value in state.items():
            owner, _, name = key.partition("/")
            if owner in parts:
                parts[owner][name] = value
            elif key not in mine:
                raise StoreError(f"{key} belongs to none of the drafters {self._set_names[-1]}")
        before = [drafter.state() for drafter in self.drafters]
        try:
            for drafter in self.drafters:
                drafter.restore(parts[drafter.name])
        except StoreError:
            for drafter, learnt in zip(self.drafters, before, strict=True):
                drafter.restore(learnt)
            raise
        self._by_source = np.array(state["calibration/by_source"], np.float64)
        self._by_set = np.array(state["calibration/by_set"], np.float64)


def _proposals_of(drafter: Drafter, sequences: list[Sequence], budget: int) -> list[DraftTree]:
    if isinstance(drafter, BatchDrafter):
        trees = drafter.propose_all(sequences, budget)
    else:
        trees = [drafter.propose(sequence, budget) for sequence in sequences]
    return [tree.checked() for tree in trees]


def _with_chosen(
    draws: NDArray[np.int64] | None, num_sampled: int, num_nodes: int
) -> NDArray[np.int64] | None:
    """The order of drawing, where chosen nodes come after the sampled ones."""
    return None if draws is None else np.concatenate((draws, np.arange(num_sampled, num_nodes)))


def _is_calibration(counts: NDArray[np.generic]) -> bool:
    values = np.asarray(counts, np.float64)
    return bool(
        np.isfinite(values).all() and (values >= 0).all() and (values[..., 0] <= values[..., 1]).all()
    )


# Kernels take plain arrays one by one, which keeps numba's calls cheap and its cache valid.
# ruff: noqa: PLR0917


@numba.njit(cache=True)
def _bin(probability):  # type: ignore[no-untyped-def]
    """Score bins are half powers of two: 1, 0.71, 0.5, 0.35, ..."""
    return min(_NUM_BINS - 1, int(-2.0 * np.log2(max(probability, 1e-6)) + 1e-6))


@numba.njit(cache=True)
def _estimate(cell, prior):  # type: ignore[no-untyped-def]
    return (cell[0] + _PRIOR_WEIGHT * prior) / (cell[1] + _PRIOR_WEIGHT)


@numba.njit(cache=True)
def _merge(all_tokens, all_parents, all_scores, ends, by_source, by_set):  # type: ignore[no-untyped-def]
    """The prefix union of several trees, each node with its calibrated path probability."""
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
    set_bins = np.empty(count, np.int64)
    scores = np.empty(count, np.float32)
    for node in range(count):
        depth = min(depths[node], _NUM_DEPTHS) - 1
        best = 0.0
        for s in range(num_sources):
            if bins[node, s] >= 0:
                best = max(best, _estimate(by_source[s, depth, bins[node, s]], priors[node, s]))
        set_bins[node] = _bin(best)
        chance = min(_estimate(by_set[sets[node], depth, set_bins[node]], best), 0.999)
        scores[node] = chance if parents[node] < 0 else chance * scores[parents[node]]
    return (
        token_ids[:count], parents[:count], depths[:count], sets[:count], bins[:count], set_bins, scores
    )  # fmt: skip


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
    for i in range(len(order)):
        place[order[i]] = i
        parent = parents[order[i]]
        new_parents[i] = -1 if parent < 0 else place[parent]
    return order, new_parents


@numba.njit(cache=True)
def _count(cell, accepted):  # type: ignore[no-untyped-def]
    cell[0] += accepted
    cell[1] += 1.0
    if cell[1] > _MEMORY:
        cell[0] *= 0.5
        cell[1] *= 0.5


@numba.njit(cache=True)
def _learn(written, token_ids, parents, depths, sets, bins, set_bins, by_source, by_set):  # type: ignore[no-untyped-def]
    """Walk what was written through the pool; every child of a node on the way was right or wrong."""
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
            _count(by_set[sets[node], depth, set_bins[node]], accepted)
            if accepted:
                following = node
        if following == -2:
            break
        current = following
