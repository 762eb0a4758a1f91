"""Which token each row was computed from when it was stored, so that edited ones are computed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hasten.diffusion.canvas import Canvas, Ids, Mask
from hasten.diffusion.steps import Plan

_NEVER = -1


@dataclass(slots=True)
class StoredRows:
    """The state that cache policies share."""

    token_ids: Ids
    """int64 [length]: what was there when the row was stored; -1 where none is"""
    num_passes: int = 0
    """of the whole canvas, predictions made ahead not among them"""

    @classmethod
    def of(cls, canvas: Canvas) -> Self:
        """Nothing is stored yet."""
        return cls(np.full(len(canvas), _NEVER, dtype=np.int64))

    def changed(self, canvas: Canvas) -> Mask:
        """bool [length]: where the canvas holds another token now, or no row is stored."""
        changed: Mask = self.token_ids[: len(canvas)] != canvas.token_ids
        return changed

    def stores(self, canvas: Canvas, computed: Mask | None = None) -> Plan:
        """The plan that computes these rows, or all, and stores them."""
        self.num_passes += 1
        self.token_ids = self.token_ids[: len(canvas)]
        if computed is None or computed.all():
            self.token_ids = canvas.token_ids.copy()
            return Plan(None, stores=True)
        self.token_ids[computed] = canvas.token_ids[computed]
        return Plan(np.flatnonzero(computed), stores=True)

    def forget(self, start: int) -> None:
        """Rows from ``start`` on are no longer good."""
        self.token_ids[start:] = _NEVER
