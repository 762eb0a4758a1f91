"""Smaller models inside a model: its first layers only, or a head of fewer rows; the weights are its own.

What a model is made of is found by structure: one list of as many modules as it has layers, a norm beside
that list, and a linear head. Not known: models whose layers hand on more than hidden states and cache.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from hasten.errors import ModelError
from hasten.models.forwards.packed import PackedLinear


def num_layers_of(model: Any) -> int:
    """Layers of a causal model, as its config says. Raises ModelError if it does not."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ModelError(f"the config of {type(model).__name__} does not say how many layers it has")
    return count


def first_layers(model: Any, count: int) -> Any:
    """A model that runs the first ``count`` layers, then norm and head; it shares all tensors with this one.

    Raises ModelError for a model that has no single list of layers with a norm after it.
    """
    total = num_layers_of(model)
    name = _layers_name(model, total)
    part = _twin(model)
    owner, _, last = name.rpartition(".")
    setattr(part.get_submodule(owner), last, part.get_submodule(name)[:count])
    _shorten(part.config.get_text_config(decoder=True), total, count)
    return part


def with_head_rows(model: Any, rows: torch.Tensor) -> Any:
    """A model whose head has these rows only, in this order; it shares all other tensors with this one.

    Raises ModelError for a model without a linear head of its own.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    if not isinstance(head, nn.Linear | PackedLinear) or not name:
        raise ModelError(f"{type(model).__name__} has no linear head whose rows could be left out")
    rows = rows.to(head.weight.device)
    part = _twin(model)
    owner, _, last = name.rpartition(".")
    setattr(part.get_submodule(owner), last, _linear(head, rows))
    return part


def _linear(head: nn.Linear | PackedLinear, rows: torch.Tensor) -> nn.Linear:
    weight = head.weight.detach()[rows]
    linear = nn.Linear(weight.shape[1], len(rows), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if head.bias is not None:
        linear.bias = nn.Parameter(head.bias.detach()[rows], requires_grad=False)
    return linear


def _twin(model: Any) -> Any:
    """Modules and config copied, so that either may change; no tensor is."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        tensors |= {id(one): one for one in vars(module).values() if isinstance(one, torch.Tensor)}
    return copy.deepcopy(model, dict(tensors))


def _layers_name(model: Any, total: int) -> str:
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(outermost)} lists of {total} layers, so that it cannot stop "
            "early; use it without exits"
        )
    name = str(outermost[0])
    beside = model.get_submodule(name.rpartition(".")[0]).children()
    if not any("norm" in type(module).__name__.lower() for module in beside):
        raise ModelError(
            f"{type(model).__name__} has no norm after its layers, so that it cannot stop early; use it "
            "without exits"
        )
    return name


def _shorten(config: Any, total: int, count: int) -> None:
    """Say so in the config: the number of layers, and what it lists for each of them."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == total:
            setattr(config, name, value[:count])
    config.num_hidden_layers = count
