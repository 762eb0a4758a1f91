"""Which way a transformers model is run: as it is, with packed layers, as one compiled pass, or recorded."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.compiled.blueprint import Blueprint, Unsupported, read_blueprint
from hasten.models.compiled.executor import CompiledForward, CompiledModel, Reference, is_compiled
from hasten.models.compiled.tiles import TiledEmbedding
from hasten.models.forward import Forward
from hasten.models.graphs import GraphedForward, recorder_for
from hasten.models.packed import PackedLinear, can_pack, largest_linear, pack_linears, packed_ratio
from hasten.models.probe import reproduces_plain_passes
from hasten.models.tree_session import TreeSession

FORWARDS = ("auto", "stock", "packed", "compiled", "graphs")
_MEASURED = "measured when loading, milliseconds of 1 row and of 16: "
_CONTEXT = 64
_LEAST_GAIN = 0.95  # what is not clearly faster than the model as it is stays away

_log = logging.getLogger("hasten")


@dataclass(frozen=True, slots=True)
class Prepared:
    """How a model is run, and why."""

    name: str
    """one of FORWARDS, never "auto" """
    reason: str
    seconds: float
    """what choosing and preparing took"""
    forward: Forward | None
    """what runs its passes; None stands for the model itself"""


def prepare(model: Any, asked: str = "auto") -> Prepared:
    """Make a loaded model ready to run.

    Args:
        asked: "stock" leaves the model as it is. "packed" lays its linear layers out anew. "compiled" runs
            whole passes in one compiled function, which decoders of the kind of Llama allow. Both are for
            CPUs, and take the weights over: afterwards the model can neither be trained nor saved. "graphs"
            replays passes that a GPU has recorded. "auto" measures and keeps the fastest.

    Raises ConfigError for an unknown name, or a way that this model or machine does not allow.
    """
    if asked not in FORWARDS:
        raise ConfigError(f"forward={asked!r} is unknown; choose {', '.join(FORWARDS)}")
    start = time.perf_counter()
    name, reason, forward = _prepare(model.eval(), asked)
    return Prepared(name, reason, time.perf_counter() - start, forward)


def _prepare(model: Any, asked: str) -> tuple[str, str, Forward | None]:
    if asked == "stock":
        return "stock", "as asked", None
    if asked == "packed":
        pack_linears(model)
        return "packed", "as asked", None
    if asked == "auto":
        return _fastest_recorded(model) if recorder_for(model.device) else _fastest(model)
    if asked == "compiled":
        blueprint, why_not = _blueprint(model)
        forward: Forward | None = None if blueprint is None else _compile(model, blueprint)
    else:
        forward, why_not = _recorded(model)
    if forward is None:
        raise _refused(asked, why_not)
    return asked, "as asked", forward


def _refused(asked: str, why_not: str) -> ConfigError:
    return ConfigError(f"forward={asked!r} cannot run this model: {why_not}; use forward='auto'")


def _fastest(model: Any) -> tuple[str, str, Forward | None]:
    """On the CPU: the model as it is, with packed layers, or compiled."""
    blueprint, why_not = _blueprint(model)
    linear = largest_linear(model)
    packed = packed_ratio(linear) if linear is not None and can_pack(linear) else None
    if blueprint is not None:
        return _fastest_compiled(model, blueprint, packed)
    if packed is None:
        reason = "packed layers need float32, or bfloat16 that the CPU computes with"
        return "stock", f"{reason}; not compiled: {why_not}", None
    reason = f"packed layers take {packed:.2f} of the time of stock ones; not compiled: {why_not}"
    if packed >= _LEAST_GAIN:
        return "stock", reason, None
    pack_linears(model)
    return "packed", reason, None


def _fastest_compiled(
    model: Any, blueprint: Blueprint, packed: float | None
) -> tuple[str, str, Forward | None]:
    """``packed``: what packing makes of the time of a layer; at best it makes that of the whole pass."""
    spent = {"stock": _milliseconds(model, None)}
    if packed is not None:
        spent["packed"] = spent["stock"] * packed
    try:
        forward = _compile(model, blueprint)
        spent["compiled"] = _milliseconds(model, forward)
        reason = _MEASURED
    except ConfigError as problem:
        reason = f"{problem}; measured when loading: "
    if spent.get("packed", torch.inf) < spent.get("compiled", 0.0):  # an estimate is not enough
        restore(model)
        pack_linears(model)
        spent["packed"] = _milliseconds(model, None)
        restore(model)
        forward = _compile(model, read_blueprint(model))
    best, reason = _best(spent, reason)
    if best == "compiled":
        return best, reason, forward
    restore(model)
    if best == "packed":
        pack_linears(model)
    return best, reason, None


def _fastest_recorded(model: Any) -> tuple[str, str, Forward | None]:
    """On a GPU: the model as it is, or its passes recorded."""
    forward, why_not = _recorded(model)
    if forward is None:
        return "stock", f"not recorded: {why_not}", None
    spent = {"stock": _milliseconds(model, None), "graphs": _milliseconds(model, forward)}
    best, reason = _best(spent, _MEASURED)
    return best, reason, forward if best == "graphs" else None


def _best(spent: dict[str, float], reason: str) -> tuple[str, str]:
    """The way that takes the least time, and all times after the reason."""
    best = min(spent, key=lambda way: spent[way] / (1 if way == "stock" else _LEAST_GAIN))
    return best, reason + ", ".join(f"{way} {milliseconds:.1f}" for way, milliseconds in spent.items())


def _recorded(model: Any) -> tuple[GraphedForward | None, str]:
    """A forward that replays its passes, tried on a tree; or why there is none."""
    recorder = recorder_for(model.device)
    if recorder is None:
        return None, f"it is on {model.device}, and passes are recorded on GPUs (CUDA)"
    if getattr(model.config, "is_encoder_decoder", False):
        return None, "it reads a source as well"
    forward = GraphedForward(model, recorder)
    is_right = reproduces_plain_passes(forward, TreeSession(forward))
    if forward.why_not or not is_right:
        return None, forward.why_not or "its logits over a tree are not those of plain passes"
    return forward, ""


def _blueprint(model: Any) -> tuple[Blueprint | None, str]:
    """What the compiled pass needs to know, or why there is none."""
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return None, f"it is in {str(model.dtype).removeprefix('torch.')} on {model.device}"
    try:
        return read_blueprint(model), ""
    except Unsupported as problem:
        return None, str(problem)


def _compile(model: Any, blueprint: Blueprint) -> CompiledForward:
    """Raises ConfigError where it computes something else than the model."""
    if not is_compiled():
        _log.warning("compiling the forward pass for this CPU; this takes half a minute, once")
    reference = Reference(model)
    try:
        forward = CompiledForward(model, CompiledModel(model, blueprint))
        why_not = reference.refuses(forward)
    except Unsupported as problem:
        why_not = str(problem)
    if why_not:
        raise _refused("compiled", why_not)
    return forward


def restore(model: Any) -> None:
    """Give a model plain linear layers again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TiledEmbedding):
                setattr(parent, name, nn.Embedding.from_pretrained(child.weight))  # type: ignore[no-untyped-call]
            elif isinstance(child, PackedLinear):
                linear = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                linear.weight = nn.Parameter(child.weight, requires_grad=False)
                linear.register_parameter("bias", child.bias)
                setattr(parent, name, linear)


def _milliseconds(model: Any, forward: Forward | None) -> float:
    """Of a pass over one row and one over 16 together."""
    target = CausalLM(model, mode="tree", forward=forward)
    return sum(target.measure_cost(rows=(1, 16), context=_CONTEXT, repeats=3).values())
