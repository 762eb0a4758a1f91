"""Passes of a model in bfloat16 or float16, computed in float32, without a second copy of its weights.

What rounding hides can be seen then: whether two ways to compute the same logits differ by a mask or by a
position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_ROUNDED = (torch.bfloat16, torch.float16)
_PART = 1 << 21
"""Values of a weight that are converted at a time: they stay in the cache."""


class FullPrecision(TorchFunctionMode):
    """Inside, every operation gets float32 where it would get fewer bits, and where it is asked for them.

    A weight is converted for each operation that reads it, and forgotten again: of a layer, a part at a time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and args[1].dtype in _ROUNDED:
            return _linear(*args, **(kwargs or {}))
        if func is functional.embedding:  # which looks rows up, and one seldom needs all of them
            return _precise(func(*args, **(kwargs or {})))
        return func(*tree_map(_precise, args), **tree_map(_precise, kwargs or {}))


def _linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    states = states.float()
    parts = torch.split(weight, max(1, _PART // weight.shape[1]))
    result = torch.cat([functional.linear(states, part.float()) for part in parts], dim=-1)
    return result if bias is None else result + bias.float()


def _precise(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in _ROUNDED else value
    return torch.float32 if isinstance(value, torch.dtype) and value in _ROUNDED else value
