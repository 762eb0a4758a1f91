"""REST (arXiv 2311.08252): drafts what followed the longest end of the text in a corpus on disk.

The continuations of all occurrences are counted as a trie, and its most frequent prefixes are the draft.
What a match of that length is worth is a guess here and calibrated downstream. The corpus never changes;
nothing is learnt. Knows the index and token ids only.
"""

from __future__ import annotations

from heapq import heappush, heappushpop

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.corpus.corpus_index import CorpusIndex
from hasten.drafters.corpus.suffix_array import DEPTH
from hasten.drafters.lookup.copying import RELIABILITY
from hasten.errors import ConfigError
from hasten.tree import DraftTree

SYSTEM = System(
    name="rest",
    title="REST: Retrieval-Based Speculative Decoding",
    arxiv="2311.08252",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.corpus.rest",
    summary="looks up in a corpus of yours what followed the last tokens there",
)

Rows = NDArray[np.int32]
Tokens = NDArray[np.int64]

NUM_PREFIXES = 64
"""The most frequent prefixes, which become the tree."""


@numba.njit(cache=True)
def _num_shared(rows: Rows, row: int) -> int:
    """How many tokens a row begins with as the row before it does."""
    shared = 0
    while shared < rows.shape[1] and rows[row, shared] == rows[row - 1, shared]:
        shared += 1
    return shared


@numba.njit(cache=True)
def _count_prefixes(rows: Rows) -> tuple[Rows, Rows, Rows, Rows]:
    """Token, parent, depth and count of every prefix of rows that are in order, parents first."""
    num_rows, length = rows.shape
    tokens, parents = np.empty(num_rows * length, np.int32), np.empty(num_rows * length, np.int32)
    depths, counts = np.empty(num_rows * length, np.int32), np.empty(num_rows * length, np.int32)
    path, begun = np.full(length + 1, -1, np.int64), np.zeros(length + 1, np.int64)
    num_nodes = num_open = 0
    for row in range(num_rows + 1):
        shared = _num_shared(rows, row) if 0 < row < num_rows else 0
        while num_open > shared:
            counts[path[num_open]] = row - begun[num_open]
            num_open -= 1
        while row < num_rows and num_open < length and rows[row, num_open] >= 0:
            tokens[num_nodes], parents[num_nodes] = rows[row, num_open], path[num_open]
            num_open += 1
            depths[num_nodes] = num_open
            path[num_open], begun[num_open] = num_nodes, row
            num_nodes += 1
    return tokens[:num_nodes], parents[:num_nodes], depths[:num_nodes], counts[:num_nodes]


@numba.njit(cache=True)
def _most_frequent(counts: Rows, depths: Rows, num_nodes: int) -> Tokens:
    """The nodes counted most, in their order; of equals the shallower, then the earlier: parents stay."""
    heap = [(0, 0)]
    heap.pop()
    for node in range(len(counts)):
        rank = (int(counts[node] * DEPTH - depths[node]), -node)
        if len(heap) < num_nodes:
            heappush(heap, rank)
        elif rank > heap[0]:
            heappushpop(heap, rank)
    return np.sort(np.array([-entry[1] for entry in heap], np.int64))


@numba.njit(cache=True)
def _best_prefixes(
    rows: Rows, match: int, num_prefixes: int, reliability: NDArray[np.float64], budget: int
) -> tuple[Rows, Tokens, NDArray[np.float32]]:
    """The tree of the most frequent prefixes, best first."""
    tokens, parents, depths, counts = _count_prefixes(rows)
    chosen = _most_frequent(counts, depths, num_prefixes)
    scores = np.empty(len(chosen), np.float64)
    place = np.full(len(tokens) + 1, -1, np.int64)  # the root is the last
    for at in range(len(chosen)):
        node = chosen[at]
        place[node] = at
        above, total = 1.0, len(rows)
        if parents[node] >= 0:
            above, total = scores[place[parents[node]]], counts[parents[node]]
        # An accepted token makes the match one longer.
        trust = reliability[min(match + depths[node] - 1, len(reliability) - 1)]
        scores[at] = above * trust * counts[node] / total
    order = np.argsort(-scores, kind="mergesort")[:budget]
    new_place = np.full(len(chosen) + 1, -1, np.int64)
    new_parents = np.empty(len(order), np.int64)
    for at in range(len(order)):
        new_place[order[at]] = at
        new_parents[at] = new_place[place[parents[chosen[order[at]]]]]
    return tokens[chosen[order]], new_parents, scores[order].astype(np.float32)


class Rest(Forgetful):
    """Retrieval from one corpus.

    Args:
        max_match: the longest end of the text looked up.
        min_match: the shortest.
        max_occurrences: how many occurrences are counted, spread evenly where there are more. The published
            code counts 5000, which takes more than a millisecond on one CPU core.
        num_tokens: the depth of a draft.
    """

    name = "rest"
    top_k = 0

    def __init__(
        self,
        index: CorpusIndex,
        *,
        max_match: int = 16,
        min_match: int = 2,
        max_occurrences: int = 2000,
        num_tokens: int = 10,
    ) -> None:
        if not 1 <= min_match <= max_match:
            raise ConfigError(f"min_match={min_match} and max_match={max_match} must rise from 1 or more")
        if num_tokens < 1 or max_occurrences < 1:
            raise ConfigError(
                f"num_tokens={num_tokens} and max_occurrences={max_occurrences} must be at least 1"
            )
        if max_match + num_tokens > DEPTH:
            raise ConfigError(
                f"max_match={max_match} and num_tokens={num_tokens} together exceed {DEPTH}, the tokens that "
                "an index is in order of; choose smaller ones"
            )
        self._index = index
        self._min_match = min_match
        self._max_match = max_match
        self._max_occurrences = max_occurrences
        self._num_tokens = num_tokens

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        """Nothing to prepare."""

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        recent = np.array(sequence.token_ids[-self._max_match :], np.int64)
        match = self._index.longest_match(recent, self._min_match, self._max_match)
        if match is None or budget < 1:
            return DraftTree(source_names=(self.name,))
        rows = self._index.continuations(match, self._num_tokens, self._max_occurrences)
        token_ids, parents, scores = _best_prefixes(rows, match.length, NUM_PREFIXES, RELIABILITY, budget)
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        """Nothing to learn: the corpus is a store of its own, and stays as it is."""

    def end(self, sequence: Sequence) -> None:
        """Nothing belongs to one sequence."""
