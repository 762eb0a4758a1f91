"""An online suffix automaton over token ids: every substring seen so far, how often and how recently.

The index behind SAM-Decoding (arXiv 2411.10666), generalised to several documents: a match never runs from
one document into the next. A state stands for substrings that end at the same positions; its suffix link
leads to the longest shorter suffix that was seen elsewhere too. Knows tokens only; drafting is elsewhere.

States and edges are rows of two int32 arrays, and a hash of (state, token) finds an edge, so that appending
costs about a microsecond a token and needs no Python object per state.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]
Tokens = NDArray[np.int64]

ROOT = 0
NONE = -1

# Columns of a state.
# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

LINK = 0
LENGTH = 1
"""of the state's longest substring"""
FIRST_EDGE = 2
LAST_EDGE = 3
COUNT = 4
"""occurrences of the state's substrings"""
FIRST_END = 5
LAST_END = 6
"""oldest and newest position an occurrence ends at, counted over all documents"""
NUM_PREFIXES = 7
"""documents' prefixes that end in exactly this state: what COUNT is the sum of"""
STATE_COLUMNS = 8

# Columns of an edge.
SOURCE = 0
TOKEN = 1
TARGET = 2
NEXT_EDGE = 3
EDGE_COLUMNS = 4
# Kernels widen what they read from these rows, because numba compiles a function anew for each integer type.

# Counters.
NUM_STATES = 0
NUM_EDGES = 1
NUM_TOKENS = 2
LAST = 3
"""state of the whole text of the current document"""

INITIAL_CAPACITY = 64


@numba.njit(cache=True)
def _slot(edges: Rows, slots: Rows, state: int, token: int) -> int:
    """Where the edge is in the hash, or the free slot where it belongs."""
    mixed = (np.uint64(state) << np.uint64(32)) ^ np.uint64(token)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mask = len(slots) - 1
    slot = np.int64((mixed ^ (mixed >> np.uint64(31))) & np.uint64(mask))
    while slots[slot] != NONE:
        edge = slots[slot]
        if edges[edge, SOURCE] == state and edges[edge, TOKEN] == token:
            break
        slot = (slot + 1) & mask
    return int(slot)


@numba.njit(cache=True)
def find_edge(edges: Rows, slots: Rows, state: int, token: int) -> int:
    """The edge that leaves ``state`` with ``token``, or NONE."""
    return int(slots[_slot(edges, slots, state, token)])


@numba.njit(cache=True)
def _add_edge(
    states: Rows, edges: Rows, slots: Rows, counters: Tokens, source: int, token: int, target: int
) -> None:
    edge = counters[NUM_EDGES]
    counters[NUM_EDGES] += 1
    edges[edge, SOURCE] = source
    edges[edge, TOKEN] = token
    edges[edge, TARGET] = target
    edges[edge, NEXT_EDGE] = NONE
    slots[_slot(edges, slots, source, token)] = edge
    # At the end of the list: what was seen first, and so tends to be frequent, is enumerated first.
    if states[source, FIRST_EDGE] == NONE:
        states[source, FIRST_EDGE] = edge
    else:
        edges[states[source, LAST_EDGE], NEXT_EDGE] = edge
    states[source, LAST_EDGE] = edge


@numba.njit(cache=True)
def _split(states: Rows, edges: Rows, slots: Rows, counters: Tokens, state: int, token: int) -> int:
    """Part the target of an edge: substrings no longer than the edge's own become a state of their own."""
    target = int(edges[find_edge(edges, slots, state, token), TARGET])
    clone = int(counters[NUM_STATES])
    counters[NUM_STATES] += 1
    for column in range(STATE_COLUMNS):
        states[clone, column] = states[target, column]
    states[clone, LENGTH] = states[state, LENGTH] + 1
    states[clone, FIRST_EDGE] = NONE
    states[clone, NUM_PREFIXES] = 0
    edge = int(states[target, FIRST_EDGE])
    while edge != NONE:
        seen, below = int(np.int64(edges[edge, TOKEN])), int(np.int64(edges[edge, TARGET]))
        _add_edge(states, edges, slots, counters, clone, seen, below)
        edge = int(edges[edge, NEXT_EDGE])
    states[target, LINK] = clone
    while state != NONE:
        edge = find_edge(edges, slots, state, token)
        if edges[edge, TARGET] != target:
            break
        edges[edge, TARGET] = clone
        state = int(np.int64(states[state, LINK]))
    return clone


