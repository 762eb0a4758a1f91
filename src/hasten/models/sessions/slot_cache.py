"""Keys and values in buffers with room to spare: new slots are written behind the others, nothing is copied.

transformers' own cache joins old and new keys into a new tensor in every layer of every pass. Here a layer is
a buffer [batch, kv heads, capacity, channels] of which ``width`` slots are in use; models get views of those.
Forgetting slots at the end is a matter of ``width`` alone, so whoever holds a view sees it overwritten by the
next pass. Knows no texts and no masks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

MIN_GROWTH = 256
"""Slots a full buffer gains at least; else a quarter of what it had."""
_MULTIPLE = 64


class SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer. Two buffers, because some models have values of other channels than keys.

    Args:
        capacity: slots the buffers shall have at least, once the first keys tell their shape.
    """

    key_buffer: torch.Tensor
    """[batch, kv heads, capacity, channels], contiguous; exists if ``is_initialized``"""
    value_buffer: torch.Tensor

    def __init__(self, capacity: int = 0) -> None:
        self.is_initialized = False
        self.width = 0
        """slots in use"""
        self._min_capacity = capacity

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]
        """A view of the slots in use; None before there are buffers."""
        return self.states()[0] if self.is_initialized else None

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        return self.states()[1] if self.is_initialized else None

    @property
    def capacity(self) -> int:
        return self.key_buffer.shape[-2] if self.is_initialized else 0

    def allocate(
        self,
        batch: int,
        kv_heads: int,
        key_channels: int,
        value_channels: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Make the buffers without keys at hand, for whoever writes into them himself."""
        self.lazy_initialization(
            torch.empty(batch, kv_heads, 0, key_channels, dtype=dtype, device=device),
            torch.empty(batch, kv_heads, 0, value_channels, dtype=dtype, device=device),
        )

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make buffers like these [.., kv heads, any, channels]. No slot is in use."""
        self.dtype, self.device = key_states.dtype, key_states.device
        capacity = _rounded(self._min_capacity)
        self.key_buffer, self.value_buffer = _zeros(key_states, capacity), _zeros(value_states, capacity)
        self.width, self.is_initialized = 0, True

    def reserve(self, capacity: int) -> None:
        """Room for this many slots in all."""
        self._min_capacity = max(self._min_capacity, capacity)
        if self.is_initialized and capacity > self.capacity:
            self.key_buffer = self._grown(self.key_buffer, _rounded(capacity))
            self.value_buffer = self._grown(self.value_buffer, _rounded(capacity))

    def _grown(self, buffer: torch.Tensor, capacity: int) -> torch.Tensor:
        grown = _zeros(buffer, capacity)
        grown.narrow(-2, 0, self.width).copy_(buffer.narrow(-2, 0, self.width))
        return grown

    def reserve_slots(self, count: int) -> int:
        """Take this many more slots into use; the first of them. They hold zeros, or what was forgotten."""
        first = self.width
        if first + count > self.capacity:
            self.reserve(max(first + count, self.capacity + max(self.capacity // 4, MIN_GROWTH)))
        self.width = first + count
        return first

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of all keys and values, these [batch, kv heads, new slots, channels] the last of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        first = self.reserve_slots(count)
        self.key_buffer.narrow(-2, first, count).copy_(key_states)
        self.value_buffer.narrow(-2, first, count).copy_(value_states)
        return self.states()

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and values in use. Raises AttributeError before there are buffers."""
        return self.key_buffer.narrow(-2, 0, self.width), self.value_buffer.narrow(-2, 0, self.width)

    def truncate(self, width: int) -> None:
        """Forget the slots from ``width`` on."""
        self.width = min(self.width, width)

    def select(self, rows: torch.Tensor) -> None:
        """Make these, int [rows], the rows of the batch; one may be chosen twice.

        Rows that stay where they are are not copied.
        """
        if self.is_initialized:
            moved = torch.nonzero(rows.cpu() != torch.arange(len(rows)))[:, 0].to(self.device)
            rows = rows.to(self.device)
            self.key_buffer = self._selected(self.key_buffer, rows, moved)
            self.value_buffer = self._selected(self.value_buffer, rows, moved)

    def _selected(self, buffer: torch.Tensor, rows: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        used = buffer.narrow(-2, 0, self.width)
        copies = used.index_select(0, rows[moved])
        selected = _with_rows(buffer, len(rows), self.width)
        selected.narrow(-2, 0, self.width)[moved] = copies
        return selected

    def join(self, other: SlotLayer, batch: int, more: int) -> None:
        """Behind ``batch`` rows come ``more``, those of another layer; slots only one of them has are hidden.

        A layer without buffers has rows that are empty; at least one of the two has some.
        """
        if not self.is_initialized:
            _, kv_heads, _, channels = other.key_buffer.shape
            of_values = other.value_buffer.shape[3]
            self.allocate(batch, kv_heads, channels, of_values, dtype=other.dtype, device=other.device)
        width = max(self.width, other.width)
        self.reserve(width)
        self.key_buffer = _with_rows(self.key_buffer, batch + more, self.width)
        self.value_buffer = _with_rows(self.value_buffer, batch + more, self.width)
        if other.is_initialized:
            for buffer, states in zip((self.key_buffer, self.value_buffer), other.states(), strict=True):
                buffer.narrow(0, batch, more).narrow(-2, 0, other.width).copy_(states)
        self.width = width

    def gather(self, order: torch.Tensor, first: int = 0) -> None:
        """Slot ``first + i`` of a row becomes what slot ``order[row, i]`` was; those behind are forgotten.

        order: int [batch, slots].
        """
        index, count = order[:, None, :, None], order.shape[1]
        for buffer in (self.key_buffer, self.value_buffer):
            moved = buffer.gather(2, index.expand(-1, buffer.shape[1], -1, buffer.shape[3]))
            buffer.narrow(2, first, count).copy_(moved)
        self.width = first + count

    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return self.key_buffer.nbytes + self.value_buffer.nbytes if self.is_initialized else 0

    # What transformers may ask of a layer, in its own words.

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` slots. Raises ValueError for a positive number."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}) would add slots; give minus the number to forget")
        self.truncate(max(self.width + tokens_to_remove, 0))

    def reset(self) -> None:
        if self.is_initialized:
            del self.key_buffer, self.value_buffer
        self.is_initialized, self.width = False, 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            rows = torch.arange(self.key_buffer.shape[0], device=self.device)
            self.select(rows.repeat_interleave(repeats))


class SlotCache(DynamicCache):
    """``past_key_values`` of any model whose layers keep every key.

    Layers come into being with their first keys; those a model leaves out stay without buffers.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = SlotLayer
        self._min_capacity = 0

    def layer(self, index: int) -> SlotLayer:
        """One layer; those up to it are made if need be, without buffers."""
        while len(self.layers) <= index:
            self.layers.append(SlotLayer(self._min_capacity))
        return self.layers[index]

    @property
    def used_layers(self) -> list[SlotLayer]:
        """Those with buffers."""
        return [layer for layer in self.layers if layer.is_initialized]

    @property
    def width(self) -> int:
        """Slots in use."""
        return max((layer.width for layer in self.layers), default=0)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See SlotLayer."""
        return self.layer(layer_idx).update(key_states, value_states)

    def reserve(self, capacity: int) -> None:
        """Room for this many slots in every layer, also in those to come."""
        self._min_capacity = max(self._min_capacity, capacity)
        for layer in self.layers:
            layer.reserve(capacity)

    def extend(self, count: int) -> int:
        """Take this many more slots of every layer with buffers into use; the first of them."""
        first = self.width
        for layer in self.used_layers:
            layer.reserve_slots(count)
        return first

    def truncate(self, width: int) -> None:
        """Forget the slots from ``width`` on."""
        for layer in self.layers:
            layer.truncate(width)

    def select(self, rows: torch.Tensor) -> None:
        """Make these, int [rows], the rows of the batch; one may be chosen twice."""
        for layer in self.layers:
            layer.select(rows)

    def join(self, other: SlotCache, batch: int, more: int) -> None:
        """Behind these ``batch`` rows come ``more``, those of another cache of the same model.

        As wide as the wider one: slots that only the other rows have hold what multiplies to nothing.
        """
        for index in range(max(len(self.layers), len(other.layers))):
            mine, theirs = self.layer(index), other.layer(index)
            if mine.is_initialized or theirs.is_initialized:
                mine.join(theirs, batch, more)

    def place(self, layers: list[tuple[torch.Tensor, torch.Tensor] | None], at: int = 0) -> None:
        """Write keys and values [rows, kv heads, tokens, channels] of every layer into all rows at a slot."""
        for index, pair in enumerate(layers):
            layer = self.layer(index)
            if pair is not None:
                for buffer, states in zip((layer.key_buffer, layer.value_buffer), pair, strict=True):
                    buffer.narrow(-2, at, states.shape[-2]).copy_(states)

    def gather(self, order: NDArray[np.int64]) -> None:
        """Slot i of a row becomes what slot ``order[row, i]`` was; those behind are forgotten.

        order: int [batch, slots]. The slots that stay where they are at the beginning are not touched.
        """
        width = order.shape[1]
        moves = np.flatnonzero((order != np.arange(width)).any(axis=0))
        first = int(moves[0]) if len(moves) else width
        moved = torch.from_numpy(order[:, first:])
        for layer in self.used_layers:
            layer.gather(moved.to(layer.device), first)

    def blank(self, batch: int, width: int, capacity: int) -> SlotCache:
        """A cache of other rows for the same model, whose first ``width`` slots are zeros.

        Zeros, because even a hidden slot is multiplied by 0.
        """
        cache = SlotCache()
        cache.reserve(capacity)
        for index, layer in enumerate(self.layers):
            made = cache.layer(index)
            if layer.is_initialized:
                _, kv_heads, _, channels = layer.key_buffer.shape
                of_values = layer.value_buffer.shape[3]
                made.allocate(batch, kv_heads, channels, of_values, dtype=layer.dtype, device=layer.device)
        cache.extend(width)
        return cache

    def states(self) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Views of keys and values, [batch, kv heads, width, channels]; None for an unused layer."""
        return [layer.states() if layer.is_initialized else None for layer in self.layers]

    def num_bytes(self) -> int:
        """Memory of the buffers, slots that are not in use included."""
        return sum(layer.num_bytes() for layer in self.layers)

    def num_used_bytes(self) -> int:
        """Memory of the slots in use."""
        return sum(states.nbytes for layer in self.used_layers for states in layer.states())


def _with_rows(buffer: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """A buffer of so many rows, the first of them as they are: in the same memory where it has room.

    A new one has room for half as many again.
    """
    size = buffer.stride(0)
    if count <= buffer.shape[0]:
        return buffer.narrow(0, 0, count)
    room = buffer.untyped_storage().nbytes() // buffer.element_size() - buffer.storage_offset()
    if count * size <= room:
        return buffer.as_strided((count, *buffer.shape[1:]), buffer.stride())
    with torch.inference_mode(False):  # see _zeros
        grown = buffer.new_zeros(count + count // 2, *buffer.shape[1:])
    grown.narrow(0, 0, buffer.shape[0]).narrow(-2, 0, width).copy_(buffer.narrow(-2, 0, width))
    return grown.narrow(0, 0, count)


def _rounded(capacity: int) -> int:
    return -(-capacity // _MULTIPLE) * _MULTIPLE


def _zeros(like: torch.Tensor, capacity: int) -> torch.Tensor:
    """[.., capacity, channels]. No inference tensor, so that it may be written to in any mode."""
    with torch.inference_mode(False):
        return torch.zeros(*like.shape[:-2], capacity, like.shape[-1], dtype=like.dtype, device=like.device)
