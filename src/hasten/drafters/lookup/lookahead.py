"""Lookahead (arXiv 2312.12728): a trie of prompts and of earlier outputs, searched by the last two tokens.

Every window of a prompt is counted in a trie that ends with its sequence, every window of an output in one
that outlives it. A draft is what followed the last tokens in either, as a tree (``hierarchical``), as one
branch for every next token (``parallel``), or as a single branch (``one``). An output can be drafted from as
soon as it is written. Knows token ids only; what a match is worth is a guess here and calibrated downstream.

The published code ranks a tree by counts with prompts weighing 10,000 times as much as outputs, and a single
branch the other way round. Here the two are mixed as probabilities, because scores are probabilities, and
the same one comes first: the prompt in trees, outputs where ``one`` branch is drafted.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

from heapq import heappop, heappush
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Observation
from hasten.drafters.lookup.copying import FULL_MATCH, RELIABILITY
from hasten.drafters.lookup.token_trie import (
    COUNT,
    FIRST_CHILD,
    NEXT_SIBLING,
    NONE,
    TOKEN,
    Rows,
    Tokens,
    TokenTrie,
    child_of,
)
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

SYSTEM = System(
    name="lookahead",
    title="Lookahead: An Inference Acceleration Framework for Large Language Model with Lossless Generation "
    "Accuracy",
    arxiv="2312.12728",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.lookahead",
    summary="branches from a trie of the prompt and of earlier outputs, several at once",
)

Mode = Literal["hierarchical", "parallel", "one"]
Heap = list[tuple[float, int, int, int, int, int, int, float]]
Nodes = tuple[Tokens, Tokens, NDArray[np.float32]]

NO_LIMIT = 2**40
FAN_OUTS: dict[Mode, tuple[int, int]] = {
    "hierarchical": (NO_LIMIT, NO_LIMIT),
    "parallel": (NO_LIMIT, 1),
    "one": (1, 1),
}
"""Branches at the root, and below it: NO_LIMIT or 1."""
MIN_PROB = 1e-6
"""A rarer path is not drafted."""

# Columns of a match: its node in either trie, NONE where it was not seen, and its length in tokens.
IN_PROMPT, IN_OUTPUTS, MATCH = range(3)
# What bounds a search: nodes of all passes and of this one, depth, and branches at the root and below.
MAX_NODES, MAX_NEW, MAX_DEPTH, ROOT_FAN_OUT, FAN_OUT = range(5)


@numba.njit(cache=True)
def _num_continued(nodes: Rows, node: int) -> int:
    """How often something followed."""
    total = int(np.int64(0))
    child = int(np.int64(NONE)) if node == NONE else int(np.int64(nodes[node, FIRST_CHILD]))
    while child != NONE:
        total += int(np.int64(nodes[child, COUNT]))
        child = int(np.int64(nodes[child, NEXT_SIBLING]))
    return int(total)


@numba.njit(cache=True)
def _below(nodes: Rows, slots: Rows, node: int, token: int) -> int:
    return int(np.int64(NONE)) if node == NONE else child_of(nodes, slots, node, token)


@numba.njit(cache=True)
def _count_of(nodes: Rows, node: int) -> int:
    return int(np.int64(0)) if node == NONE else int(np.int64(nodes[node, COUNT]))


@numba.njit(cache=True)
def _share(
    prompt_count: int, num_prompt: int, output_count: int, num_outputs: int, prompt_weight: float
) -> float:
    """How often a token followed, of all that did; where only one trie goes on, it alone decides."""
    if num_prompt == 0 and prompt_weight < 1:
        prompt_weight = 0.0
    elif num_outputs == 0 and prompt_weight > 0:
        prompt_weight = 1.0
    in_prompt, in_outputs = prompt_count / max(num_prompt, 1), output_count / max(num_outputs, 1)
    return prompt_weight * in_prompt + (1 - prompt_weight) * in_outputs


@numba.njit(cache=True)
def _wait(
    prompt_nodes: Rows,
    prompt_slots: Rows,
    output_nodes: Rows,
    output_slots: Rows,
    heap: Heap,
    num_waited: int,
    place: Tokens,
    node: int,
    depth: int,
    rank: float,
    weights: NDArray[np.float64],
    fan_out: int,
) -> int:
    """Queue what followed a place of both tries below a node of the tree; returns how many were ever queued.

    place: as a match. weights: the prompt's in the rank and in the probability.
    """
    num_prompt = _num_continued(prompt_nodes, place[IN_PROMPT])
    num_outputs = _num_continued(output_nodes, place[IN_OUTPUTS])
    reliability = RELIABILITY[min(place[MATCH], FULL_MATCH)]
    best = (0.0, 0, 0, 0, 0, 0, 0, 0.0)
    for in_trie in (IN_PROMPT, IN_OUTPUTS):
        nodes = prompt_nodes if in_trie == IN_PROMPT else output_nodes
        above = place[in_trie]
        child = int(np.int64(NONE)) if above == NONE else int(np.int64(nodes[above, FIRST_CHILD]))
        while child != NONE:
            token = int(np.int64(nodes[child, TOKEN]))
            child = int(np.int64(nodes[child, NEXT_SIBLING]))
            in_prompt = _below(prompt_nodes, prompt_slots, place[IN_PROMPT], token)
            in_outputs = _below(output_nodes, output_slots, place[IN_OUTPUTS], token)
            if in_trie == IN_OUTPUTS and in_prompt != NONE:
                continue  # queued with the prompt's
            count, output_count = _count_of(prompt_nodes, in_prompt), _count_of(output_nodes, in_outputs)
            share = _share(count, num_prompt, output_count, num_outputs, weights[0])
            prob = reliability * _share(count, num_prompt, output_count, num_outputs, weights[1])
            child_rank = rank * reliability * share
            # Equal ranks: what was queued first, and the lists begin with what was added last.
            entry = (-child_rank, num_waited, in_prompt, in_outputs, node, token, depth, prob)
            if child_rank >= MIN_PROB and fan_out > 1:
                heappush(heap, entry)
            elif child_rank >= MIN_PROB and entry < best:
                best = entry
            num_waited += 1
    if best[0] < 0:
        heappush(heap, best)
    return num_waited


@numba.njit(cache=True)
def _child_in_tree(tokens: Tokens, parents: Tokens, num_nodes: int, parent: int, token: int) -> int:
    for node in range(parent + 1, num_nodes):
        if parents[node] == parent and tokens[node] == token:
            return int(np.int64(node))
    return int(np.int64(NONE))


@numba.njit(cache=True)
def _grow(
    prompt_nodes: Rows,
    prompt_slots: Rows,
    output_nodes: Rows,
    output_slots: Rows,
    match: Tokens,
    tokens: Tokens,
    parents: Tokens,
    scores: NDArray[np.float64],
    num_nodes: int,
    limits: Tokens,
    weights: NDArray[np.float64],
) -> int:
    """Add to a tree what followed one match, best rank first; returns how many nodes it has then."""
    heap = [(0.0, 0, 0, 0, 0, 0, 0, 0.0)]
    heap.pop()
    most = min(limits[MAX_NODES], num_nodes + limits[MAX_NEW])
    place = match.copy()
    node, depth, rank, fan_out = int(np.int64(NONE)), int(np.int64(0)), 1.0, limits[ROOT_FAN_OUT]
    num_waited = int(np.int64(0))
    while num_nodes < most:
        if depth < limits[MAX_DEPTH]:
            num_waited = _wait(
                prompt_nodes,
                prompt_slots,
                output_nodes,
                output_slots,
                heap,
                num_waited,
                place,
                node,
                depth + 1,
                rank,
                weights,
                fan_out,
            )
        if len(heap) == 0:
            break
        negative_rank, _, place[IN_PROMPT], place[IN_OUTPUTS], parent, token, depth, prob = heappop(heap)
        place[MATCH] = match[MATCH] + depth
        rank, fan_out = -negative_rank, limits[FAN_OUT]
        # A pass with other weights, or a longer match, may have drafted it already.
        node = _child_in_tree(tokens, parents, num_nodes, parent, token)
        if node == NONE:
            node = int(np.int64(num_nodes))
            num_nodes += 1
            tokens[node], parents[node] = token, parent
            scores[node] = max(MIN_PROB, prob * (1.0 if parent == NONE else scores[parent]))
    return num_nodes


@numba.njit(cache=True)
def _in_order(tokens: Tokens, parents: Tokens, scores: NDArray[np.float64]) -> Nodes:
    """Best first. A parent scores no lower and was drafted earlier, so it stays before its children."""
    order = np.argsort(-scores, kind="mergesort")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    new_parents = parents[order]
    for node in range(len(order)):
        if new_parents[node] != NONE:
            new_parents[node] = places[new_parents[node]]
    return tokens[order], new_parents, scores[order].astype(np.float32)


@numba.njit(cache=True)
def _draft(
    prompt_nodes: Rows,
    prompt_slots: Rows,
    output_nodes: Rows,
    output_slots: Rows,
    matches: Tokens,
    limits: Tokens,
    quotas: Tokens,
    prompt_weight: float,
    enough: int,
) -> Nodes:
    """The longest match's tree; shorter matches add to it while it has fewer than ``enough`` nodes."""
    budget = limits[MAX_NODES]
    tokens, parents = np.empty(budget, np.int64), np.empty(budget, np.int64)
    scores = np.empty(budget, np.float64)
    num_nodes = int(np.int64(0))
    for match in matches:
        if num_nodes >= min(enough, budget):
            break
        # Outputs alone, prompts alone, then both: a quota is what one of them may draft unchallenged.
        for rank_weight, max_new in ((0.0, quotas[0]), (1.0, quotas[1]), (prompt_weight, budget)):
            limits[MAX_NEW] = max_new
            weights = np.array((rank_weight, prompt_weight))
            num_nodes = int(
                np.int64(
                    _grow(
                        prompt_nodes,
                        prompt_slots,
                        output_nodes,
                        output_slots,
                        match,
                        tokens,
                        parents,
                        scores,
                        num_nodes,
                        limits,
                        weights,
                    )
                )
            )
    return _in_order(tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes])