@numba.njit(cache=True)
def _new_state(states: Rows, counters: Tokens, length: int, position: int) -> int:
    state = int(counters[NUM_STATES])
    counters[NUM_STATES] += 1
    states[state, LENGTH] = length
    states[state, FIRST_EDGE] = NONE
    states[state, FIRST_END] = position
    return state


@numba.njit(cache=True)
def _extend(states: Rows, edges: Rows, slots: Rows, counters: Tokens, token: int) -> int:
    """Append one token to the current document, counts aside; returns the state of its whole text."""
    last = counters[LAST]
    edge = find_edge(edges, slots, last, token)
    if edge != NONE:
        # Only where the document so far repeats one seen before from the start.
        current = int(edges[edge, TARGET])
        if states[current, LENGTH] != states[last, LENGTH] + 1:
            current = _split(states, edges, slots, counters, last, token)
        return current
    current = _new_state(states, counters, states[last, LENGTH] + 1, counters[NUM_TOKENS])
    state = last
    while state != NONE and edge == NONE:
        _add_edge(states, edges, slots, counters, state, token, current)
        state = int(np.int64(states[state, LINK]))
        if state != NONE:
            edge = find_edge(edges, slots, state, token)
    if state != NONE:
        target = int(edges[edge, TARGET])
        if states[target, LENGTH] != states[state, LENGTH] + 1:
            target = _split(states, edges, slots, counters, state, token)
        states[current, LINK] = target
    return current


@numba.njit(cache=True)
def _recount(states: Rows, num_states: int) -> None:
    """Sum the counts anew, from the longest substrings to the shortest."""
    longest = 0
    for state in range(num_states):
        longest = max(longest, int(states[state, LENGTH]))
    starts = np.zeros(longest + 2, np.int64)
    for state in range(num_states):
        starts[states[state, LENGTH] + 1] += 1
        states[state, COUNT] = states[state, NUM_PREFIXES]
    for length in range(1, longest + 2):
        starts[length] += starts[length - 1]
    by_length = np.empty(num_states, np.int64)
    for state in range(num_states):
        by_length[starts[states[state, LENGTH]]] = state
        starts[states[state, LENGTH]] += 1
    for position in range(num_states - 1, 0, -1):
        state = by_length[position]
        link = states[state, LINK]
        states[link, COUNT] += states[state, COUNT]
        states[link, LAST_END] = max(states[link, LAST_END], states[state, LAST_END])


@numba.njit(cache=True)
def _append(states: Rows, edges: Rows, slots: Rows, counters: Tokens, tokens: Tokens) -> None:
    # Every suffix of the text occurred once more, one state each along the links. In repetitive text that
    # chain is as long as the text, so beyond this many visits one recount of all states is cheaper.
    num_visits_left = 4 * (counters[NUM_STATES] + 2 * len(tokens)) + 256
    for token in tokens:
        state = _extend(states, edges, slots, counters, token)
        counters[LAST] = state
        states[state, NUM_PREFIXES] += 1
        states[state, LAST_END] = counters[NUM_TOKENS]
        while state != NONE and num_visits_left > 0:
            states[state, COUNT] += 1
            states[state, LAST_END] = counters[NUM_TOKENS]
            state = int(np.int64(states[state, LINK]))
            num_visits_left -= 1
        counters[NUM_TOKENS] += 1
    if num_visits_left == 0:
        _recount(states, counters[NUM_STATES])


