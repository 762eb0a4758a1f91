"""STAND (arXiv 2506.04708): n-grams of the text with the laws the target had after them, drafted best-first.

For each of the last one to four tokens of every verified position, drafts' included, the target's best next
tokens are remembered with their probabilities. A draft node is followed by what these memories expect after
its path. Where the target samples, its noise of a position is a function of the position, so a draft adds
that very noise to the remembered law: it proposes the token that the target will draw wherever the two laws
are alike, as the paper's Gumbel-Top-K draft does in law.

Ours: contexts of all four lengths are mixed, the longer the more, where the longest known one would decide
alone; trees are grown best-first, where the paper's are of a fixed shape; the memory is bounded. A newer law
replaces an older one, because means of several proved worse. Knows token ids and laws only.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

from heapq import heappop, heappush

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation, require_alike
from hasten.drafters.coupling import MAX_AHEAD, Noise, draw, noise_ahead
from hasten.drafters.tables.token_recycling import contiguous
from hasten.drafters.tables.trigrams import mixed
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SYSTEM = System(
    name="stand",
    title="Accelerated Test-Time Scaling with Model-Free Speculative Sampling",
    arxiv="2506.04708",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.tables.stand",
    summary="n-grams with the laws the target had after them, drawn with the target's own noise",
)

Tokens = NDArray[np.int64]
Heads = NDArray[np.int64]
"""int64 [rows, 2]: a context's hash, EMPTY where there is none, and when the row was last used"""
Successors = NDArray[np.int32]
"""int32 [rows, 8], EMPTY where there is none"""
Laws = NDArray[np.float32]
"""float32 [rows, 8]: the successors' probabilities"""
KEY, LAST_USED = range(2)
EMPTY = -1
WIDTH = 8
ORDER = 4
MAX_DEPTH = MAX_AHEAD
PROBE_WINDOW = 16
LONGEST_SHARE = 0.5
"""A context's law is mixed with those of shorter ones: so much is its own."""
MOST_UPDATES = 2**62


@numba.njit(cache=True)
def _find(heads: Heads, key: int) -> int:
    """The row of a context, or else the one to take for it: free, or not used for the longest time."""
    home = np.int64(mixed(np.uint64(key)) % np.uint64(len(heads)))
    oldest = home
    for offset in range(PROBE_WINDOW):
        row = (home + offset) % len(heads)
        if heads[row, KEY] == key or heads[row, KEY] == EMPTY:
            return int(row)
        if heads[row, LAST_USED] < heads[oldest, LAST_USED]:
            oldest = row
    return int(oldest)


@numba.njit(cache=True)
def _next_key(key: int, token: int) -> int:
    """The key of a context one token longer, from the newest token to the oldest; never EMPTY."""
    scrambled = mixed(np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(token) + np.uint64(1))
    return int(np.int64(scrambled >> np.uint64(1)))


@numba.njit(cache=True)
def _store(successors: Successors, laws: Laws, row: int, ids: Tokens, probs: NDArray[np.float32]) -> None:
    for rank in range(WIDTH):
        is_known = rank < len(ids) and ids[rank] >= 0 and probs[rank] > 0
        successors[row, rank] = ids[rank] if is_known else EMPTY
        laws[row, rank] = min(probs[rank], np.float32(1.0)) if is_known else np.float32(0.0)


@numba.njit(cache=True)
def _learn_rows(
    heads: Heads,
    successors: Successors,
    laws: Laws,
    contexts: Tokens,
    ids: Tokens,
    probs: NDArray[np.float32],
    clock: int,
) -> None:
    """contexts: [rows, ORDER], the newest token last, EMPTY before the text."""
    for position in range(len(contexts)):
        key = int(np.int64(0))
        for length in range(ORDER):
            token = contexts[position, ORDER - 1 - length]
            if token < 0:
                break
            key = _next_key(key, token)
            row = _find(heads, key)
            heads[row, KEY], heads[row, LAST_USED] = key, clock
            _store(successors, laws, row, ids[position], probs[position])


@numba.njit(cache=True)
def _learn_text(
    heads: Heads,
    successors: Successors,
    laws: Laws,
    tokens: Tokens,
    places: Tokens,
    ids: Tokens,
    probs: NDArray[np.float32],
    clock: int,
) -> None:
    """places: of the tokens that the laws stand after."""
    contexts = np.full((len(ids), ORDER), EMPTY, np.int64)
    for row in range(len(ids)):
        for back in range(min(ORDER, places[row] + 1)):
            contexts[row, ORDER - 1 - back] = tokens[places[row] - back]
    _learn_rows(heads, successors, laws, contexts, ids, probs, clock)