class Lookahead:
    """Two tries: one for the prompt of each sequence, one for the outputs of all.

    Args:
        mode: "hierarchical" drafts a tree, "parallel" one branch for every next token, "one" one branch.
        branch_length: the deepest draft.
        decoding_length: the most nodes of a draft, whatever the budget.
        max_query_length: tokens looked up; shorter suffixes are used where the longer one was never seen, and
            add to a hierarchical draft of fewer nodes than a branch has.
        prompt_weight: the prompt's share of a mixed probability where both tries go on, between 0 and 1; the
            outputs' in mode "one".
        min_output_nodes, min_prompt_nodes: of a hierarchical draft of ``decoding_length`` nodes, how many the
            outputs and the prompt may fill alone, as far as they can. The paper's code, whose thresholds
            these were, drafts nothing at all where both are 0.
        max_nodes, max_prompt_nodes: of one tree of outputs, and of one of a prompt.
        max_trees: different first tokens of a trie.
        vocab_size: the target's, to tell a store of other tokens.
    """

    name = "lookahead"
    top_k = 0

    def __init__(
        self,
        *,
        mode: Mode = "hierarchical",
        branch_length: int = 12,
        decoding_length: int = 64,
        max_query_length: int = 2,
        prompt_weight: float = 0.9,
        min_output_nodes: int = 32,
        min_prompt_nodes: int = 0,
        max_nodes: int = 512,
        max_prompt_nodes: int = 65536,
        max_trees: int = 8192,
        vocab_size: int | None = None,
    ) -> None:
        window = max_query_length + branch_length
        _require(mode in FAN_OUTS, f"mode={mode!r}", f"one of {', '.join(FAN_OUTS)}")
        _require(branch_length >= 1, f"branch_length={branch_length}", "at least 1")
        _require(decoding_length >= 1, f"decoding_length={decoding_length}", "at least 1")
        _require(max_query_length >= 1, f"max_query_length={max_query_length}", "at least 1")
        _require(0 < prompt_weight < 1, f"prompt_weight={prompt_weight}", "between 0 and 1")
        quotas = f"min_output_nodes={min_output_nodes} and min_prompt_nodes={min_prompt_nodes}"
        _require(min(min_output_nodes, min_prompt_nodes) >= 0, quotas, "0 or more")
        fits = min_output_nodes + min_prompt_nodes <= decoding_length
        _require(fits, quotas, f"at most decoding_length={decoding_length} together")
        bounds = f"max_nodes={max_nodes} and max_prompt_nodes={max_prompt_nodes}"
        path = f"at least max_query_length + branch_length = {window}"
        _require(min(max_nodes, max_prompt_nodes) >= window, bounds, path)
        _require(max_trees >= 1, f"max_trees={max_trees}", "at least 1")
        self._mode = mode
        self._vocab_size = vocab_size
        self._branch_length = branch_length
        self._decoding_length = decoding_length
        self._max_query_length = max_query_length
        self._prompt_weight = 1 - prompt_weight if mode == "one" else prompt_weight
        self._quotas = np.array((min_output_nodes, min_prompt_nodes), np.int64)
        self._window = window
        self._prompt_bounds = (window, max_prompt_nodes, max_trees)
        self._outputs = TokenTrie(window, max_nodes, max_trees)
        self._prompts: dict[Sequence, TokenTrie] = {}
        self._num_known: dict[Sequence, int] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        prompt = TokenTrie(*self._prompt_bounds)
        prompt.insert(np.array(sequence.token_ids[: sequence.prompt_length], np.int64))
        self._prompts[sequence] = prompt
        self._num_known[sequence] = sequence.prompt_length
        self._catch_up(sequence)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        budget = min(budget, self._decoding_length)
        prompt = self._prompts[sequence]
        matches = self._matches(prompt, sequence.token_ids)
        if budget < 1 or not matches:
            return DraftTree(source_names=(self.name,))
        is_tree = self._mode == "hierarchical"  # a shorter match, or a quota, would fork a single branch
        token_ids, parents, scores = _draft(
            prompt.nodes,
            prompt.slots,
            self._outputs.nodes,
            self._outputs.slots,
            np.array(matches, np.int64),
            np.array((budget, budget, self._branch_length, *FAN_OUTS[self._mode]), np.int64),
            self._quotas * budget // self._decoding_length if is_tree else np.zeros(2, np.int64),
            self._prompt_weight,
            self._branch_length if is_tree else 1,
        )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        self._catch_up(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._prompts[child] = self._prompts[parent]  # which never changes
        self._num_known[child] = self._num_known[parent]

    def end(self, sequence: Sequence) -> None:
        self._prompts.pop(sequence, None)
        self._num_known.pop(sequence, None)

    def state(self) -> dict[str, NDArray[np.generic]]:
        return self._outputs.arrays()

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        token_ids = state.get("token_ids")
        largest = -1 if token_ids is None else int(token_ids.max(initial=-1))
        if self._vocab_size is not None and largest >= self._vocab_size:
            raise StoreError(f"the lookahead trie's token_ids must lie between 0 and {self._vocab_size - 1}")
        self._outputs.restore(state)

    def _matches(self, prompt: TokenTrie, token_ids: list[int]) -> list[tuple[int, int, int]]:
        """Where the last tokens stand in either trie, the longest suffix first."""
        recent = np.array(token_ids[-self._max_query_length :], np.int64)
        matches = []
        for length in range(len(recent), 0, -1):
            place = prompt.find(recent[-length:]), self._outputs.find(recent[-length:])
            if max(place) > NONE:
                matches.append((*place, length))
        return matches

    def _catch_up(self, sequence: Sequence) -> None:
        """Outputs' paths begin in the output: what only the prompt said ends with the sequence."""
        num_known = self._num_known[sequence]
        start = max(sequence.prompt_length, num_known - self._window)
        self._outputs.insert(np.array(sequence.token_ids[start:], np.int64), num_known - start)
        self._num_known[sequence] = len(sequence.token_ids)


def _require(condition: bool, setting: str, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{setting} cannot work; it must be {remedy}")
