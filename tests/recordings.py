"""What a GPU does with a recording, on the CPU: the same operations on the same memory, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = "operation not permitted when stream is capturing"
"""What CUDA says of an operation that waits for its result."""
_HOST_READS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.item, torch.Tensor.cpu}
_DATA_DEPENDENT = {"nonzero", "masked_select", "_unique2"}
"""Operations whose result's size the host has to know."""


class TapeRecorder:
    """A Recorder whose replays see Python values as they were, like a CUDA graph.

    Attributes:
        num_recorded, num_replayed: passes.
    """

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    def __call__(self, run: Any) -> Any:
        run()  # as the warm-up of a GPU
        tape = _Tape()
        with _NoHostReads(), tape:
            result = run()
        self.num_recorded += 1
        result.fill_(torch.nan)  # recording computes nothing

        def replay() -> None:
            self.num_replayed += 1
            tape.replay()

        return replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        is_for_python = isinstance(result, bool | int | float | complex)
        if is_for_python or function.overloadpacket.__name__ in _DATA_DEPENDENT:
            raise RuntimeError(f"CUDA error: {WAITS} ({function})")
        self._steps.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, result in self._steps:
            inputs = {_address(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and _address(old) not in inputs:
                    old.copy_(new)


class _NoHostReads(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _HOST_READS:
            raise RuntimeError(f"CUDA error: {WAITS} ({function.__name__})")
        return function(*args, **(kwargs or {}))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
