"""Which slots the tokens of a draft step see, and the attention masks that a transformers model wants of it.

A step says what a row sees of its cached slots, once for all its tokens, and what each token sees of the
last few slots, those of its tree. Whoever wants a matrix of tokens and slots makes it where it computes.
transformers hands a 4-D mask through unchanged (no check), so it must be additive, of the model's dtype, and
as wide as the keys the cache returns. Models that mix full and sliding layers take a dictionary of masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Visible = NDArray[np.bool_]
Positions = NDArray[np.int64]
AdditiveMask = torch.Tensor | dict[str, torch.Tensor]
"""What modules take: by kind of layer, where there are several"""

_WINDOWS: dict[str, str | None] = {
    "full_attention": None,
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}


@dataclass(frozen=True, slots=True)
class AttentionKinds:
    """The layer kinds of one model: kind -> size of its window or chunk, None for full attention."""

    sizes: dict[str, int | None]

    @classmethod
    def of(cls, config: Any) -> AttentionKinds:
        """Read them off a config. Raises KeyError for a kind that no mask can express."""
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        if not kinds:
            window = getattr(config, "sliding_window", None)
            kinds = ["sliding_attention" if window else "full_attention"]
        sizes: dict[str, int | None] = {}
        for kind in kinds:
            attribute = _WINDOWS[kind]
            sizes[kind] = getattr(config, attribute) if attribute else None
        return cls(sizes)

    def first_positions(self, query_positions: Positions) -> Positions:
        """The first position that each kind of layer shows to queries [..]: int [kinds, ..].

        That is all a window or a chunk hides: what lies behind a query is no part of its text.
        """
        found = np.zeros((len(self.sizes), *query_positions.shape), np.int64)
        for index, (kind, size) in enumerate(self.sizes.items()):
            if size is not None and kind == "sliding_attention":
                found[index] = query_positions - size + 1
            elif size is not None:
                found[index] = query_positions // size * size
        return found


@dataclass(frozen=True, slots=True)
class TreeMask:
    """What the new tokens of a pass see, whose slots are the last ones.

    ``visible`` and ``positions`` may have room to spare, for more rows and more slots.
    """

    kinds: AttentionKinds
    num_slots: int
    """those of the new tokens included"""
    visible: Visible
    """[rows, slots], contiguous: the cached slots that all new tokens of a row see"""
    positions: Positions
    """[rows, slots], contiguous: where in its text lies what a slot holds, or will hold"""
    own: Visible
    """[batch, tokens, last slots], the new ones at least: what each token sees besides; padding nothing"""

    @classmethod
    def causal(cls, kinds: AttentionKinds, positions: Positions) -> TreeMask:
        """Of whole texts, nothing of which is cached, at positions [batch, tokens]."""
        batch, tokens = positions.shape
        nothing, positions = np.zeros((batch, tokens), np.bool_), np.ascontiguousarray(positions)
        return cls(kinds, tokens, nothing, positions, np.tile(np.tri(tokens, dtype=np.bool_), (batch, 1, 1)))

    @property
    def query_positions(self) -> Positions:
        """[batch, tokens]"""
        batch, tokens, _ = self.own.shape
        return self.positions[:batch, self.num_slots - tokens : self.num_slots]

    @property
    def is_token(self) -> Visible:
        """[batch, tokens]: whether it is one, and no padding: tokens see themselves."""
        tokens, last = self.own.shape[1:]
        return np.diagonal(self.own[:, :, last - tokens :], axis1=1, axis2=2)

    def additive(self, dtype: torch.dtype, device: torch.device) -> AdditiveMask:
        """[batch, 1, tokens, slots] of each kind of layer."""
        batch, _, last = self.own.shape
        spans = (self.visible, self.positions)
        visible, positions = (torch.from_numpy(one[:batch, : self.num_slots]).to(device) for one in spans)
        bounds = self.kinds.first_positions(self.query_positions)
        own_slots = torch.arange(self.num_slots - last, self.num_slots, device=device)
        tensors = torch.from_numpy(self.own).to(device), torch.from_numpy(bounds).to(device)
        return additive_masks(self.kinds, visible, positions, tensors[0], own_slots, tensors[1], dtype)


def additive_masks(  # noqa: PLR0917
    kinds: AttentionKinds,
    visible: torch.Tensor,
    positions: torch.Tensor,
    own: torch.Tensor,
    own_slots: torch.Tensor,
    first_positions: torch.Tensor,
    dtype: torch.dtype,
) -> AdditiveMask:
    """As TreeMask.additive, of tensors on one device; ``own_slots`` are the slots of the columns of ``own``.

    Waits for nothing, so that it can be recorded.
    """
    seen = visible[:, None].repeat(1, own.shape[1], 1)
    seen = seen.index_copy(2, own_slots, seen.index_select(2, own_slots) | own)
    masks = {}
    for index, (kind, size) in enumerate(kinds.sizes.items()):
        bounds = first_positions[index][:, :, None]
        shown = seen if size is None else seen & (positions[:, None] >= bounds)
        masks[kind] = _additive(~shown, dtype)
    return next(iter(masks.values())) if len(masks) == 1 else masks


@contextmanager
def short_windows(config: Any, size: int = 6) -> Iterator[None]:
    """Meanwhile, windows and chunks of a config are so many tokens: short texts reach beyond them."""
    names = [name for name in _WINDOWS.values() if name is not None]
    before = {name: getattr(config, name, None) for name in names}
    longer = {name: value for name, value in before.items() if type(value) is int and value > size}
    for name in longer:
        setattr(config, name, size)
    try:
        yield
    finally:
        for name, value in longer.items():
            setattr(config, name, value)


def additive_mask(allowed: Visible, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[batch, query, key] bool -> [batch, 1, query, key]: 0 where allowed, else the dtype's minimum."""
    return _additive(torch.from_numpy(~allowed), dtype).to(device)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Not -inf: a row that may see nothing would become NaN; and not below float32, in which many models take
    the softmax. Not bool: eager attention would add it as 0 and 1.
    """
    least = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, least).unsqueeze(1)
