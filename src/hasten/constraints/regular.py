"""Texts of a regular language: the automaton's states before and after every position, exact for the length.

The states that the text so far can reach, and those from which the rest can still be accepted, come from one
pass in each direction over the canvas; a token fits where it leads from one of the former to one of the
latter. A commit changes both only as far as it matters, and only that much is computed again. The setting is
DINGO's (arXiv 2505.23061), which searches the likeliest text of a block from left to right; here nothing is
searched, and whoever commits may do so anywhere, in any order.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.constraints.automaton import DEAD, TokenAutomaton
from hasten.constraints.base import AllowedTokens, ConstraintRun, Flags, Ids, checked_span
from hasten.core import System
from hasten.errors import ConfigError

SYSTEM = System(
    name="regular-constraint",
    title="DINGO: Constrained Inference for Diffusion LLMs",
    arxiv="2505.23061",
    kind="constraint",
    guarantee="exact",
    module="hasten.constraints.regular",
    summary="only tokens after which a text of a regular language can still be completed",
)

OPEN = -2
"""In a row of classes: a position that may still take any; DEAD: a token that fits nowhere."""
MAX_LENGTH_LOOKED_AT = 4096
"""Where a length does not work, longer ones are looked at up to this one."""


class RegularConstraint:
    """The texts that an automaton over token ids accepts.

    The automaton decides alone: one that takes the mask token allows it.
    """

    def __init__(self, automaton: TokenAutomaton, name: str = "regular") -> None:
        self.name = name
        self.automaton = automaton

    def start(self, span: tuple[int, int], eos_ids: Sequence[int], vocab_size: int) -> ConstraintRun:
        begin, end = checked_span(span, eos_ids, vocab_size)
        tables = _tables(self.automaton, eos_ids, vocab_size)
        run = RegularRun(tables, begin, end)
        if not run.can_be_completed:
            raise ConfigError(_no_text(self.name, tables, self.automaton.start, end - begin, bool(eos_ids)))
        return run


@dataclass(frozen=True, eq=False)
class _Tables:
    """The automaton with the end of text as one more class, leading to one more state."""

    next_states: NDArray[np.int32]
    class_of: NDArray[np.int32]
    """int32 [vocab]; the last class is that of tokens which fit nowhere"""
    is_final: Flags
    start: int
    row_starts: NDArray[np.int64]
    row_classes: NDArray[np.int64]
    succ_starts: NDArray[np.int64]
    succ: NDArray[np.int64]


def _tables(automaton: TokenAutomaton, eos_ids: Sequence[int], vocab_size: int) -> _Tables:
    num_states, num_classes = automaton.next_states.shape
    ended, eos_class = num_states, num_classes
    class_of = np.full(vocab_size, DEAD, np.int32)
    known = min(vocab_size, len(automaton.class_of))
    class_of[:known] = automaton.class_of[:known]
    class_of[list(eos_ids)] = eos_class
    table = np.full((num_states + 1, num_classes + 1), DEAD, np.int32)
    table[:num_states, :num_classes] = automaton.next_states
    table[:num_states, eos_class][automaton.is_final] = ended
    table[ended, eos_class] = ended
    # A class whose tokens are all outside this vocabulary must not make a text look possible.
    is_written = np.zeros(num_classes + 1, np.bool_)
    is_written[class_of[class_of >= 0]] = True
    table[:, ~is_written] = DEAD
    states, classes = np.nonzero(table >= 0)
    row_starts = np.searchsorted(states, np.arange(num_states + 2))
    pairs = np.unique(states * (num_states + 1) + table[states, classes])
    succ_starts = np.searchsorted(pairs // (num_states + 1), np.arange(num_states + 2))
    return _Tables(
        table,
        np.where(class_of == DEAD, num_classes + 1, class_of).astype(np.int32),
        np.append(automaton.is_final, True),
        automaton.start,
        row_starts,
        classes,
        succ_starts,
        pairs % (num_states + 1),
    )


class RegularRun:
    """State sets of one span, kept up to date with the canvas it was last asked about."""

    def __init__(self, tables: _Tables, begin: int, end: int) -> None:
        self._tables = tables
        self._begin, self._end = begin, end
        length, num_states = end - begin, len(tables.is_final)
        self._symbols: NDArray[np.int32] = np.full(length, OPEN, np.int32)
        self._forward: Flags = np.zeros((length + 1, num_states), np.bool_)
        self._backward: Flags = np.zeros((length + 1, num_states), np.bool_)
        self._classes: Flags = np.zeros((length, tables.next_states.shape[1] + 1), np.bool_)
        self._is_stale: Flags = np.ones(length, np.bool_)
        self._forward[0, tables.start] = True
        self._backward[length] = tables.is_final
        graph = (tables.next_states, tables.succ_starts, tables.succ)
        _run_forward(self._forward, self._symbols, 0, length, self._is_stale, *graph)
        _run_backward(self._backward, self._symbols, 0, length, self._is_stale, *graph)

    @property
    def can_be_completed(self) -> bool:
        return bool((self._forward[0] & self._backward[0]).any())

    def allowed(self, token_ids: Ids, is_open: Flags) -> AllowedTokens:
        self._follow(token_ids, is_open)
        tables = self._tables
        places = np.flatnonzero(is_open[self._begin : self._end])
        _fill_classes(
            self._classes,
            places,
            self._is_stale,
            self._forward,
            self._backward,
            tables.next_states,
            tables.row_starts,
            tables.row_classes,
        )
        return AllowedTokens(places + self._begin, self._classes[places], tables.class_of)

    def admit(self, token_ids: Ids, is_open: Flags, position: int, token_id: int) -> bool:
        if not self._begin <= position < self._end:
            return True
        self._follow(token_ids, is_open)
        place = position - self._begin
        symbol = self._tables.class_of[token_id]
        if symbol == self._tables.next_states.shape[1]:
            return False
        nexts = self._tables.next_states[self._forward[place], symbol]
        return bool(self._backward[place + 1, nexts[nexts >= 0]].any())

    def _follow(self, token_ids: Ids, is_open: Flags) -> None:
        """Bring the state sets to this canvas; what a change does not reach stays."""
        part = slice(self._begin, self._end)
        # Open positions may hold any id, in a padded model even one outside the vocabulary.
        ids = np.where(is_open[part], 0, token_ids[part])
        num_classes = self._tables.next_states.shape[1]
        symbols = self._tables.class_of[ids]
        symbols[symbols == num_classes] = DEAD
        symbols[is_open[part]] = OPEN
        changed = np.flatnonzero(symbols != self._symbols)
        if not len(changed):
            return
        self._symbols = symbols
        first, last = int(changed[0]), int(changed[-1]) + 1
        graph = (self._tables.next_states, self._tables.succ_starts, self._tables.succ)
        _run_forward(self._forward, symbols, first, last, self._is_stale, *graph)
        _run_backward(self._backward, symbols, first, last, self._is_stale, *graph)


def _no_text(name: str, tables: _Tables, start: int, length: int, may_end: bool) -> str:
    """The message for a length in which nothing fits."""
    reached = np.zeros(len(tables.is_final), np.bool_)
    reached[start] = True
    lengths = []
    for num_tokens in range(min(MAX_LENGTH_LOOKED_AT, length + 2 * len(reached)) + 1):
        # With an end of text the state after it is final too, so shorter texts count as well.
        if (reached & tables.is_final).any():
            lengths.append(num_tokens)
            if num_tokens > length:
                break
        following = np.zeros_like(reached)
        for state in np.flatnonzero(reached):
            following[tables.succ[tables.succ_starts[state] : tables.succ_starts[state + 1]]] = True
        reached = following
    if not any(lengths):
        return f"no text of these tokens fits the constraint {name!r}; check it against the tokenizer"
    if may_end:
        return (
            f"no text of at most {length} tokens fits the constraint {name!r}; "
            f"it needs at least {lengths[0]}: give that many open positions"
        )
    near = [str(one) for one in lengths[-2:] if one]
    return (
        f"no text of exactly {length} tokens fits the constraint {name!r}; "
        f"the nearest lengths are {' and '.join(near)}: open that many positions"
    )


@numba.njit(cache=True)
def _run_forward(forward, symbols, first, last, is_stale, next_states, succ_starts, succ):  # type: ignore[no-untyped-def]
    """Fill rows first + 1 .. of ``forward``; beyond ``last`` until one comes out as it was."""
    row = np.zeros(forward.shape[1], np.bool_)
    for place in range(first, len(symbols)):
        row[:] = False
        for state in range(forward.shape[1]):
            if not forward[place, state]:
                continue
            if symbols[place] == OPEN:
                for index in range(succ_starts[state], succ_starts[state + 1]):
                    row[succ[index]] = True
            elif symbols[place] >= 0 and next_states[state, symbols[place]] >= 0:
                row[next_states[state, symbols[place]]] = True
        is_same = True
        for state in range(len(row)):
            is_same &= row[state] == forward[place + 1, state]
        if is_same and place >= last - 1:
            return
        if not is_same:
            forward[place + 1] = row
            if place + 1 < len(symbols):
                is_stale[place + 1] = True


@numba.njit(cache=True)
def _run_backward(backward, symbols, first, last, is_stale, next_states, succ_starts, succ):  # type: ignore[no-untyped-def]
    """Fill rows last - 1 .. 0 of ``backward``; before ``first`` until one comes out as it was."""
    row = np.zeros(backward.shape[1], np.bool_)
    for place in range(last - 1, -1, -1):
        row[:] = False
        for state in range(backward.shape[1]):
            if symbols[place] == OPEN:
                for index in range(succ_starts[state], succ_starts[state + 1]):
                    if backward[place + 1, succ[index]]:
                        row[state] = True
                        break
            elif symbols[place] >= 0 and next_states[state, symbols[place]] >= 0:
                row[state] = backward[place + 1, next_states[state, symbols[place]]]
        is_same = True
        for state in range(len(row)):
            is_same &= row[state] == backward[place, state]
        if is_same and place <= first:
            return
        if not is_same:
            backward[place] = row
            if place > 0:
                is_stale[place - 1] = True


@numba.njit(cache=True)
def _fill_classes(classes, places, is_stale, forward, backward, next_states, row_starts, row_classes):  # type: ignore[no-untyped-def]
    """Mark, at the stale ones of ``places``, each class that leads from a state before to one after."""
    before = -1
    for place in places:
        if is_stale[place]:
            # Inside long gaps neighbours mostly have the same states on both sides.
            if (
                before >= 0
                and np.array_equal(forward[place], forward[before])
                and (np.array_equal(backward[place + 1], backward[before + 1]))
            ):
                classes[place] = classes[before]
            else:
                classes[place] = False
                for state in np.flatnonzero(forward[place]):
                    for index in range(row_starts[state], row_starts[state + 1]):
                        symbol = row_classes[index]
                        if backward[place + 1, next_states[state, symbol]]:
                            classes[place, symbol] = True
            is_stale[place] = False
        before = place
