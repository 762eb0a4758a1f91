"""Which way a transformers model is run: as it is, with packed layers, as one compiled pass, or recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.encoder_decoder.target import target_of
from hasten.models.forwards.compiled.blueprint import Unsupported, read_blueprint
from hasten.models.forwards.compiled.executor import CompiledForward, CompiledModel
from hasten.models.forwards.compiled.messages import announced
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.graphs import GraphedForward, recorder_for
from hasten.models.forwards.packed import PackedLinear, can_pack, largest_linear, pack_linears, packed_ratio
from hasten.models.forwards.reference import Reference
from hasten.models.forwards.stand_in import restore
from hasten.models.probe import reproduces_plain_passes
from hasten.models.sessions.tree_session import TreeSession

FORWARDS = ("auto", "stock", "packed", "compiled", "graphs")
_CONTEXT = 64
_LEAST_GAIN = 0.95  # what is not clearly faster than the model as it is stays away
_CLEAR_GAIN = 2.0
"""So many times as fast as stock over 16 rows, no packed layers have ever been: nothing else is tried."""


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
            CPUs, and take the weights over: until ``stand_in.restore`` gives them back, the model can be run
            and saved, but not be trained, moved or converted. "graphs" replays passes that a GPU has
            recorded. "auto" measures and keeps the fastest.

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
        _require(_packed(model), asked)
        return "packed", "as asked", None
    if asked == "auto":
        return _fastest_recorded(model) if recorder_for(model.device) else _fastest(model)
    forward: Forward | None
    if asked == "compiled":
        forward, why_not, _ = _compiled(model)
    else:
        forward, why_not = _recorded(model)
    _require(why_not, asked)
    return asked, "as asked", forward


def _require(why_not: str, asked: str) -> None:
    if why_not:
        raise ConfigError(f"forward={asked!r} cannot run this model: {why_not}; use forward='auto'")


def _fastest(model: Any) -> tuple[str, str, Forward | None]:
    """On the CPU: compiled, with packed layers, or as it is; measured where it is not clear at once."""
    forward, why_not, gain = _compiled(model)
    if forward is None:
        return _fastest_layers(model, why_not)
    if gain >= _CLEAR_GAIN:
        return "compiled", f"measured when loading: {gain:.1f} times as fast as stock passes", forward
    spent = {"compiled": _milliseconds(model, forward)}
    restore(model)
    spent["stock"] = _milliseconds(model, None)
    not_packed = _packed(model) if _packable(model) is not None else ""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        spent["packed"] = _milliseconds(model, None)
        restore(model)
    best, reason = _best(spent)
    reason = f"{reason}; not packed: {not_packed}" if not_packed else reason
    if best == "compiled":
        return best, reason, _compiled(model)[0]
    if best == "packed":
        pack_linears(model)
    return best, reason, None


def _fastest_layers(model: Any, why_not: str) -> tuple[str, str, Forward | None]:
    """``why_not``: why it is not compiled."""
    linear = _packable(model)
    if linear is None:
        needs = "float32, or bfloat16 that the CPU computes with"
        return "stock", f"not compiled: {why_not}; packed layers need {needs}", None
    packed = packed_ratio(linear)
    reason = f"packed layers take {packed:.2f} of the time of stock ones; not compiled: {why_not}"
    if packed >= _LEAST_GAIN:
        return "stock", reason, None
    not_packed = _packed(model)
    return ("stock", f"not packed: {not_packed}; {reason}", None) if not_packed else ("packed", reason, None)


def _packed(model: Any) -> str:
    """Pack the linear layers; why they are not packed, and nothing has changed, or "".

    Raises ConfigError if nothing can be packed, ModelError for a model of no known kind.
    """
    try:
        reference = Reference(lambda: target_of(model).example_passes())
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as problem:
        return f"a pass over a short text ends in {type(problem).__name__}: {problem}"
    pack_linears(model)
    why_not = reference.check()
    if why_not:
        restore(model)
    return why_not


def _packable(model: Any) -> nn.Linear | None:
    linear = largest_linear(model)
    return linear if linear is not None and can_pack(linear) else None


def _fastest_recorded(model: Any) -> tuple[str, str, Forward | None]:
    """On a GPU: the model as it is, or its passes recorded."""
    forward, why_not = _recorded(model)
    if forward is None:
        return "stock", f"not recorded: {why_not}", None
    spent = {"stock": _milliseconds(model, None), "graphs": _milliseconds(model, forward)}
    best, reason = _best(spent)
    return best, reason, forward if best == "graphs" else None


def _best(spent: dict[str, float]) -> tuple[str, str]:
    """The way that takes the least time, and what was measured."""
    best = min(spent, key=lambda way: spent[way] / (1 if way == "stock" else _LEAST_GAIN))
    times = ", ".join(f"{way} {milliseconds:.1f}" for way, milliseconds in spent.items())
    return best, f"measured when loading, milliseconds of 1 row and of 16: {times}"


def _recorded(model: Any) -> tuple[GraphedForward | None, str]:
    """A forward that replays its passes, tried on a tree; or why there is none."""
    recorder = recorder_for(model.device)
    if recorder is None:
        return None, f"it is on {model.device}, and passes are recorded on GPUs (CUDA)"
    if getattr(model.config, "is_encoder_decoder", False):
        return None, "it reads a source as well"
    forward = GraphedForward(model, recorder)
    is_right = reproduces_plain_passes(forward, lambda: TreeSession(forward))
    if forward.why_not or not is_right:
        return None, forward.why_not or "its logits over a tree are not those of plain passes"
    return forward, ""


def _compiled(model: Any) -> tuple[CompiledForward | None, str, float]:
    """(compiled forward, why there is none, its gain over stock passes); without one, nothing changed."""
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return None, f"it is in {str(model.dtype).removeprefix('torch.')} on {model.device}", 0.0
    try:
        blueprint = read_blueprint(model)
    except Unsupported as problem:
        return None, str(problem), 0.0
    reference = Reference(lambda: Forward(model))
    try:
        forward = CompiledForward(model, CompiledModel(model, blueprint))
        with announced(f"the forward pass in {str(model.dtype).removeprefix('torch.')}"):
            why_not, gain = reference.compare(forward)
            if not why_not and not reproduces_plain_passes(forward, lambda: TreeSession(forward)):
                why_not = "its logits over a tree are not those of compiled passes over plain texts"
    except Unsupported as problem:
        why_not, gain = str(problem), 0.0
    if why_not:
        restore(model)
        return None, why_not, gain
    return forward, "", gain


def _milliseconds(model: Any, forward: Forward | None) -> float:
    """Of a pass over one row and one over 16 together."""
    target = CausalLM(model, mode="tree", forward=forward)
    return sum(target.measure_cost(rows=(1, 16), context=_CONTEXT, repeats=3).values())
