"""hasten: the language models you already run, several times faster, the same text.

    import hasten
    lm = hasten.load("demo")
    out = lm.generate("User: Hello!", hasten.SamplingParams(max_new_tokens=64))
    print(out.text, out.stats.mean_acceptance_length)

torch and transformers are imported when ``load`` is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hasten.core import DecodeStats, SamplingParams, TokenLogprob
from hasten.errors import (
    ConfigError,
    GenerationInterrupted,
    HastenError,
    IncompatibleModels,
    MissingExtra,
    ModelError,
    PromptError,
    StoreError,
)
from hasten.processors import PerText

if TYPE_CHECKING:
    from hasten.diffusion.engine import DiffusionModel, DiffusionOutput, load_diffusion
    from hasten.diffusion.prompts import Gap
    from hasten.dropin import accelerate, custom_generate, restore
    from hasten.text.engine import LanguageModel
    from hasten.text.loading import load
    from hasten.text.requests import Output, Piece

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DecodeStats",
    "DiffusionModel",
    "DiffusionOutput",
    "Gap",
    "GenerationInterrupted",
    "HastenError",
    "IncompatibleModels",
    "LanguageModel",
    "MissingExtra",
    "ModelError",
    "Output",
    "PerText",
    "Piece",
    "PromptError",
    "SamplingParams",
    "StoreError",
    "TokenLogprob",
    "accelerate",
    "custom_generate",
    "load",
    "load_diffusion",
    "restore",
]

_HOMES = {
    "DiffusionModel": "hasten.diffusion.engine",
    "DiffusionOutput": "hasten.diffusion.engine",
    "Gap": "hasten.diffusion.prompts",
    "LanguageModel": "hasten.text.engine",
    "Output": "hasten.text.requests",
    "Piece": "hasten.text.requests",
    "accelerate": "hasten.dropin",
    "custom_generate": "hasten.dropin",
    "load": "hasten.text.loading",
    "load_diffusion": "hasten.diffusion.engine",
    "restore": "hasten.dropin",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
