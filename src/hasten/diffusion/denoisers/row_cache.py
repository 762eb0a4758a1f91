"""Keys and values of canvases, a slot for each position: rows are replaced where they lie.

An unmodified transformers attention hands its new keys and values to the cache and looks at what it returns.
``RowView`` puts them at their positions, among those that were kept, so that every cache of masked diffusion
is a choice of rows. Keys are kept after the rotary embedding. Knows no policy and no mask.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache

from hasten.diffusion.canvas import Ids

Layer = tuple[torch.Tensor, torch.Tensor]
"""keys and values, [sequences, heads, slots, channels]"""


class KeptRows:
    """What is kept of some canvases. Tensors come into being with the first pass.

    Args:
        lengths: of the canvases. A slot more than the longest needs takes what nobody shall see.
    """

    def __init__(self, lengths: AbstractSequence[int]) -> None:
        self.num_sequences, self.max_length = len(lengths), max(lengths)
        self.layers: dict[int, Layer] = {}
        self._is_kept = np.zeros((self.num_sequences, self.max_length), dtype=np.bool_)

    def check(self, sequence: int, needed: NDArray[np.bool_]) -> None:
        """``needed``: bool [length]. Raises ValueError for a row that was never stored."""
        missing = np.flatnonzero(needed & ~self._is_kept[sequence, : len(needed)])
        if len(missing):
            raise ValueError(f"rows {missing} of canvas {sequence} would be read, but were never stored")

    def mark(self, sequence: int, positions: Ids) -> None:
        """These rows are kept from now on."""
        self._is_kept[sequence, positions] = True

    def layer(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> Layer:
        """The tensors of a layer, made like the given ones [.., heads, rows, channels] where there are none.

        Zeros, because what a mask hides still must not be NaN.
        """
        if number not in self.layers:
            size = (self.num_sequences, self.max_length + 1)
            made = [one.new_zeros(size[0], one.shape[1], size[1], one.shape[3]) for one in (keys, values)]
            self.layers[number] = (made[0], made[1])
        return self.layers[number]


class ComputedRows(NamedTuple):
    """The rows of one model call."""

    sequences: Ids
    """[batch]"""
    positions: Ids
    """[batch, rows]; -1 where keys and values are neither seen nor kept, as of padding"""
    stores: NDArray[np.bool_]
    """[batch]"""


class RowView(Cache):
    """The cache of one model call over a batch of rows.

    Where every sequence of the batch stores and they lie side by side, rows are written in place. Else each
    row of the batch works on a copy, and ``keep`` writes back those that store.

    Args:
        rows: what is kept.
        batch: which rows of which canvases are computed.
        end: slots that attention sees, from the first.
        in_place: whether writing in place is allowed; not if other calls of the same pass read as well.
    """

    def __init__(
        self,
        rows: KeptRows,
        batch: ComputedRows,
        end: int,
        device: torch.device,
        *,
        in_place: bool,
    ) -> None:
        super().__init__(layers=[])
        self._rows, self._end = rows, end
        self._sequences, self._positions, self._stores = sequences, positions, stores = batch
        side_by_side = bool((np.diff(sequences) == 1).all())
        self._in_place = in_place and bool(stores.all()) and side_by_side
        trash = rows.max_length if self._in_place else end
        owners = sequences if self._in_place else np.arange(len(sequences))
        self._slots = torch.from_numpy(np.where(positions < 0, trash, positions)).to(device)
        self._owners = torch.from_numpy(owners).to(device)[:, None]
        self._index = torch.from_numpy(sequences).to(device)
        self._new: dict[int, Layer] = {}

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> Layer:
        """Keys and values [batch, heads, end, channels] in the order of positions, with the new ones."""
        kept = self._rows.layer(layer_idx, key_states, value_states)
        if not self._in_place:
            self._new[layer_idx] = (key_states, value_states)
        keys, values = (
            self._merged(old, new) for old, new in zip(kept, (key_states, value_states), strict=True)
        )
        return keys, values

    def _merged(self, kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        if self._in_place:
            whole, first = kept, int(self._sequences[0])
        else:
            whole, first = kept[:, :, : self._end + 1].index_select(0, self._index), 0
        whole[self._owners, :, self._slots] = new.transpose(1, 2)
        return whole[first : first + len(self._sequences), :, : self._end]

    @torch.inference_mode()
    def keep(self) -> None:
        """Ends the pass: what shall be stored is."""
        for row in np.flatnonzero(self._stores).tolist():
            sequence, taken = int(self._sequences[row]), np.flatnonzero(self._positions[row] >= 0)
            self._rows.mark(sequence, self._positions[row, taken])
            index = torch.from_numpy(taken).to(self._slots.device)
            for number, layer in self._new.items():
                for kept, new in zip(self._rows.layers[number], layer, strict=True):
                    kept[sequence, :, self._slots[row, index]] = new[row, :, index]
        self._new = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are always given, so nothing counts from here."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that attention sees, and the position of the first."""
        return self._end, 0
