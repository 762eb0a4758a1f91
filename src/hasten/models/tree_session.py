"""Draft trees of a whole batch on stock attention models, with holes instead of ragged caches.

All rows append at the same cache slot. Slots of rejected nodes and of padding stay behind as *holes*: the
mask hides them, and because keys carry their rotary position already, the slot a key lies in does not
matter. Holes at the end are cut off for free; the others are compacted when they have become many.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from hasten.core import Acceptance, TopCandidates
from hasten.models.attention import AttentionKinds, additive_mask
from hasten.models.forward import PREFILL_CHUNK, Forward, join_candidates
from hasten.sampling import top_candidates
from hasten.tree import DraftTree


class _Block(NamedTuple):
    """The new tokens of one row in one pass."""

    token_ids: NDArray[np.int64]  # [tokens]
    depths: NDArray[np.int64]  # [tokens], from the first position that is not cached
    visible: NDArray[np.bool_]  # [tokens, tokens]


class TreeSession:
    """See Session. For models whose every layer takes a 4-D mask."""

    def __init__(self, forward: Forward, *, max_holes: int = 64) -> None:
        self._forward = forward
        self._kinds = AttentionKinds.of(forward.text_config)
        self._max_holes = max_holes
        self._cache: Any = (
            DynamicCache()
        )  # without a config: every layer keeps every slot; windows are masked
        self._visible = np.zeros((0, 0), np.bool_)  # [batch, slots]
        self._positions = np.zeros((0, 0), np.int64)  # [batch, slots]
        self._lengths: list[int] = []  # cached tokens of each row
        self._roots: list[int] = []
        self._block_start = 0

    def prefill(self, prompts: list[list[int]], top_k: int = 0) -> list[TopCandidates | None]:
        count = len(prompts)
        self._visible = np.zeros((count, 0), np.bool_)
        self._positions = np.zeros((count, 0), np.int64)
        self._lengths = [0] * count
        self._roots = [prompt[-1] for prompt in prompts]
        found: list[list[TopCandidates]] = [[] for _ in prompts]
        for start in range(0, max(map(len, prompts)) - 1, PREFILL_CHUNK):
            chunks = [np.asarray(prompt[:-1][start : start + PREFILL_CHUNK], np.int64) for prompt in prompts]
            blocks = [_Block(chunk, np.arange(len(chunk)), _causal(len(chunk))) for chunk in chunks]
            logits = self._run(blocks, logits_to_keep=0 if top_k else 1)
            for row, chunk in enumerate(chunks):
                if top_k and len(chunk):
                    found[row].append(top_candidates(logits[row, : len(chunk)], top_k))
            self._commit([np.arange(len(chunk)) for chunk in chunks])
        return [join_candidates(pieces) for pieces in found]

    def fit(self, tree: DraftTree) -> DraftTree:
        return tree

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        blocks = [
            _Block(
                np.concatenate(([root], tree.token_ids)),
                np.concatenate(([0], tree.depths())),
                tree.attention_mask(),
            )
            for root, tree in zip(self._roots, trees, strict=True)
        ]
        logits = self._run(blocks, logits_to_keep=0)
        return [logits[row, : len(block.token_ids)] for row, block in enumerate(blocks)]

    def keep(self, acceptances: list[Acceptance]) -> None:
        self._commit([np.array([0, *(node + 1 for node in a.path)]) for a in acceptances])
        self._roots = [acceptance.token_ids[-1] for acceptance in acceptances]
        self._compact_if_worth_it()

    def retain(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self._forward.device)
        for layer in self._layers():
            layer.keys = layer.keys.index_select(0, index)
            layer.values = layer.values.index_select(0, index)
        self._visible, self._positions = self._visible[rows], self._positions[rows]
        self._lengths = [self._lengths[row] for row in rows]
        self._roots = [self._roots[row] for row in rows]

    def _run(self, blocks: list[_Block], logits_to_keep: int) -> torch.Tensor:
        """One pass over a block a row, padded to the longest; logits [batch, tokens, vocab]."""
        batch, width = self._visible.shape
        size = max(len(block.token_ids) for block in blocks)
        token_ids = np.zeros((batch, size), np.int64)
        positions = np.zeros((batch, size), np.int64)
        visible = np.zeros((batch, size, width + size), np.bool_)
        for row, (block, length) in enumerate(zip(blocks, self._lengths, strict=True)):
            count = len(block.token_ids)
            token_ids[row, :count] = block.token_ids
            positions[row] = length
            positions[row, :count] += block.depths
            visible[row, :count, :width] = self._visible[row]
            visible[row, :count, width : width + count] = block.visible
        self._positions = np.concatenate((self._positions, positions), axis=1)
        self._visible = np.concatenate((self._visible, np.zeros((batch, size), np.bool_)), axis=1)
        self._block_start = width
        mask = self._kinds.masks(
            visible,
            positions,
            self._positions,
            lambda allowed: additive_mask(allowed, self._forward.dtype, self._forward.device),
        )
        return self._forward(token_ids, positions, mask, self._cache, logits_to_keep)

    def _commit(self, kept: list[NDArray[np.int64]]) -> None:
        """Make these tokens of the last pass visible, and cut the slots after the last visible one."""
        for row, tokens in enumerate(kept):
            self._visible[row, self._block_start + tokens] = True
            self._lengths[row] += len(tokens)
        self._truncate(1 + int(np.flatnonzero(self._visible.any(axis=0))[-1]))

    def _truncate(self, width: int) -> None:
        if width < self._visible.shape[1]:
            self._visible, self._positions = self._visible[:, :width], self._positions[:, :width]
            for layer in self._layers():
                layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]

    def _compact_if_worth_it(self) -> None:
        width = max(self._lengths)
        if self._visible.shape[1] - width <= max(self._max_holes, width // 8):
            return
        order = np.argsort(~self._visible, axis=1, kind="stable")[:, :width]  # visible slots first, in order
        index = torch.from_numpy(order).to(self._forward.device)[:, None, :, None]
        for layer in self._layers():
            layer.keys = layer.keys.gather(2, _spread(index, layer.keys))
            layer.values = layer.values.gather(2, _spread(index, layer.values))
        self._positions = np.take_along_axis(self._positions, order, axis=1)
        self._visible = np.take_along_axis(self._visible, order, axis=1)

    def _layers(self) -> list[Any]:
        return [layer for layer in self._cache.layers if layer.is_initialized]


def _spread(index: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    batch, heads, _, channels = states.shape
    return index.expand(batch, heads, index.shape[2], channels)


def _causal(size: int) -> NDArray[np.bool_]:
    return np.tril(np.ones((size, size), np.bool_))
