"""Copies between host and device that do not wait for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def staged(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The values on the host, where a copy to the device can begin without waiting (``non_blocking``)."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_host(tensor: torch.Tensor, *, wait: bool) -> torch.Tensor:
    """A copy on the host; shares memory on the CPU.

    Without ``wait``, what a GPU computes is there once it has been waited for.
    """
    return tensor.to("cpu", non_blocking=not wait)
