"""Matrices as tiles of 16 outputs, and the modules of transformers that read them from there.

A pass over few rows reads every weight once, in this order. The modules share the tiles: whatever runs the
transformers model itself still works, and memory holds the weights once.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hasten.models.forwards.compiled.linear import multiply, share
from hasten.models.forwards.compiled.machine import barrier, sources_digest
from hasten.models.forwards.compiled.products import LANES, MAX_ROWS, PANEL, packed_kind
from hasten.models.forwards.compiled.rows import pack, packed_start
from hasten.models.forwards.compiled.thread_pool import thread_pool
from hasten.models.forwards.packed import PackedLinear
from hasten.models.forwards.stand_in import StandIn

DTYPES = {torch.float32: np.float32, torch.bfloat16: np.uint16}


def num_tiles(num_outputs: int) -> int:
    return -(-num_outputs // LANES)


class Tiles:
    """The weights of a model, one matrix after the other.

    Args:
        num_values: room for all of them, with their padding.
    """

    def __init__(self, num_values: int, dtype: torch.dtype) -> None:
        # numpy asks for huge pages, without which looking addresses up slows the stream down.
        self.values: NDArray[Any] = np.empty(num_values, DTYPES[dtype])
        self.tensor = torch.from_numpy(self.values).view(dtype)
        self.num_threads = torch.get_num_threads()
        """of those who multiply with them"""
        self._filled = 0

    def add(self, *matrices: torch.Tensor) -> int:
        """Append matrices [outputs, inner] of one shape, their tiles in turns; returns their place.

        Outputs are filled up with 0 to whole tiles.
        """
        outputs, inner = matrices[0].shape
        at, step = self._filled, len(matrices)
        self._filled += step * num_tiles(outputs) * LANES * inner
        for turn, matrix in enumerate(matrices):
            target = self.view(at, step, turn, outputs, inner)
            whole = outputs // LANES
            shape = (whole, LANES, *target.shape[1:4:2])
            target[:whole] = matrix[: whole * LANES].view(shape).transpose(1, 2)
            if rest := outputs % LANES:
                target[whole] = 0
                target[whole, :, :rest] = matrix[-rest:].view(rest, *shape[2:]).transpose(0, 1)
        return at

    def view(self, at: int, step: int, turn: int, outputs: int, inner: int) -> torch.Tensor:
        """[tiles, units, 16, values of a unit] of the matrix that has every ``step``-th tile."""
        count, values = num_tiles(outputs), 4 // self.tensor.itemsize
        every = self.tensor[at : at + step * count * LANES * inner]
        return every.view(count, step, inner // values, LANES, values)[:, turn]


class TiledLinear(PackedLinear):
    """Computes what a linear layer computes whose weight lies in tiles."""

    def __init__(
        self,
        linear: nn.Linear,
        tiles: Tiles,
        at: int,
        step: int = 1,
        turn: int = 0,
        *,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__(linear)
        self._tiles = tiles
        self._place = (at, step, turn)
        self._order = order

    @property
    def weight(self) -> torch.Tensor:
        tiles = self._tiles.view(*self._place, self.out_features, self.in_features)
        rows = tiles.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]
        return rows if self._order is None else rows[self._order]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.reshape(-1, self.in_features)
        count, width = len(rows), num_tiles(self.out_features) * LANES
        filled = -(-count // MAX_ROWS) * MAX_ROWS
        x = np.zeros(filled * self.in_features, packed_kind(self._tiles.values))
        out = np.empty((filled, width), np.float32)
        at, step, turn = self._place
        tile = LANES * self.in_features
        places = (at + turn * tile, step * tile, num_tiles(self.out_features))
        values = rows.float().contiguous().numpy().reshape(-1)
        arrivals = np.zeros(1, np.int64)
        thread_pool(self._tiles.num_threads).run(
            _apply, values, count, self.in_features, x, self._tiles.values, *places, out, arrivals
        )
        result = torch.from_numpy(out[:count, : self.out_features]).to(states.dtype)
        if self._order is not None:
            result = result[:, self._order]
        if self.bias is not None:
            result = result + self.bias
        return result.view(*states.shape[:-1], self.out_features)


class TiledEmbedding(StandIn):
    """Looks tokens up in the matrix that the head is made of, where both are the same one."""

    def __init__(self, embedding: nn.Embedding, head: TiledLinear) -> None:
        super().__init__(embedding)
        self.num_embeddings, self.embedding_dim = head.out_features, head.in_features
        self._head = [head]  # in a list, so that it is not a part of this module too

    @property
    def weight(self) -> torch.Tensor:
        return self._head[0].weight

    def saved_weight(self) -> torch.Tensor:
        return self._head[0].saved_weight()

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        [head], [embedding] = self._head, self._replaced
        tiles = head._tiles.view(*head._place, head.out_features, head.in_features)
        return scaled(tiles[token_ids // LANES, :, token_ids % LANES].flatten(-2), embedding)


def scaled(rows: torch.Tensor, embedding: Any) -> torch.Tensor:
    """What an embedding module makes of rows of its weight, bit for bit: Gemma and its kin multiply them."""
    scale = getattr(embedding, "embed_scale", None)
    return rows if scale is None else rows * (scale.to(rows.dtype) if torch.is_tensor(scale) else scale)


@numba.njit(nogil=True, error_model="numpy", inline="always")
def _multiply(thread, num_threads, values, count, size, x, w, w_at, w_tile, num_tiles, out, arrivals):
    """Rows of float32 values times the tiles."""
    first, last = share(count, 1, thread, num_threads)
    for row in range(first, last):
        start, distance = packed_start(x, row, count, size)
        pack(values, row * size, size, x, start, distance)
    phase = barrier(arrivals, num_threads, 1)
    first, last = share(num_tiles, PANEL, thread, num_threads)
    multiply(x, count, size, w, w_at, w_tile, first, last, out.reshape(-1), out.shape[1])
    barrier(arrivals, num_threads, phase)


def _stored(sources):
    """See step.py."""

    @numba.njit(nogil=True, error_model="numpy", cache=True)
    def apply(thread, num_threads, values, count, size, x, w, w_at, w_tile, num_tiles, out, arrivals):
        if sources >= 0:
            _multiply(thread, num_threads, values, count, size, x, w, w_at, w_tile, num_tiles, out, arrivals)

    return apply


_apply = _stored(sources_digest())
