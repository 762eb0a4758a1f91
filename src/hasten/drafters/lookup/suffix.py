"""Drafts what followed the longest suffix of the text that was seen before, here or in earlier answers.

The trees, their count ratios, the depth that grows with the match and the store of past responses are
SuffixDecoding's (arXiv 2411.04975); the automata that find the match, one for the sequence and one across
sequences, are SAM-Decoding's (arXiv 2411.10666), whose corpus is not here.

Ours: both stores grow one tree in one best-first search, where SuffixDecoding takes the tree of the store
and match length that promise most; shorter matches add to it (NUM_MATCHES); a ratio is worth less after a
short match (RELIABILITY), which no paper has; of equal counts the newest counts, where SAM-Decoding follows
the first occurrence; trees are up to twice as deep as the match and two tokens more (SuffixDecoding: 1 and
0). Knows token ids only; what a match is worth is a guess here and calibrated downstream.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import copy
from heapq import heappop, heappush

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.lookup.copying import FULL_MATCH, RELIABILITY
from hasten.drafters.lookup.suffix_automaton import (
    COUNT,
    FIRST_EDGE,
    LAST_END,
    LENGTH,
    LINK,
    NEXT_EDGE,
    NONE,
    ROOT,
    TARGET,
    TOKEN,
    Rows,
    SuffixAutomaton,
    Tokens,
    continued,
)
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SUFFIX_SYSTEM = System(
    name="suffix-decoding",
    title="SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
    arxiv="2411.04975",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.suffix",
    summary="trees of what followed the last tokens, by how often, here and in past responses (suffix)",
)
SAM_SYSTEM = System(
    name="sam-decoding",
    title="SAM Decoding: Speculative Decoding via Suffix Automaton",
    arxiv="2411.10666",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.suffix",
    summary="longest match by suffix automaton, in constant time per token (suffix)",
)

MAX_MATCH = 32
"""Longest suffix looked up across sequences (SuffixDecoding: 64); longer ones are worth no more here."""
NUM_MATCHES = 3
"""The longest match and shorter ones to back off to, in each automaton."""
MAX_FAN_OUT = 64
"""Continuations looked at per state; the ones seen first come first."""
MIN_PATH_RATIO = 0.03
"""A path of counts rarer than this is not drafted (SuffixDecoding: 0.1, without a calibration after it)."""

NO_VOCABULARY = 2**31
"""Token ids are below this where no vocabulary was named."""

# Columns of what waits to become a node, and of the numbers that go with it.
STATE, PARENT, WAITING_TOKEN, MATCH, DEPTH, LIMIT, IS_LOCAL = range(7)
PATH_RATIO, SCORE = range(2)


@numba.njit(cache=True)
def _continuations(states: Rows, edges: Rows, state: int) -> tuple[int, int]:
    """How often something followed, and how many different tokens did, as far as they are looked at."""
    total, num_edges = 0, 0
    edge = int(states[state, FIRST_EDGE])
    while edge != NONE and num_edges < MAX_FAN_OUT:
        total += int(states[edges[edge, TARGET], COUNT])
        num_edges += 1
        edge = int(edges[edge, NEXT_EDGE])
    if edge != NONE:
        total = int(states[state, COUNT])
    return total, num_edges


@numba.njit(cache=True)
def _wait(
    states: Rows,
    edges: Rows,
    heap: list[tuple[float, int, int]],
    waiting: Tokens,
    numbers: NDArray[np.float64],
    num_waiting: int,
    above: Tokens,
    above_numbers: NDArray[np.float64],
) -> int:
    """Queue the continuations of a state; returns how many were ever queued.

    above: a row like those of ``waiting``, with the node the continuations hang below as its PARENT.
    """
    state, match = continued(states, above[STATE], above[MATCH])
    if state <= ROOT or above[DEPTH] >= above[LIMIT]:
        return num_waiting
    total, num_edges = _continuations(states, edges, state)
    edge = int(states[state, FIRST_EDGE])
    for _ in range(num_edges):
        target = int(edges[edge, TARGET])
        ratio = states[target, COUNT] / total
        path_ratio = above_numbers[PATH_RATIO] * ratio
        if path_ratio >= MIN_PATH_RATIO and num_waiting < len(waiting):
            row = waiting[num_waiting]
            row[STATE], row[PARENT], row[WAITING_TOKEN] = target, above[PARENT], edges[edge, TOKEN]
            row[MATCH], row[DEPTH], row[LIMIT] = match + 1, above[DEPTH] + 1, above[LIMIT]
            row[IS_LOCAL] = above[IS_LOCAL]
            score = above_numbers[SCORE] * ratio * RELIABILITY[min(match, FULL_MATCH)]
            numbers[num_waiting, PATH_RATIO], numbers[num_waiting, SCORE] = path_ratio, score
            # Equal scores: this text before others, then what was seen last, then what was queued first.
            recency = int(states[target, LAST_END]) + (above[IS_LOCAL] << 40)
            heappush(heap, (-score, -recency, num_waiting))
            num_waiting += 1
        edge = int(edges[edge, NEXT_EDGE])
    return num_waiting


@numba.njit(cache=True)
def _queue_matches(
    states: Rows,
    edges: Rows,
    heap: list[tuple[float, int, int]],
    waiting: Tokens,
    numbers: NDArray[np.float64],
    num_waiting: int,
    match: Tokens,
    factor: float,
    offset: float,
) -> int:
    """Queue the continuations of the longest match (state, length, is local) and of shorter ones."""
    state, length = match[0], match[1]
    above = np.zeros(7, np.int64)
    above[PARENT], above[IS_LOCAL] = -1, match[2]
    for _ in range(NUM_MATCHES):
        if state <= ROOT:
            break
        above[STATE], above[MATCH], above[LIMIT] = state, length, int(factor * length + offset)
        num_waiting = _wait(states, edges, heap, waiting, numbers, num_waiting, above, np.ones(2))
        state = int(states[state, LINK])
        length = int(states[state, LENGTH])
    return num_waiting


@numba.njit(cache=True)
def _find_child(first_child: Tokens, sibling: Tokens, tokens: Tokens, parent: int, token: int) -> int:
    child = first_child[parent + 1]
    while child >= 0 and tokens[child] != token:
        child = sibling[child]
    return int(child)


@numba.njit(cache=True)
def _grow(
    local_states: Rows,
    local_edges: Rows,
    shared_states: Rows,
    shared_edges: Rows,
    matches: Tokens,
    budget: int,
    factor: float,
    offset: float,
) -> tuple[Tokens, Tokens, NDArray[np.float32]]:
    """The best-first tree below the matches; a path both stores know is one path, with the better score."""
    tokens, parents = np.empty(budget, np.int64), np.empty(budget, np.int64)
    scores = np.empty(budget, np.float32)
    first_child, sibling = np.full(budget + 1, -1, np.int64), np.full(budget, -1, np.int64)
    expanded = np.full((budget, 2), ROOT, np.int64)
    waiting = np.empty((16 * budget + 256, 7), np.int64)
    numbers = np.empty((16 * budget + 256, 2), np.float64)
    heap = [(0.0, 0, 0)]
    heap.pop()
    num_waiting = _queue_matches(
        local_states, local_edges, heap, waiting, numbers, int(np.int64(0)), matches[0], factor, offset
    )
    num_waiting = _queue_matches(
        shared_states, shared_edges, heap, waiting, numbers, num_waiting, matches[1], factor, offset
    )
    num_nodes = 0
    while num_nodes < budget and len(heap) > 0:
        entry = heappop(heap)[2]
        row = waiting[entry]
        parent, token = row[PARENT], row[WAITING_TOKEN]
        node = _find_child(first_child, sibling, tokens, parent, token)
        if node < 0:
            node = num_nodes
            num_nodes += 1
            tokens[node], parents[node], scores[node] = token, parent, numbers[entry, SCORE]
            sibling[node], first_child[parent + 1] = first_child[parent + 1], node
        # A longer and a shorter match often lead to one state: once is enough.
        if expanded[node, row[IS_LOCAL]] == row[STATE]:
            continue
        expanded[node, row[IS_LOCAL]] = row[STATE]
        row[PARENT] = node
        states, edges = (local_states, local_edges) if row[IS_LOCAL] else (shared_states, shared_edges)
        num_waiting = _wait(states, edges, heap, waiting, numbers, num_waiting, row, numbers[entry])
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


class SuffixDrafter:
    """One automaton a sequence and one of past responses.

    A tree below a match of m tokens is at most ``factor * m + offset`` deep.

    Args:
        max_tokens: bound of the store across sequences. Beyond it the oldest half of its documents goes and
            the automaton is built anew from the rest.
        store_prompts: keep prompts across sequences too, not only responses.
        vocab_size: the target's, to tell a store of other tokens.
    """

    name = "suffix"
    top_k = 0

    def __init__(
        self,
        *,
        factor: float = 2.0,
        offset: float = 2.0,
        max_tokens: int = 200_000,
        store_prompts: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        if factor < 0 or offset < 0 or factor + offset < 1:
            raise ConfigError(
                f"factor={factor} and offset={offset} draft nothing; use 0 or more, sum 1 or more"
            )
        if max_tokens < 0:
            raise ConfigError(f"max_tokens={max_tokens} cannot work; use 0 to keep nothing across sequences")
        self._factor = float(factor)
        self._offset = float(offset)
        self._max_tokens = max_tokens
        self._store_prompts = store_prompts
        self._vocab_size = NO_VOCABULARY if vocab_size is None else vocab_size
        self._documents: list[Tokens] = []
        self._shared = SuffixAutomaton()
        self._local: dict[Sequence, SuffixAutomaton] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self._local[sequence] = SuffixAutomaton()
        self._catch_up(sequence)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        if budget < 1:
            return DraftTree(source_names=(self.name,))
        local = self._local[sequence]
        # Neither match is the text itself: one must end elsewhere too, the other is looked up in other texts.
        local_state, local_length = local.repeated_suffix()
        recent = np.array(sequence.token_ids[-MAX_MATCH:], np.int64)
        shared_state, shared_length = self._shared.match(recent)
        matches = np.array(((local_state, local_length, 1), (shared_state, shared_length, 0)), np.int64)
        token_ids, parents, scores = _grow(
            local.states,
            local.edges,
            self._shared.states,
            self._shared.edges,
            matches,
            budget,
            self._factor,
            self._offset,
        )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        self._catch_up(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._local[child] = copy.deepcopy(self._local[parent])

    def end(self, sequence: Sequence) -> None:
        if self._local.pop(sequence, None) is None:
            return
        kept = sequence.token_ids if self._store_prompts else sequence.new_token_ids
        # A single token is followed by nothing.
        if len(kept) > 1 and self._max_tokens > 1:
            self._add(np.array(kept[-self._max_tokens :], np.int64))

    def state(self) -> dict[str, NDArray[np.generic]]:
        lengths = [len(document) for document in self._documents]
        return {
            "token_ids": np.concatenate([np.zeros(0, np.int64), *self._documents]).astype(np.int32),
            "offsets": np.cumsum([0, *lengths]).astype(np.int64),
        }

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        token_ids, offsets = _checked(state, self._vocab_size)
        documents = np.split(token_ids, offsets[1:-1]) if len(offsets) > 1 else []
        self._documents = []
        self._shared = SuffixAutomaton()
        for document in documents:
            self._add(document)

    def _catch_up(self, sequence: Sequence) -> None:
        local = self._local[sequence]
        local.append(np.array(sequence.token_ids[len(local) :], np.int64))

    def _add(self, document: Tokens) -> None:
        self._documents.append(document)
        self._shared.start_document()
        self._shared.append(document)
        if len(self._shared) <= self._max_tokens:
            return
        while sum(map(len, self._documents)) > self._max_tokens:
            del self._documents[: (len(self._documents) + 1) // 2]
        self._shared = SuffixAutomaton()
        for kept in self._documents:
            self._shared.start_document()
            self._shared.append(kept)


def _checked(state: dict[str, NDArray[np.generic]], vocab_size: int) -> tuple[Tokens, Tokens]:
    if state.keys() != {"token_ids", "offsets"}:
        raise StoreError(f"the suffix store needs token_ids and offsets, found {sorted(state)}")
    for key, dtype in (("token_ids", np.int32), ("offsets", np.int64)):
        if state[key].dtype != dtype or state[key].ndim != 1:
            found = f"{state[key].dtype} {state[key].shape}"
            raise StoreError(f"the suffix store's {key} must be {np.dtype(dtype)} and flat, found {found}")
    token_ids, offsets = state["token_ids"].astype(np.int64), state["offsets"].astype(np.int64)
    if ((token_ids < 0) | (token_ids >= vocab_size)).any():
        raise StoreError(f"the suffix store's token_ids must lie between 0 and {vocab_size - 1}")
    rising = len(offsets) > 0 and bool((np.diff(offsets) > 0).all())
    if not rising or offsets[0] != 0 or offsets[-1] != len(token_ids):
        raise StoreError(f"the suffix store's offsets must rise from 0 to {len(token_ids)}")
    return token_ids, offsets
