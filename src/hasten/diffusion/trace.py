"""What a diffusion text cost, and what happened in each step: for streams, plots, training data and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.diffusion.canvas import Block, Ids


@dataclass(slots=True)
class DiffusionStats:
    """Counters of one canvas. Times are wall-clock milliseconds of the passes it took part in."""

    num_forwards: int = 0
    """model forward passes that the canvas took part in"""
    num_rows: int = 0
    """positions computed in them, those of drafted canvases included"""
    num_ahead: int = 0
    """steps that needed no pass of their own, because a draft had foreseen them"""
    num_tokens: int = 0
    """positions written"""
    forward_ms: float = 0.0
    other_ms: float = 0.0

    @property
    def num_steps(self) -> int:
        """Times that something was decided: by a pass of its own or by one made ahead."""
        return self.num_forwards + self.num_ahead

    @property
    def tokens_per_forward(self) -> float:
        return self.num_tokens / self.num_forwards if self.num_forwards else 0.0

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.other_ms

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, derived values included."""
        counters = ("num_forwards", "num_rows", "num_ahead", "num_tokens", "num_steps")
        return {
            **{name: getattr(self, name) for name in counters},
            "tokens_per_forward": round(self.tokens_per_forward, 4),
            "forward_ms": round(self.forward_ms, 3),
            "other_ms": round(self.other_ms, 3),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One step of one canvas. All arrays are its own."""

    sequence: int
    forward: int
    """the pass whose prediction was used, counted from 1"""
    is_ahead: bool
    """whether that prediction was made before its canvas came up"""
    block: Block
    num_rows: int
    """positions computed for this step; 0 where its prediction was made ahead"""
    positions: Ids
    """int64 [n]: what was written"""
    token_ids: Ids
    """int64 [n]"""
    confidence: NDArray[np.float64]
    """float64 [n]: the prediction's probability of each written token"""
    reopened: Ids
    """int64: positions that were taken back"""
    edited: Ids
    """int64: positions whose token was replaced"""
    canvas_ids: Ids
    """int64 [length]: the canvas after the step, open positions as the model now guesses them"""
    is_open: NDArray[np.bool_]
    """bool [length]: what is only guessed"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sequence": self.sequence,
            "forward": self.forward,
            "is_ahead": self.is_ahead,
            "block": list(self.block),
            "num_rows": self.num_rows,
            "positions": self.positions.tolist(),
            "token_ids": self.token_ids.tolist(),
            "confidence": [round(value, 6) for value in self.confidence.tolist()],
            "reopened": self.reopened.tolist(),
            "edited": self.edited.tolist(),
            "length": len(self.canvas_ids),
            "num_open": int(self.is_open.sum()),
        }
