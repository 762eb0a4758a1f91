"""Linear layers with weights laid out once for the CPU's matrix kernels (oneDNN).

A draft step multiplies few rows by every weight. PyTorch's own CPU path re-reads the weights in a layout that
suits many rows; the packed layout makes 16 rows cost little more than one. Only models hasten loaded itself
are packed, layer by layer, so that memory holds one copy.
"""

from __future__ import annotations

import inspect
import time
from typing import Any, cast

import torch
from torch import nn

from hasten.errors import ConfigError

_HINT_ROWS = 16


class PackedLinear(nn.Module):
    """Computes what an nn.Linear computes from weights in another order."""

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """A plain copy of the weight; for those who look at shapes and dtypes, not for speed."""
        raise NotImplementedError


class OneDnnLinear(PackedLinear):
    """Of the given nn.Linear, whose own weight is not kept."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias)
        weight = linear.weight.detach()
        self._dtype = weight.dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _HINT_ROWS)

    @property
    def weight(self) -> torch.Tensor:
        return cast(torch.Tensor, self._packed.to_dense(self._dtype))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return cast(
            torch.Tensor,
            torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], ""),
        )


def pack_linears(model: Any, *, always: bool = False) -> bool:
    """Pack every linear layer of a CPU model if a quick measurement says it pays; True if it did.

    The model can no longer be trained or saved afterwards.

    Args:
        always: pack without measuring. Raises ConfigError if nothing can be packed.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    largest = max(linears, key=lambda linear: linear.weight.numel(), default=None)
    packable = largest is not None and _can_pack(largest)
    if always and not packable:
        raise ConfigError(
            "forward='packed' needs linear layers in float32 or bfloat16 on the CPU; use 'auto'"
        )
    if largest is None or not packable or not (always or _pays(largest)):
        return False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _can_pack(child) and not _reads_weight(parent, name):
                setattr(parent, name, OneDnnLinear(child))
    return True


def _reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module looks at its layer's weight in every pass (T5: at its dtype), each time a copy."""
    try:
        return f"self.{name}.weight" in inspect.getsource(type(parent).forward)
    except (OSError, TypeError):  # no source to look at
        return False


def _can_pack(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    )


@torch.inference_mode()
def _pays(linear: nn.Linear) -> bool:
    """A single row must not become slower by more than noise, and 16 rows must become faster."""
    packed = OneDnnLinear(linear)
    ratios = []
    for rows in (1, 16):
        states = torch.randn(rows, linear.in_features).to(linear.weight.dtype)
        ratios.append(_seconds(packed, states) / _seconds(linear, states))
    return ratios[0] < 1.05 and ratios[1] < 0.95


def _seconds(layer: nn.Module, states: torch.Tensor) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        layer(states)
        times.append(time.perf_counter() - start)
    return min(times[2:])