@numba.njit(cache=True)
def _learn_tree(
    heads: Heads,
    successors: Successors,
    laws: Laws,
    recent: Tokens,
    tokens: Tokens,
    parents: Tokens,
    ids: Tokens,
    probs: NDArray[np.float32],
    clock: int,
) -> None:
    """recent: the ORDER tokens up to the root. Each node's context is its own path."""
    contexts = np.empty((len(tokens) + 1, ORDER), np.int64)
    contexts[0] = recent
    for node in range(len(tokens)):
        contexts[node + 1, : ORDER - 1] = contexts[parents[node] + 1, 1:]
        contexts[node + 1, ORDER - 1] = tokens[node]
    _learn_rows(heads, successors, laws, contexts, ids, probs, clock)


@numba.njit(cache=True)
def _expected(
    heads: Heads,
    successors: Successors,
    laws: Laws,
    context: Tokens,
    found: Tokens,
    chances: NDArray[np.float64],
    clock: int,
) -> int:
    """The mixed law after a context, of at most len(found) tokens; returns of how many."""
    keys = np.empty(ORDER, np.int64)
    num_keys = 0
    key = int(np.int64(0))
    for length in range(ORDER):
        token = context[ORDER - 1 - length]
        if token < 0:
            break
        key = _next_key(key, token)
        keys[length] = key
        num_keys += 1
    left = 1.0
    num_found = 0
    for length in range(num_keys - 1, -1, -1):
        row = _find(heads, keys[length])
        if heads[row, KEY] != keys[length]:
            continue
        heads[row, LAST_USED] = clock
        weight = left * LONGEST_SHARE if length > 0 else left
        left -= weight
        for place in range(WIDTH):
            if successors[row, place] == EMPTY:
                continue
            at = 0
            while at < num_found and found[at] != successors[row, place]:
                at += 1
            if at == num_found:
                if num_found == len(found):
                    continue
                found[at] = successors[row, place]
                chances[at] = 0.0
                num_found += 1
            chances[at] += weight * np.float64(laws[row, place])
    return num_found


@numba.njit(cache=True)
def _draft(
    heads: Heads,
    successors: Successors,
    laws: Laws,
    recent: Tokens,
    budget: int,
    noise: Noise,
    temperature: float,
    clock: int,
) -> tuple[Tokens, Tokens, NDArray[np.float32]]:
    """Best first below the root."""
    most = ORDER * WIDTH
    tokens, parents = np.empty(budget, np.int64), np.empty(budget, np.int64)
    scores, depths = np.empty(budget, np.float32), np.empty(budget, np.int64)
    contexts = np.empty((budget + 1, ORDER), np.int64)
    following = np.empty((budget + 1, WIDTH), np.int64)
    chances = np.zeros((budget + 1, WIDTH), np.float64)
    found, found_chances = np.empty(most, np.int64), np.empty(most, np.float64)
    contexts[0] = recent
    heap = [(0.0, 0, 0)]
    heap.pop()
    num_nodes = 0
    opened = 0  # the root; node i is opened as i + 1
    while True:
        depth = 0 if opened == 0 else depths[opened - 1]
        if depth < MAX_DEPTH:
            num_found = _expected(heads, successors, laws, contexts[opened], found, found_chances, clock)
            draw(found, found_chances, num_found, noise[depth], temperature)
            order = np.argsort(-found_chances[:num_found], kind="mergesort")[:WIDTH]
            for rank in range(len(order)):
                following[opened, rank] = found[order[rank]]
                chances[opened, rank] = found_chances[order[rank]]
            above = 1.0 if opened == 0 else np.float64(scores[opened - 1])
            if len(order) > 0:
                heappush(heap, (-above * chances[opened, 0], opened, 0))
        if num_nodes == budget or len(heap) == 0:
            break
        negative, parent, rank = heappop(heap)
        node = num_nodes
        num_nodes += 1
        tokens[node], parents[node] = following[parent, rank], parent - 1
        scores[node] = -negative
        depths[node] = 1 if parent == 0 else depths[parent - 1] + 1
        contexts[node + 1, : ORDER - 1] = contexts[parent, 1:]
        contexts[node + 1, ORDER - 1] = tokens[node]
        if rank + 1 < WIDTH and chances[parent, rank + 1] > 0:
            above = 1.0 if parent == 0 else np.float64(scores[parent - 1])
            heappush(heap, (-above * chances[parent, rank + 1], parent, rank + 1))
        opened = node + 1
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