@numba.njit(cache=True)
def _fill_slots(edges: Rows, num_edges: int, slots: Rows) -> None:
    for edge in range(num_edges):
        source, token = int(np.int64(edges[edge, SOURCE])), int(np.int64(edges[edge, TOKEN]))
        slots[_slot(edges, slots, source, token)] = edge


@numba.njit(cache=True)
def continued(states: Rows, state: int, match: int) -> tuple[int, int]:
    """The longest suffix that something followed: at the end of a text its last repetition goes on."""
    while state > ROOT and states[state, FIRST_EDGE] == NONE:
        state = int(states[state, LINK])
        match = min(match, int(states[state, LENGTH]))
    return state, match


@numba.njit(cache=True)
def advance(
    states: Rows, edges: Rows, slots: Rows, tokens: Tokens, state: int, length: int
) -> tuple[int, int]:
    """The longest suffix of (matched text + tokens) that was seen: its state and its length."""
    for token in tokens:
        edge = find_edge(edges, slots, state, token)
        while edge == NONE and state != ROOT:
            state = int(np.int64(states[state, LINK]))
            length = int(states[state, LENGTH])
            edge = find_edge(edges, slots, state, token)
        if edge != NONE:
            state = int(edges[edge, TARGET])
            length += 1
    return state, length


class SuffixAutomaton:
    """All substrings of the documents appended so far.

    ``states``, ``edges`` and ``slots`` are for kernels; they are replaced when the automaton grows.
    """

    __slots__ = ("_capacity", "counters", "edges", "slots", "states")

    def __init__(self) -> None:
        self.counters: Tokens = np.array([1, 0, 0, ROOT], np.int64)
        self.states: Rows = np.zeros((1, STATE_COLUMNS), np.int32)
        self.edges: Rows = np.zeros((0, EDGE_COLUMNS), np.int32)
        self.states[ROOT, [LINK, FIRST_EDGE]] = NONE
        self._capacity = 0
        self._reserve(INITIAL_CAPACITY)

    def __len__(self) -> int:
        return int(self.counters[NUM_TOKENS])

    def append(self, token_ids: Tokens) -> None:
        """Continue the current document. Token ids: int64, 0 or more, below 2**31."""
        self._reserve(len(self) + len(token_ids))
        _append(self.states, self.edges, self.slots, self.counters, token_ids)

    def start_document(self) -> None:
        """What is appended from here on follows nothing."""
        self.counters[LAST] = ROOT

    def match(self, token_ids: Tokens, state: int = ROOT, length: int = 0) -> tuple[int, int]:
        """Advance a match (state, length) by tokens; the default matches the longest suffix of them.

        A state stays a valid match for as long as nothing is appended.
        """
        state, length = advance(self.states, self.edges, self.slots, token_ids, state, length)
        return state, length

    def repeated_suffix(self) -> tuple[int, int]:
        """The longest suffix of the current document that ends somewhere else too: its state and length."""
        state = max(int(self.states[self.counters[LAST], LINK]), ROOT)
        return state, int(self.states[state, LENGTH])

    def _reserve(self, num_tokens: int) -> None:
        """Room for that many tokens; a suffix automaton has at most 2n states and 3n edges."""
        if num_tokens <= self._capacity:
            return
        self._capacity = max(num_tokens, 2 * self._capacity)
        states = np.zeros((2 * self._capacity + 2, STATE_COLUMNS), np.int32)
        states[: len(self.states)] = self.states
        edges = np.zeros((3 * self._capacity + 4, EDGE_COLUMNS), np.int32)
        edges[: len(self.edges)] = self.edges
        slots = np.full(1 << (6 * self._capacity).bit_length(), NONE, np.int32)
        _fill_slots(edges, self.counters[NUM_EDGES], slots)
        self.states, self.edges, self.slots = states, edges, slots
