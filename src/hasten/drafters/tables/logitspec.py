"""LogitSpec (arXiv 2507.01449): the runners-up for the last token are guesses for the next one.

The logits that chose the last token also rank the one after it: what the target thought of here it often
writes next. So the other best tokens of that very row are the guesses, and each is followed by what the text
had after its last occurrence, matched on as many tokens as agree. Beside them goes what followed the last
token itself.

Ours: the text is looked up by suffix automaton, where the paper keeps pools of one to three tokens; the
branches are one tree, where the paper's chains repeat shared beginnings; a branch is as likely as its guess,
by the row's probabilities without the token that was chosen. Knows token ids and laws only.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import copy

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.coupling import draw, noise_ahead
from hasten.drafters.lookup.copying import FULL_MATCH, RELIABILITY
from hasten.drafters.lookup.suffix import MAX_FAN_OUT
from hasten.drafters.lookup.suffix_automaton import (
    COUNT,
    FIRST_EDGE,
    LAST_END,
    NEXT_EDGE,
    NONE,
    ROOT,
    TARGET,
    TOKEN,
    Rows,
    SuffixAutomaton,
    Tokens,
    advance,
    continued,
)
from hasten.errors import ConfigError
from hasten.tree import DraftTree

SYSTEM = System(
    name="logitspec",
    title="LogitSpec: Accelerating Retrieval-based Speculative Decoding via Next Next Token Speculation",
    arxiv="2507.01449",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.tables.logitspec",
    summary="guesses from the row that chose the last token, each followed by what the text had after it",
)

Nodes = tuple[Tokens, Tokens, NDArray[np.float32]]


@numba.njit(cache=True)
def _likeliest(states: Rows, edges: Rows, state: int) -> int:
    """The edge seen most often, of equals the latest; NONE where nothing followed."""
    best = int(np.int64(NONE))
    edge = int(states[state, FIRST_EDGE])
    for _ in range(MAX_FAN_OUT):
        if edge == NONE:
            break
        target = edges[edge, TARGET]
        if best == NONE:
            best = edge
        else:
            known = edges[best, TARGET]
            more = states[target, COUNT] > states[known, COUNT]
            later = (
                states[target, COUNT] == states[known, COUNT]
                and states[target, LAST_END] > states[known, LAST_END]
            )
            if more or later:
                best = edge
        edge = int(edges[edge, NEXT_EDGE])
    return best


@numba.njit(cache=True)
def _draft(
    states: Rows,
    edges: Rows,
    slots: Rows,
    state: int,
    length: int,
    guesses: Tokens,
    probs: NDArray[np.float64],
    words: NDArray[np.uint32],
    temperature: float,
    num_following: int,
    budget: int,
) -> Nodes:
    """A chain below every guess, as far as the text knows one; guesses first, then a level at a time."""
    chances = probs.copy()
    draw(guesses, chances, len(guesses), words, temperature)
    order = np.argsort(-chances, kind="mergesort")
    guesses, probs = guesses[order], chances[order]
    tokens, parents = np.empty(budget, np.int64), np.empty(budget, np.int64)
    scores = np.empty(budget, np.float32)
    ends = np.empty((len(guesses), 3), np.int64)  # state, length and node of each chain's end
    num_nodes = int(np.int64(0))
    for rank in range(min(budget, len(guesses))):
        following = advance(states, edges, slots, guesses[rank : rank + 1], state, length)
        ends[rank, 0], ends[rank, 1], ends[rank, 2] = following[0], following[1], num_nodes
        tokens[num_nodes], parents[num_nodes] = guesses[rank], -1
        scores[num_nodes] = probs[rank]
        num_nodes += 1
    num_chains = num_nodes
    for _ in range(num_following):
        for rank in range(num_chains):
            at, match = continued(states, int(ends[rank, 0]), int(ends[rank, 1]))
            if num_nodes == budget or at <= ROOT:
                continue
            edge = _likeliest(states, edges, at)
            tokens[num_nodes], parents[num_nodes] = edges[edge, TOKEN], ends[rank, 2]
            scores[num_nodes] = scores[ends[rank, 2]] * np.float32(RELIABILITY[min(match, FULL_MATCH)])
            ends[rank, 0], ends[rank, 1], ends[rank, 2] = edges[edge, TARGET], match + 1, num_nodes
            num_nodes += 1
    return tokens[:num_nodes], parents[:num_nodes], scores[:num_nodes]


class LogitSpec(Forgetful):
    """Guesses for the next token from the row before it.

    Args:
        num_guesses: how many of the row's best tokens are guesses (the paper: 64, a budget of its own).
        num_following: the most tokens of the text below a guess.
    """

    name = "logitspec"

    def __init__(self, *, num_guesses: int = 8, num_following: int = 4) -> None:
        if num_guesses < 1 or num_following < 0:
            raise ConfigError(
                f"num_guesses={num_guesses} and num_following={num_following} must be at least 1 and 0"
            )
        self.top_k = num_guesses
        self._num_following = num_following
        self._texts: dict[Sequence, SuffixAutomaton] = {}
        self._rows: dict[Sequence, tuple[Tokens, NDArray[np.float64]]] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self._texts[sequence] = SuffixAutomaton()
        if prompt_candidates is not None and len(prompt_candidates.token_ids):
            places = prompt_candidates.positions
            last = len(prompt_candidates.token_ids) - 1 if places is None else int(places[-1])
            if last == len(sequence.token_ids) - 2:  # the row that is before the last token
                self._keep(sequence, prompt_candidates, -1)
        self._catch_up(sequence)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        row = self._rows.get(sequence)
        if row is None or budget < 1:
            return DraftTree(source_names=(self.name,))
        text = self._texts[sequence]
        state, length = text.repeated_suffix()
        noise, temperature = noise_ahead(sequence, 1)
        token_ids, parents, scores = _draft(
            text.states,
            text.edges,
            text.slots,
            state,
            length,
            *row,
            noise[0],
            temperature,
            self._num_following,
            budget,
        )
        return DraftTree(token_ids, parents, scores, source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        if observation.candidates is not None:
            path = observation.acceptance.path
            self._keep(sequence, observation.candidates, path[-1] + 1 if path else 0)
        else:
            self._rows.pop(sequence, None)  # those of an earlier token
        self._catch_up(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._texts[child] = copy.deepcopy(self._texts[parent])
        if parent in self._rows:
            self._rows[child] = self._rows[parent]

    def end(self, sequence: Sequence) -> None:
        self._texts.pop(sequence, None)
        self._rows.pop(sequence, None)

    def _keep(self, sequence: Sequence, candidates: TopCandidates, row: int) -> None:
        """The guesses of a row: its candidates without the token that was written."""
        token_ids = np.asarray(candidates.token_ids[row], np.int64)
        probs = np.asarray(candidates.probs[row], np.float64)
        kept = (token_ids != sequence.token_ids[-1]) & (probs > 0)
        left = max(1.0 - float(probs[token_ids == sequence.token_ids[-1]].sum()), 1e-6)
        self._rows[sequence] = token_ids[kept], np.minimum(probs[kept] / left, 1.0)

    def _catch_up(self, sequence: Sequence) -> None:
        text = self._texts[sequence]
        text.append(np.array(sequence.token_ids[len(text) :], np.int64))
