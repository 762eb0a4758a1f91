"""Which attention mask a transformers model wants, and its values for a draft step.

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

    def visible(
        self, visible: Visible, query_positions: Positions, key_positions: Positions
    ) -> dict[str, Visible]:
        """What each kind of layer may see, bool [batch, query, key].

        Args:
            visible: bool [batch, query, key], what the tree and the holes allow.
            query_positions: int [batch, query]; key_positions: int [batch, key].
        """
        found = {}
        for kind, size in self.sizes.items():
            allowed = visible
            if size is not None and kind == "sliding_attention":
                distance = query_positions[:, :, None] - key_positions[:, None, :]
                allowed = visible & (distance < size)
            elif size is not None:
                allowed = visible & (query_positions[:, :, None] // size == key_positions[:, None, :] // size)
            found[kind] = allowed
        return found


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
    """[batch, query, key] bool -> [batch, 1, query, key]: 0 where allowed, else the dtype's minimum.

    Not -inf: a row that may see nothing would become NaN; and not below float32, in which many models take
    the softmax. Not bool: eager attention would add it as 0 and 1.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype)
    hidden = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    mask.masked_fill_(torch.from_numpy(~allowed), hidden)
    return mask.unsqueeze(1).to(device)
