# ruff: noqa: PLR0917
"""Attention over a prefix that all rows of a batch share, merged with attention over each row's own slots.

Source: Hydragen (arXiv 2402.05099). Attention over a union of keys is the mean of the attentions over its
parts, weighted by the sums of their exponentials; so the queries of all rows read the prefix in one product,
and its keys and values exist once. Hooked in through transformers' attention interface. Knows no model: which
ones compute their attention that way, and only that way, is found out by trying (shared_prefix.py).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hasten.errors import ModelError

States = tuple[torch.Tensor, torch.Tensor]
"""keys and values, each [batch, kv heads, slots, channels]"""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Cached tokens every row sees: ``layers[layer_idx]``, a batch of one; None for an unused layer."""

    layers: list[States | None]
    length: int


_NAME = "hasten_shared_prefix_over_"
_IMPLEMENTATIONS = ("sdpa", "eager")
_HARMLESS = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "return_dict"}
_ACTIVE: ContextVar[Prefix | None] = ContextVar("hasten_shared_prefix", default=None)
_LOCK = threading.RLock()  # the config belongs to every thread that uses the model


@contextmanager
def attending_to(prefix: Prefix, config: Any) -> Iterator[None]:
    """Inside, every attention of the model with this config sees the prefix as well as its own keys.

    Raises ModelError for a model whose attention is neither "sdpa" nor "eager".
    """
    with _LOCK:
        original = config._attn_implementation
        if original not in _IMPLEMENTATIONS:
            raise ModelError(
                f"attn_implementation={original!r} cannot be joined with a shared prefix; "
                f"load the model with {' or '.join(_IMPLEMENTATIONS)}"
            )
        token = _ACTIVE.set(prefix)
        config._attn_implementation = _register(original)
        try:
            yield
        finally:
            config._attn_implementation = original
            _ACTIVE.reset(token)


def _register(original: str) -> str:
    name = _NAME + original
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_attention, original))
    return name


def _attention(
    original: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """As transformers calls it: [batch, heads, tokens, channels] -> [batch, tokens, heads, channels]."""
    prefix = _ACTIVE.get()
    if prefix is None:  # another thread runs the same model
        function = _original_function(original, module)
        result: tuple[torch.Tensor, Any] = function(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return result
    unknown = sorted(
        name
        for name, option in options.items()
        if name not in _HARMLESS and option is not None and option is not False
    )
    states = prefix.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    if unknown or states is None or attention_mask is None:
        raise ModelError(
            f"{type(module).__name__} wants {', '.join(unknown) or 'attention without a mask'}, which cannot "
            "be split between a prefix and the rest; use shared_prefix='off'"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return prefix_attention(query, key, value, attention_mask, states, scale), None


def _original_function(original: str, module: torch.nn.Module) -> Callable[..., Any]:
    """Every model file brings its own eager attention; the others are common."""
    if original in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[original]  # type: ignore[no-any-return]
    found: Callable[..., Any] = vars(inspect.getmodule(type(module)))["eager_attention_forward"]
    return found


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    prefix: States,
    scale: float,
) -> torch.Tensor:
    """Attention over the prefix and, under the mask, over each row's own keys.

    Args:
        query: [batch, heads, tokens, channels].
        key: [batch, kv heads, slots, channels]; value likewise.
        mask: additive and finite, [batch, 1, tokens, slots].
        prefix: keys and values with a batch of one, which every token sees whole.
        scale: of the products.

    Returns:
        [batch, tokens, heads, channels], as transformers wants it.
    """
    batch, heads, tokens, channels = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads  # query heads of one kv head become rows beside its tokens, so no key is copied
    query = query.reshape(batch, kv_heads, group * tokens, channels)
    own = attend(query, key, value, mask.repeat(1, 1, group, 1) if group > 1 else mask, scale)
    stacked = query.transpose(0, 1).reshape(1, kv_heads, batch * group * tokens, channels)
    output, lse = attend(stacked, *prefix, None, scale)
    common = (
        output.reshape(kv_heads, batch, group * tokens, -1).transpose(0, 1),
        lse.reshape(kv_heads, batch, group * tokens).transpose(0, 1),
    )
    merged, _ = merge(common, own)
    return merged.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous()


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention [batch, heads, tokens, channels], log of the sum of exponentials [batch, heads, tokens]).

    Without any keys: 0 and -inf. A finite mask that hides all keys leaves a sum that has no weight beside
    any other.
    """
    if not key.shape[2]:
        output = query.new_zeros(*query.shape[:3], value.shape[3])
        return output, torch.full_like(query[..., 0], -torch.inf, dtype=_precise(query.dtype))
    if query.device.type == "cpu" and key.shape[3] == value.shape[3]:
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        return found
    scores = (query @ key.transpose(2, 3)).to(_precise(query.dtype)) * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def merge(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp over the keys of both; a log-sum-exp of -inf means no keys."""
    (output, lse), (other_output, other_lse) = one, other
    weight = torch.sigmoid(other_lse - lse).masked_fill(other_lse == -torch.inf, 0.0)
    mixed = torch.lerp(output.to(lse.dtype), other_output.to(lse.dtype), weight[..., None])
    return mixed.to(output.dtype), torch.logaddexp(lse, other_lse)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
