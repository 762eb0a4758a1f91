"""The least time a pass can take: that of reading every weight once as fast as this machine reads memory.

Knows no caches: weights that stay in the processor's between two passes may be faster than this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hasten.bench.models import OpenModel
from hasten.models.causal_lm import CausalLM
from hasten.models.target import Target

ROWS = (1, 16)
"""rows of a pass: plain decoding's, and a usual draft tree's"""

_MIN_BYTES = 2**28
_CACHES = 4
"""so many times the processor's last cache are read, so that nearly all comes from memory"""
_REPEATS = 8
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """What the memory allows a model, and what its passes take."""

    bytes_per_second: float
    """read, by all threads together"""
    weight_bytes: int
    """of one copy of the weights"""
    held_bytes: int
    """of all weights that are held, second copies included"""
    cache_bytes_per_token: int | None
    """keys and values; None for a model that is not known to have any"""
    least_ms: float
    """to read the weights once"""
    forward_ms: Mapping[int, float]
    """rows -> milliseconds of a pass"""
    stock_forward_ms: Mapping[int, float] | None
    """the same of transformers' own layers, where there is such a copy"""

    def as_json(self) -> dict[str, Any]:
        """With the passes as multiples of the least time."""
        found = asdict(self)
        for name in ("forward_ms", "stock_forward_ms"):
            if (spent := found[name]) is not None:
                found[name] = {str(rows): round(one, 4) for rows, one in spent.items()}
                found[name.replace("_ms", "_times_least")] = {
                    str(rows): round(one / self.least_ms, 3) for rows, one in spent.items()
                }
        return found | {"least_ms": round(self.least_ms, 4), "bytes_per_second": round(self.bytes_per_second)}


def measure_limit(
    opened: OpenModel, stock_ms: Mapping[int, float] | None = None, cost: Mapping[int, float] | None = None
) -> MemoryLimit:
    """Takes a few hundred megabytes for a moment.

    Args:
        stock_ms: what passes of ROWS rows take with transformers' own layers, if that was measured.
        cost: what ``measure_cost`` found for the model, if it was asked before.
    """
    target = opened.language_model.target
    weight_bytes = one_copy(target.num_bytes(), opened.num_parameters, target.dtype)
    bandwidth = read_bandwidth(target.device, torch.get_num_threads())
    return MemoryLimit(
        bandwidth,
        weight_bytes,
        target.num_bytes(),
        cache_bytes_per_token(target),
        least_milliseconds(weight_bytes, bandwidth),
        {rows: spent for rows, spent in (cost or target.measure_cost(rows=ROWS)).items() if rows in ROWS},
        stock_ms,
    )


def least_milliseconds(num_bytes: int, bytes_per_second: float) -> float:
    """To read so many bytes once."""
    return 1000 * num_bytes / bytes_per_second


def one_copy(held_bytes: int, num_parameters: int, dtype: torch.dtype) -> int:
    """Bytes of the weights, each counted once; ``held_bytes`` where fewer are held than parameters say."""
    return min(held_bytes, num_parameters * dtype.itemsize) if num_parameters else held_bytes


def cache_bytes_per_token(target: Target) -> int | None:
    """Of keys and values, by the sizes in the config; None where it does not name them."""
    if not isinstance(target, CausalLM):
        return None
    config = target.forward.text_config
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if not layers or not heads or not getattr(config, "hidden_size", None):
        return None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * layers * kv_heads * channels * target.dtype.itemsize)


@cache
def read_bandwidth(device: torch.device, num_threads: int) -> float:
    """Bytes a second, the best of several reductions over memory larger than the caches.

    Args:
        num_threads: torch's number, which the measurement runs with; part of what is remembered.
    """
    words = torch.ones(_bytes_to_read(device) // 8, dtype=torch.int64, device=device)
    floats = words.view(torch.float32)
    reductions: list[Callable[[], torch.Tensor]] = [words.sum, floats.max]
    best = min(_seconds(reduction, device) for _ in range(_REPEATS) for reduction in reductions)
    return words.nbytes / best


def _seconds(reduction: Callable[[], torch.Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    reduction()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _bytes_to_read(device: torch.device) -> int:
    if device.type == "cuda":
        return 4 * _MIN_BYTES
    return max(_MIN_BYTES, _CACHES * _last_cache_bytes())


def _last_cache_bytes() -> int:
    """Of the processor's largest cache, 0 where Linux does not say."""
    sizes = [path.read_text().strip() for path in _CPU_CACHES.glob("index*/size")]
    return max((int(size.removesuffix("K")) * 1024 for size in sizes if size.endswith("K")), default=0)
