"""What a constraint answers: which tokens may stand where, so that the text can still get into the language.

A constraint covers a span of the canvas. Its text is what stands before the first end-of-text token; after
that token every later position of the span holds one too. A text that fills the span without one counts as
well. Answers are exact: a token is allowed if and only if some completion with it is in the language.
Knows arrays only, neither canvas nor policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AllowedTokens:
    """The tokens that each open position of the span may take.

    Kept by classes of tokens that the language cannot tell apart, which are far fewer than tokens.
    """

    positions: Ids
    """int64 [num_open], rising"""
    classes: Flags
    """bool [num_open, num_classes]"""
    class_of: NDArray[np.int32]
    """int32 [vocab]: the class of each token"""

    def __getitem__(self, rows: Any) -> Flags:
        """bool [rows, vocab] for some of the open positions, by their place in ``positions``."""
        allowed: Flags = self.classes[rows][..., self.class_of]
        return allowed

    @property
    def matrix(self) -> Flags:
        """bool [num_open, vocab]."""
        return self[:]

    def at(self, position: int) -> Flags:
        """bool [vocab] for one open position."""
        row = int(np.searchsorted(self.positions, position))
        if row == len(self.positions) or self.positions[row] != position:
            raise IndexError(f"position {position} is not open in this span")
        return self[row]

    @property
    def can_be_completed(self) -> bool:
        """Whether a completion exists; with nothing open this cannot tell, and is True."""
        return bool(self.classes.any(axis=1).all())


@runtime_checkable
class ConstraintRun(Protocol):
    """A constraint over one span of one canvas. Arrays are of the whole canvas and are not kept."""

    def allowed(self, token_ids: Ids, is_open: Flags) -> AllowedTokens:
        """What each open position may take; nothing anywhere where the canvas has no completion.

        Args:
            token_ids: int64 [length]; what open positions hold does not count.
            is_open: bool [length].
        """

    def admit(self, token_ids: Ids, is_open: Flags, position: int, token_id: int) -> bool:
        """Whether a completion is left once ``token_id`` stands at ``position``, open or not."""


@runtime_checkable
class Constraint(Protocol):
    """A language of token sequences."""

    name: str

    def start(self, span: tuple[int, int], eos_ids: Sequence[int], vocab_size: int) -> ConstraintRun:
        """Begin on the positions span[0] .. span[1] - 1.

        Args:
            span: first position, and the one after the last.
            eos_ids: what may end the text early; empty where it has to fill the span.
            vocab_size: of the model; ids the language does not know are never allowed.

        Raises:
            ConfigError: no text that fits is in the language; names the length and the nearest that work.
        """


def checked_span(span: tuple[int, int], eos_ids: Sequence[int], vocab_size: int) -> tuple[int, int]:
    """Raises ConfigError for a span or ids that no canvas can have."""
    begin, end = int(span[0]), int(span[1])
    if not 0 <= begin < end:
        raise ConfigError(f"a constraint over positions {begin} to {end} covers nothing; give at least one")
    outside = [one for one in eos_ids if not 0 <= one < vocab_size]
    if outside:
        raise ConfigError(f"end-of-text id {outside[0]} is not in the vocabulary of {vocab_size} tokens")
    return begin, end
