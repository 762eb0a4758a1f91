"""Checkpoints of other layouts, read onto modules that transformers or hasten has: no code of theirs is run.

A family says which checkpoints it reads, what their config tells of the denoiser, and how their weights are
called in the module. Names and shapes are compared before any weight is read: each weight of the files must
have a place, and each place a weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from hasten.diffusion.canvas import Denoiser, DenoiserSpec
from hasten.errors import ModelError
from hasten.models.weights import listed, weight_files

Config = Mapping[str, Any]
Rename = Callable[[str], str | None]
"""the module's name of a weight of the files; None for what the module computes itself"""
Shape = tuple[int, ...]

_NOT_OF_THE_MODEL = ("model_type", "architectures", "dtype", "use_cache", "transformers_version")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one layout. A checkpoint belongs to it by its model type and its architecture."""

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    build: Callable[[Path, Config, torch.dtype | str], Any]
    """(folder, its config, dtype) -> the model with its weights, on the CPU. Raises ModelError"""
    wrap: Callable[[Any, DenoiserSpec], Denoiser]
    tokenizer: Callable[[Path], Any]
    """the tokenizer in a folder, by a class that transformers has"""
    spec_values: Callable[[Config], dict[str, Any]] = lambda config: {}
    """fields of DenoiserSpec, beside what all configs tell"""
    text_config: Callable[[Config], Config] = lambda config: config
    """the part of a config that has vocab_size"""
    end_tokens: tuple[str, ...] = ()
    """tokens that end a text beside those that the config names, where the tokenizer has them"""

    def reads(self, config: Config) -> bool:
        """Whether a checkpoint with this config has the layout."""
        theirs = config.get("architectures") or self.architectures
        return config.get("model_type") in self.model_types and not set(theirs).isdisjoint(self.architectures)


def same_names(theirs: str) -> str:
    """For layouts whose weights are called as in the module."""
    return theirs


def need(config: Config, name: str) -> Any:
    """A value that a config must have. Raises ModelError."""
    if config.get(name) is None:
        raise ModelError(f"config.json does not say {name!r}; without it the model cannot be built")
    return config[name]


def refuse_other(config: Config, known: Mapping[str, Any]) -> None:
    """Raises ModelError where a config has other values than the ``known`` ones; a missing one is fine."""
    for name, value in known.items():
        if config.get(name) not in {None, value}:
            raise ModelError(
                f"config.json says {name}={config[name]!r}; only {name}={value!r} can be read here"
            )


def stock_config(config_class: Any, config: Config) -> Any:
    """A transformers config with those values of a foreign one that it knows."""
    known = {one.name for one in dataclasses.fields(config_class)} | {"rope_theta", "rope_scaling"}
    values = {
        name: config[name] for name in known.difference(_NOT_OF_THE_MODEL) if config.get(name) is not None
    }
    return config_class(**values, dtype=declared_dtype(config))


def declared_dtype(config: Config) -> str | None:
    """The dtype that a config names for the weights."""
    return config.get("dtype") or config.get("torch_dtype")


def build_stock(model_class: Any, config: Any, folder: Path, dtype: torch.dtype | str, rename: Rename) -> Any:
    """A transformers model with the weights of a folder. Raises ModelError where they do not fit."""
    with torch.device("meta"):
        empty = model_class(config)
    tied = empty.all_tied_weights_keys if config.tie_word_embeddings else ()
    weights = read_weights(empty, folder, rename, optional=tied)
    return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def read_weights(
    empty: nn.Module, folder: Path, rename: Rename, *, optional: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """The weights in a folder's safetensors files under the names of a module, which may be on "meta".

    Raises ModelError, before any is read, for names that do not correspond or shapes that differ; only the
    ``optional`` names may be missing.
    """
    places: dict[str, tuple[Path, str, Shape]] = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for theirs in opened.keys():  # noqa: SIM118  # not a dict
                ours = rename(theirs)
                if ours is not None:
                    places[ours] = (file, theirs, tuple(opened.get_slice(theirs).get_shape()))
    _check_correspondence(
        {name: tuple(weight.shape) for name, weight in empty.state_dict().items()}, places, set(optional)
    )
    weights = {}
    for file in sorted({file for file, _, _ in places.values()}):
        with safe_open(file, framework="pt") as opened:
            for ours, (home, theirs, _) in places.items():
                if home == file:
                    weights[ours] = opened.get_tensor(theirs)
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """Raises ModelError for a folder without safetensors, or with some of them missing."""
    files = weight_files(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} has no {listed(missing)}; weights are read from safetensors files only, so save the "
            "checkpoint in that format"
        )
    return files


def _check_correspondence(
    wanted: Mapping[str, Shape], places: Mapping[str, tuple[Path, str, Shape]], optional: set[str]
) -> None:
    unused = [theirs for ours, (_, theirs, _) in places.items() if ours not in wanted]
    if unused:
        raise ModelError(f"the model has no place for {listed(unused)}; this variant cannot be read")
    missing = sorted(wanted.keys() - places.keys() - optional)
    if missing:
        raise ModelError(f"the files do not have the weights of {listed(missing)}; copy the checkpoint again")
    misshaped = [
        f"{theirs} is {list(shape)}, not {list(wanted[ours])}"
        for ours, (_, theirs, shape) in places.items()
        if wanted[ours] != shape
    ]
    if misshaped:
        raise ModelError(f"config.json is not that of these weights: {listed(misshaped)}")
