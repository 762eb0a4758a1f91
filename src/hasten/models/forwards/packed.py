"""Linear layers with weights laid out once for the CPU's matrix kernels (oneDNN).

A draft step multiplies few rows by every weight. PyTorch's own CPU path re-reads the weights in a layout that
suits many rows; the packed layout makes 16 rows cost little more than one. Only models hasten loaded itself
are packed, layer by layer, so that memory holds one copy.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from hasten.errors import ConfigError
from hasten.models.forwards.stand_in import StandIn, is_plain

_HINT_ROWS = 16


class PackedLinear(StandIn):
    """Computes what an nn.Linear computes from weights in another order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias


class OneDnnLinear(PackedLinear):
    """Of the given nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
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


def pack_linears(model: Any) -> None:
    """Pack every linear layer of a CPU model; stand_in.restore gives them back.

    Raises ConfigError if nothing can be packed.
    """
    largest = largest_linear(model)
    if largest is None or not can_pack(largest):
        raise ConfigError(
            "forward='packed' needs linear layers on the CPU, in float32, or in bfloat16 that the CPU "
            "computes with; use 'auto'"
        )
    users = Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))
    packed: dict[nn.Linear, OneDnnLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if (
                type(child) is nn.Linear
                and is_plain(child)
                and can_pack(child)
                and not _reads_weight(parent, name)
            ):
                if child not in packed:
                    packed[child] = OneDnnLinear(child)
                    if users[id(child.weight)] == 1:  # a tied embedding still reads it
                        packed[child].release()
                setattr(parent, name, packed[child])


def largest_linear(model: Any) -> nn.Linear | None:
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    return max(linears, key=lambda linear: linear.weight.numel(), default=None)


def _reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module looks at its layer's weight in every pass (T5: at its dtype), each time a copy.

    Or merges something into it, as the adapters of PEFT do.
    """
    if type(parent).__module__.startswith("peft."):
        return True
    try:
        return f"self.{name}.weight" in inspect.getsource(type(parent).forward)
    except (OSError, TypeError):  # no source to look at
        return False


def can_pack(linear: nn.Linear) -> bool:
    """Whether oneDNN packs a layer on this CPU: in float32, and in bfloat16 if the CPU computes with it."""
    return linear.weight.device.type == "cpu" and _packs(linear.weight.dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Found out by trying: what a build of PyTorch wants of a CPU is nowhere to be asked."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), _HINT_ROWS)
    except RuntimeError:
        return False
    return True


@torch.inference_mode()
def packed_ratio(linear: nn.Linear) -> float:
    """Time of 1 and of 16 rows through a packed layer, over that through the layer itself."""
    layers: tuple[nn.Module, ...] = (OneDnnLinear(linear), linear)
    spent = [0.0, 0.0]
    for rows in (1, 16):
        states = torch.randn(rows, linear.in_features).to(linear.weight.dtype)
        for index, layer in enumerate(layers):
            spent[index] += _seconds(layer, states)
    return spent[0] / spent[1]


def _seconds(layer: nn.Module, states: torch.Tensor) -> float:
    """The least of several: noise only ever adds."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        layer(states)
        times.append(time.perf_counter() - start)
    return min(times[2:])
