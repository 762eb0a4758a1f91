"""Keeps a training run on disk so that it goes on exactly where it was; knows files, not how to train.

A checkpoint is a folder of safetensors and JSON that is written aside and renamed when whole, so a run killed
at any moment leaves the one before. Every random draw of a run is a function of its seed and step, so these
two are the whole state of the sampler.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hasten.errors import ConfigError, ModelError
from hasten.files import writing

_FORMAT = 1
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint knows besides tensors."""

    step: int
    """steps done; the next batch is that of this number"""
    options: dict[str, Any]
    corpus_fingerprint: str


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-????????"), default=None)


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState
) -> None:
    """Writes the newest checkpoint, then removes the older ones. Raises WriteError."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
    notes = {
        "format": _FORMAT,
        "step": state.step,
        "options": state.options,
        "corpus_fingerprint": state.corpus_fingerprint,
    }
    with writing(final, "checkpoint"):
        try:
            temporary.mkdir(parents=True)
            save_file(_parameters(model), temporary / _WEIGHTS)
            save_file(_moments(model, optimizer), temporary / _OPTIMIZER)
            (temporary / _STATE).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
            if final.exists():
                shutil.rmtree(final)
            temporary.replace(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for older in folder.glob("step-????????"):
        if older != final:
            shutil.rmtree(older)


def read_state(checkpoint: Path) -> RunState:
    try:
        notes = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        if notes["format"] != _FORMAT:
            raise ConfigError(
                f"checkpoint {checkpoint} has format {notes['format']}, not {_FORMAT}; train anew"
            )
        return RunState(notes["step"], notes["options"], notes["corpus_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelError(
            f"checkpoint {checkpoint} cannot be read: {error}; remove it and train anew"
        ) from error


def load_tensors(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and moments of a checkpoint into a model and its fresh optimizer, wherever these are."""
    try:
        weights = load_file(checkpoint / _WEIGHTS)
        moments = load_file(checkpoint / _OPTIMIZER)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        names = _names_in_optimizer_order(model, optimizer)
        kinds = ("step", "exp_avg", "exp_avg_sq")
        state = {
            index: {kind: moments[f"{name}.{kind}"] for kind in kinds} for index, name in enumerate(names)
        }
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"checkpoint {checkpoint} cannot be read: {error}; remove it and train anew"
        ) from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    # named_parameters() gives tied weights once; safetensors refuses tensors that share memory.
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state[parameter].items()
    }


def _names_in_optimizer_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
