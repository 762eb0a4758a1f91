"""Token Recycling (arXiv 2408.08696): the target's unused best tokens become the next draft.

A table keeps, for every token, the tokens the target ranked best the last time it stood there, in accepted
and in rejected nodes alike. Two ways to draft from it: the paper's static tree of ranks, or - the default and
ours - best-first by path probability, for which the target's probabilities are kept beside the tokens.
Knows tables and trees; knows nothing of models, prompts or samplers.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation, require_alike
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SYSTEM = System(
    name="token-recycling",
    title="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
    arxiv="2408.08696",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.tables.token_recycling",
    summary="drafts from the candidates the target left unused, kept per token",
)

Tokens = NDArray[np.int64]
Table = NDArray[np.int32]
Probs = NDArray[np.float32]
Nodes = tuple[Tokens, Tokens, Probs]
"""Token ids, parents and scores of a tree."""

EMPTY = -1
"""A cell of the table nothing was learnt for; never drafted."""
MAX_DEPTH = 8
TEMPLATE_WIDTH = 8

TEMPLATE_FAN_OUTS = (
    (8,),
    (8, 4, 3, 2, 1, 1, 1, 1),
    (8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0),
    (5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0),
    (3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0),
    (2, 0, 0, 1, 0, 0, 0, 0),
)
"""Children of every node, depth by depth and breadth-first, root first: 8/21/25/15/8/3 nodes."""


def template_nodes() -> tuple[Tokens, Tokens]:
    """The static tree: the parent and the rank of each of the 80 nodes, breadth-first."""
    parents: list[int] = []
    ranks: list[int] = []
    first_of_depth = -1
    for fan_outs in TEMPLATE_FAN_OUTS:
        first_of_next = len(parents)
        for offset, fan_out in enumerate(fan_outs):
            parents += [first_of_depth + offset] * fan_out
            ranks += range(fan_out)
        first_of_depth = first_of_next
    return np.array(parents, np.int64), np.array(ranks, np.int64)


# A kernel takes plain arrays one by one, which keeps numba's call cheap and its cache valid.
# ruff: noqa: PLR0917


@numba.njit(cache=True)
def _store_row(table: Table, probs: Probs, token: int, candidate_ids: Tokens, candidate_probs: Probs) -> None:
    vocab_size, width = table.shape
    if not 0 <= token < vocab_size:
        return
    for rank in range(width):
        table[token, rank] = EMPTY
        probs[token, rank] = 0.0
        if rank < len(candidate_ids) and 0 <= candidate_ids[rank] < vocab_size and candidate_probs[rank] > 0:
            table[token, rank] = candidate_ids[rank]
            probs[token, rank] = min(candidate_probs[rank], np.float32(1.0))


@numba.njit(cache=True)
def _learn_prompt(
    table: Table, probs: Probs, tokens: Tokens, candidate_ids: Tokens, candidate_probs: Probs
) -> None:
    for row in range(len(candidate_ids)):
        _store_row(table, probs, tokens[row], candidate_ids[row], candidate_probs[row])


@numba.njit(cache=True)
def _learn_tree(
    table: Table,
    probs: Probs,
    root: int,
    tokens: Tokens,
    parents: Tokens,
    candidate_ids: Tokens,
    candidate_probs: Probs,
) -> None:
    depths = np.ones(len(tokens), np.int64)
    deepest = 0
    for node in range(len(tokens)):
        if parents[node] >= 0:
            depths[node] = depths[parents[node]] + 1
        deepest = max(deepest, depths[node])
    # Written from the deepest and last to the shallowest and first, so that these win.
    for depth in range(deepest, 0, -1):
        for node in range(len(tokens) - 1, -1, -1):
            if depths[node] == depth:
                _store_row(table, probs, tokens[node], candidate_ids[node + 1], candidate_probs[node + 1])
    _store_row(table, probs, root, candidate_ids[0], candidate_probs[0])


@numba.njit(cache=True)
def _wait(
    table: Table,
    probs: Probs,
    heap: list[tuple[float, int]],
    waiting: Tokens,
    num_waiting: int,
    path_prob: float,
    parent: int,
    parent_token: int,
    rank: int,
) -> int:
    """Queue one candidate of a node; returns how many were ever queued."""
    vocab_size, width = table.shape
    if rank >= width or not 0 <= parent_token < vocab_size or table[parent_token, rank] == EMPTY:
        return num_waiting
    waiting[num_waiting, 0] = parent
    waiting[num_waiting, 1] = parent_token
    waiting[num_waiting, 2] = rank
    # Ties go to what was queued first.
    heappush(heap, (-np.float64(path_prob) * np.float64(probs[parent_token, rank]), num_waiting))
    return num_waiting + 1


@numba.njit(cache=True)
def _best_first(table: Table, probs: Probs, root: int, budget: int, max_depth: int) -> Nodes:
    tokens = np.empty(budget, np.int64)
    parents = np.empty(budget, np.int64)
    scores = np.empty(budget, np.float32)
    depths = np.empty(budget, np.int64)
    # A row is sorted, so of each node only the best candidate not yet taken waits.
    waiting = np.empty((2 * budget + 2, 3), np.int64)
    heap = [(0.0, 0)]
    heap.pop()
    # Constants are typed, because numba compiles a function anew for each literal argument.
    first = int(np.int64(0))
    num_waiting = _wait(table, probs, heap, waiting, first, 1.0, int(np.int64(-1)), root, first)
    num_nodes = first
    while num_nodes < budget and len(heap) > 0:
        negative_score, entry = heappop(heap)
        parent, parent_token, rank = waiting[entry, 0], waiting[entry, 1], waiting[entry, 2]
        node = num_nodes
        num_nodes += 1
        tokens[node] = table[parent_token, rank]
        parents[node] = parent
        scores[node] = -negative_score
        depths[node] = 1 if parent < 0 else depths[parent] + 1
        above = 1.0 if parent < 0 else np.float64(scores[parent])
        num_waiting = _wait(table, probs, heap, waiting, num_waiting, above, parent, parent_token, rank + 1)
        if depths[node] < max_depth:
            below = np.float64(scores[node])
            num_waiting = _wait(table, probs, heap, waiting, num_waiting, below, node, tokens[node], first)
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


@numba.njit(cache=True)
def _fill_template(
    table: Table, probs: Probs, root: int, budget: int, template_parents: Tokens, template_ranks: Tokens
) -> Nodes:
    tokens = np.empty(budget, np.int64)
    parents = np.empty(budget, np.int64)
    scores = np.empty(budget, np.float32)
    pruned = -2
    node_at = np.full(len(template_parents), pruned, np.int64)
    num_nodes = 0
    for position in range(len(template_parents)):
        parent = -1 if template_parents[position] < 0 else node_at[template_parents[position]]
        if num_nodes == budget or parent == pruned:
            continue
        token = root if parent < 0 else tokens[parent]
        rank = template_ranks[position]
        if not 0 <= token < len(table) or table[token, rank] == EMPTY:
            continue
        tokens[num_nodes] = table[token, rank]
        parents[num_nodes] = parent
        scores[num_nodes] = probs[token, rank] * (np.float32(1.0) if parent < 0 else scores[parent])
        node_at[position] = num_nodes
        num_nodes += 1
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


class TokenRecycling:
    """One table for all sequences: what one text taught, the next one drafts from.

    Args:
        vocab_size: the target's.
        width: candidates kept per token.
        template: draft the paper's static tree of 80 nodes instead of searching best-first. A budget below
            80 cuts it breadth-first.
    """

    def __init__(self, vocab_size: int, *, width: int = TEMPLATE_WIDTH, template: bool = False) -> None:
        if vocab_size < 1 or width < 1:
            raise ConfigError(f"vocab_size={vocab_size} and width={width} must both be at least 1")
        if template and width != TEMPLATE_WIDTH:
            raise ConfigError(f"width={width} does not fit the static template, which needs {TEMPLATE_WIDTH}")
        self.name = "token-recycling-template" if template else "token-recycling"
        self.top_k = width
        self._template = template_nodes() if template else None
        self._table = np.full((vocab_size, width), EMPTY, np.int32)
        self._probs = np.zeros((vocab_size, width), np.float32)

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        if prompt_candidates is None:
            return
        tokens = np.array(sequence.token_ids, np.int64)
        if prompt_candidates.positions is not None:
            tokens = tokens[prompt_candidates.positions]
        candidate_ids, candidate_probs = contiguous(prompt_candidates)
        assert len(candidate_ids) <= len(tokens)
        _learn_prompt(self._table, self._probs, tokens, candidate_ids, candidate_probs)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        root = sequence.token_ids[-1]
        if budget < 1:
            return DraftTree(source_names=(self.name,))
        if self._template is None:
            token_ids, parents, scores = _best_first(self._table, self._probs, root, budget, MAX_DEPTH)
        else:
            token_ids, parents, scores = _fill_template(
                self._table, self._probs, root, budget, *self._template
            )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        if observation.candidates is None:
            return
        tree = observation.tree
        root = sequence.token_ids[-len(observation.acceptance.token_ids) - 1]
        candidate_ids, candidate_probs = contiguous(observation.candidates)
        assert len(candidate_ids) == len(tree) + 1
        _learn_tree(
            self._table, self._probs, root, tree.token_ids, tree.parents, candidate_ids, candidate_probs
        )

    def end(self, sequence: Sequence) -> None:
        """Nothing belongs to one sequence alone."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {"token_ids": self._table.copy(), "probs": self._probs.copy()}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        require_alike(state, self.state(), "token recycling's table")
        token_ids = state["token_ids"].astype(np.int32)
        probs = state["probs"].astype(np.float32)
        _check_table(token_ids, probs)
        self._table, self._probs = token_ids, probs


def _check_table(token_ids: NDArray[np.int32], probs: NDArray[np.float32]) -> None:
    vocab_size = len(token_ids)
    if token_ids.min() < EMPTY or token_ids.max() >= vocab_size:
        raise StoreError(f"token recycling token_ids must lie between -1 and {vocab_size - 1}")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise StoreError("token recycling probs must lie between 0 and 1")
    in_order = np.sort(token_ids, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != EMPTY)).any():
        raise StoreError("token recycling token_ids holds a token twice in one row")


def contiguous(candidates: TopCandidates) -> tuple[Tokens, Probs]:
    """One layout and dtype, so that each kernel is compiled once."""
    return (
        np.ascontiguousarray(candidates.token_ids, np.int64),
        np.ascontiguousarray(candidates.probs, np.float32),
    )
