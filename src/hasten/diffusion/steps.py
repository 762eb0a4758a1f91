"""What the policies of the diffusion loop see and say: a forward pass, and what is written or taken back.

Knows canvases and predictions; knows no policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hasten.core import SamplingParams
from hasten.diffusion.canvas import Block, Canvas, Ids, Prediction
from hasten.diffusion.drawing import Drawing

NONE: Ids = np.empty(0, dtype=np.int64)
_GREEDY = Drawing(SamplingParams())


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """One forward pass, as policies see it."""

    canvas: Canvas
    block: Block
    prediction: Prediction
    """of every wanted position that was computed; transforms and constraint applied"""
    forward: int
    """predictions that this canvas has had before"""
    forward_in_block: int
    """predictions that it has had in this block before"""
    sequence: int = 0
    """the canvas's number in the session, for queries of a selector's own"""
    draw: Drawing = _GREEDY
    """gives predictions of a selector's own their candidates; knows the laws that these are drawn from"""

    @property
    def num_open(self) -> int:
        """Open positions of the block."""
        return len(self.canvas.open_in(self.block))

    @cached_property
    def open(self) -> Prediction:
        """Of the open positions of the block that were predicted: what may be committed now."""
        waiting = self.canvas.open_in(self.block)
        return self.prediction.at(np.intersect1d(waiting, self.prediction.positions, assume_unique=True))

    @cached_property
    def everywhere(self) -> Prediction:
        """Of all open positions that were predicted, after the block too."""
        positions = self.prediction.positions
        return self.prediction.at(positions[self.canvas.is_open[positions]])


@dataclass(frozen=True, eq=False)
class Selection:
    """What to write now."""

    positions: Ids
    """int64 [n], open ones"""
    token_ids: Ids
    """int64 [n]"""

    @classmethod
    def of(cls, prediction: Prediction, chosen: Any) -> Selection:
        """The candidates of some rows of a prediction; ``chosen`` is a bool mask or row numbers."""
        return cls(prediction.positions[chosen], prediction.token_ids[chosen])


@dataclass(frozen=True, eq=False)
class Revision:
    """What to take back after a commit: positions to open again, and tokens to replace."""

    reopened: Ids = field(default_factory=lambda: NONE)
    edited: Ids = field(default_factory=lambda: NONE)
    token_ids: Ids = field(default_factory=lambda: NONE)
    """int64: the tokens of the edited positions"""
    kept: Ids = field(default_factory=lambda: NONE)
    """positions to open again that go on holding their token; the reopened ones get fresh noise"""
    looks_again: bool = False
    """whether the block shall be predicted once more although nothing of it is open"""


@dataclass(frozen=True)
class Finish:
    """The end of a text: cut to ``length``, where given, and write all that is open with its candidates."""

    length: int | None = None
    fills: bool = False


@dataclass(frozen=True, eq=False)
class Turn:
    """A forward pass that is about to happen, as a cache policy sees it."""

    canvas: Canvas
    block: Block
    forward_in_block: int
    upcoming: Ids | None = None
    """the positions that will be committed after it, where the selector's order is known in advance"""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows a forward pass computes, see Query."""

    computed: Ids | None = None
    stores: bool = False
    compared: Plan | None = None
    """another plan for the same canvas: the cache policy is told both predictions, the text follows this"""
