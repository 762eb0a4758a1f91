"""Copies between host and device that do not wait for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, ordered before what is computed there next; shares memory on the CPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # from ordinary memory, CUDA would wait


def to_host(tensor: torch.Tensor, *, wait: bool) -> torch.Tensor:
    """A copy on the host; shares memory on the CPU.

    Without ``wait``, what a GPU computes is there once it has been waited for.
    """
    return tensor.to("cpu", non_blocking=not wait)
