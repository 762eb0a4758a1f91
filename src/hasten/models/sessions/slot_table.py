"""What the slots of a batch hold: which of them each row sees, and the positions of their tokens.

Arrays with room to spare, so that a step touches its own slots only, however many there are. Knows no keys
and values; those follow in slot_cache.py.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hasten.models.sessions.attention import AttentionKinds, Positions, TreeMask, Visible

_MIN_GROWTH = 256
"""Slots that full arrays gain at least; else a quarter of what they had."""


class SlotTable:
    """``width`` slots of ``num_rows`` rows. Nothing is visible in slots that are not in use.

    Args:
        visible: bool [rows, slots]; none are in use by default.
        positions: int [rows, slots].
    """

    def __init__(
        self, num_rows: int = 0, visible: Visible | None = None, positions: Positions | None = None
    ) -> None:
        self._visible = np.zeros((num_rows, 0), np.bool_) if visible is None else visible
        self._positions = np.zeros((num_rows, 0), np.int64) if positions is None else positions
        self.width = self._visible.shape[1]

    @property
    def num_rows(self) -> int:
        return len(self._visible)

    @property
    def visible(self) -> Visible:
        """[rows, width], a view."""
        return self._visible[:, : self.width]

    @property
    def positions(self) -> Positions:
        """[rows, width], a view."""
        return self._positions[:, : self.width]

    def extend(self, positions: Positions) -> int:
        """New slots for tokens at these positions [rows, count], which nobody sees yet; the first of them."""
        first: int = self.width
        self.width += positions.shape[1]
        if self.width > self._visible.shape[1]:
            room = max(self.width, first + max(first // 4, _MIN_GROWTH))
            self._visible = _widened(self._visible[:, :first], self.num_rows, room)
            self._positions = _widened(self._positions[:, :first], self.num_rows, room)
        self._positions[:, first : self.width] = positions
        return first

    def truncate(self, width: int) -> None:
        """Forget the slots from ``width`` on."""
        self._visible[:, width : self.width] = False
        self.width = min(width, self.width)

    def used_width(self) -> int:
        """Without the slots at the end that no row sees."""
        used = np.flatnonzero(self.visible.any(axis=0))
        return 1 + int(used[-1]) if len(used) else 0

    def select(self, rows: list[int]) -> None:
        """Make these the rows; one may be chosen twice."""
        self._visible, self._positions = self._visible[rows], self._positions[rows]

    def join(self, other: SlotTable) -> None:
        """Rows of another table come behind these; slots that only one of them has are hidden."""
        rows, room = self.num_rows + other.num_rows, max(self._visible.shape[1], other.width)
        for name in ("_visible", "_positions"):
            mine, theirs = getattr(self, name), getattr(other, name)
            joined = _widened(mine[:, : self.width], rows, room)
            joined[len(mine) :, : other.width] = theirs[:, : other.width]
            setattr(self, name, joined)
        self.width = max(self.width, other.width)

    def gather(self, order: NDArray[np.int64]) -> None:
        """Slot i of a row becomes what slot ``order[row, i]`` was; those behind are forgotten."""
        width = order.shape[1]
        for array in (self._visible, self._positions):
            array[:, :width] = np.take_along_axis(array, order, axis=1)
        self.truncate(width)

    def mask(self, kinds: AttentionKinds, own: Visible) -> TreeMask:
        """Of a pass over the tokens in the last slots; see TreeMask."""
        return TreeMask(kinds, self.width, self._visible, self._positions, own)


_Scalar = TypeVar("_Scalar", bound=np.generic)


def _widened(array: NDArray[_Scalar], num_rows: int, width: int) -> NDArray[_Scalar]:
    """As it is, in an array of so many rows and slots; the rest is 0."""
    widened = np.zeros((num_rows, width), array.dtype)
    widened[: array.shape[0], : array.shape[1]] = array
    return widened
