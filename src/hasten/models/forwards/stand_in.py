"""What stands in a model where a module was, reads that module's weight in another order, and gives it back.

The very module is kept, so that afterwards the model is the one it was: its modules, their Parameters, who
shares them, hooks. The weight is not kept twice: meanwhile the module's own Parameter holds NaN, all of them
one value in memory.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any, NoReturn, cast

import torch
from torch import nn

from hasten.errors import ConfigError


class StandIn(nn.Module, ABC):
    """Instead of ``replaced``."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self._replaced = [replaced]  # in a list, so that it is no part of the model
        self._is_released = False
        self._copy: weakref.ref[torch.Tensor] | None = None
        self.training = False

    @property
    @abstractmethod
    def weight(self) -> torch.Tensor:
        """A plain copy of the weight; for those who look at shapes and dtypes, not for speed."""

    def release(self) -> None:
        """Let the memory of the module's own weight go."""
        parameter: Any = self._replaced[0].weight
        parameter.data = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
        self._is_released = True

    def give_back(self) -> nn.Module:
        """The module, its weight filled in again."""
        module = self._replaced[0]
        if self._is_released:
            with torch.inference_mode(False):
                parameter: Any = module.weight
                parameter.data = self.weight
            self._is_released = False
        return module

    def saved_weight(self) -> torch.Tensor:
        """One copy for all who ask while it lives: tied weights are saved once."""
        if not self._is_released:
            own: Any = self._replaced[0].weight
            return cast(torch.Tensor, own.detach())
        known = self._copy() if self._copy else None
        if known is None:
            known = self.weight.contiguous()
            self._copy = weakref.ref(known)
        return known

    def train(self, mode: bool = True) -> StandIn:
        if mode:
            _refuse("trained")
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.saved_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *given: Any) -> NoReturn:
        _refuse("given other weights")

    def _apply(self, fn: Any, recurse: bool = True) -> StandIn:
        weight = torch.empty(0, dtype=self._replaced[0].weight.dtype)  # type: ignore[arg-type]
        changed = fn(weight)
        if (changed.dtype, changed.device) != (weight.dtype, weight.device):
            _refuse("moved or converted")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Arrangement:
    """The modules of a model and the state of their Parameters, to tell whether anybody has changed them."""

    def __init__(self, model: nn.Module) -> None:
        self._parts = [*model.modules(), *model.parameters()]  # kept, so that no other gets the id of one
        self._states = _states(model)

    def is_of(self, model: nn.Module) -> bool:
        """Whether nothing has changed. Writing through ``parameter.data`` leaves no trace."""
        return self._states == _states(model)


def _states(model: nn.Module) -> list[tuple[int, ...]]:
    modules = [(id(module),) for module in model.modules()]
    return [*modules, *(_state(parameter) for parameter in model.parameters())]


def _state(parameter: torch.Tensor) -> tuple[int, ...]:
    version = 0 if parameter.is_inference() else parameter._version
    return id(parameter), parameter.data_ptr(), version, parameter.itemsize


def _refuse(what: str) -> NoReturn:
    raise ConfigError(
        f"the weights are laid out for hasten's passes, so the model cannot be {what}; call "
        "hasten.restore(model) before, or choose forward='stock'"
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class says: no hooks, and no forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    own = [hook for one in hooks for hook in one.values() if not _only_looks(hook)]
    return not own and "forward" not in vars(module)


def _only_looks(hook: Any) -> bool:
    """transformers leaves hooks behind that record what it is asked for."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def restore(model: nn.Module) -> None:
    """Give a model the modules again that others stand in for."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, StandIn):
                setattr(parent, name, child.give_back())