class Stand:
    """One memory for all sequences: what one sample of a prompt taught, the next one drafts from.

    Args:
        vocab_size: the target's.
        capacity: rows of the memory, one for each context met. A context that finds no room replaces the one
            not used for the longest time among the few places it could have.
    """

    name = "stand"
    top_k = WIDTH

    def __init__(self, vocab_size: int, *, capacity: int = 131072) -> None:
        if vocab_size < 1 or capacity < PROBE_WINDOW:
            raise ConfigError(
                f"vocab_size={vocab_size} and capacity={capacity} must be at least 1 and {PROBE_WINDOW}"
            )
        self._vocab_size = vocab_size
        self._clock = 0
        self._heads = np.full((capacity, 2), EMPTY, np.int64)
        self._successors = np.full((capacity, WIDTH), EMPTY, np.int32)
        self._laws = np.zeros((capacity, WIDTH), np.float32)

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        if prompt_candidates is None:
            return
        tokens = np.array(sequence.token_ids, np.int64)
        ids, probs = contiguous(prompt_candidates)
        places = prompt_candidates.positions
        places = np.arange(len(ids)) if places is None else np.ascontiguousarray(places, np.int64)
        assert len(ids) == len(places)
        assert not len(places) or places[-1] < len(tokens)
        self._clock += 1
        _learn_text(self._heads, self._successors, self._laws, tokens, places, ids, probs, self._clock)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        if budget < 1:
            return DraftTree(source_names=(self.name,))
        noise, temperature = noise_ahead(sequence)
        token_ids, parents, scores = _draft(
            self._heads,
            self._successors,
            self._laws,
            _recent(sequence.token_ids, len(sequence.token_ids)),
            budget,
            noise,
            temperature,
            self._clock,
        )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        if observation.candidates is None:
            return
        tree = observation.tree
        end = len(sequence.token_ids) - len(observation.acceptance.token_ids)
        assert len(observation.candidates.token_ids) == len(tree) + 1
        self._clock += 1
        ids, probs = contiguous(observation.candidates)
        _learn_tree(
            self._heads,
            self._successors,
            self._laws,
            _recent(sequence.token_ids, end),
            tree.token_ids,
            tree.parents,
            ids,
            probs,
            self._clock,
        )

    def end(self, sequence: Sequence) -> None:
        """Nothing belongs to one sequence alone."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {
            "heads": self._heads.copy(),
            "successors": self._successors.copy(),
            "laws": self._laws.copy(),
        }

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        require_alike(state, self.state(), "stand's memory")
        heads = state["heads"].astype(np.int64)
        successors, laws = state["successors"].astype(np.int32), state["laws"].astype(np.float32)
        _check(heads, successors, laws, self._vocab_size)
        self._heads, self._successors, self._laws = heads, successors, laws
        self._clock = int(heads[:, LAST_USED].max()) + 1


def _recent(token_ids: list[int], end: int) -> Tokens:
    """The last ORDER tokens before ``end``, EMPTY where there are none."""
    tokens = token_ids[max(end - ORDER, 0) : end]
    return np.array([EMPTY] * (ORDER - len(tokens)) + tokens, np.int64)


def _check(heads: Heads, successors: Successors, laws: Laws, vocab_size: int) -> None:
    """Raises StoreError for contents no learning could have left."""
    if (heads < EMPTY).any() or (heads[:, LAST_USED] >= MOST_UPDATES).any():
        raise StoreError(f"stand's heads must be {EMPTY} or more, their clocks below {MOST_UPDATES}")
    if (successors < EMPTY).any() or (successors >= vocab_size).any():
        raise StoreError(f"stand's successors must lie between {EMPTY} and {vocab_size - 1}")
    if not ((laws >= 0) & (laws <= 1)).all() or laws[successors == EMPTY].any():
        raise StoreError("stand's laws must lie between 0 and 1, and be 0 where there is no successor")
