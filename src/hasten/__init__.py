"""hasten: the language models you already run, several times faster, the same text.

    import hasten
    lm = hasten.load("demo")
    out = lm.generate("User: Hello!", hasten.SamplingParams(max_new_tokens=64))
    print(out.text, out.stats.mean_acceptance_length)

torch and transformers are imported when ``load`` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.core import DecodeStats, SamplingParams
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

if TYPE_CHECKING:
    from hasten.dropin import accelerate, custom_generate, restore
    from hasten.engine import LanguageModel, Output, Piece, load

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DecodeStats",
    "GenerationInterrupted",
    "HastenError",
    "IncompatibleModels",
    "LanguageModel",
    "MissingExtra",
    "ModelError",
    "Output",
    "Piece",
    "PromptError",
    "SamplingParams",
    "StoreError",
    "accelerate",
    "custom_generate",
    "load",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name in {"LanguageModel", "Output", "Piece", "load"}:
        from hasten import engine

        return getattr(engine, name)
    if name in {"accelerate", "custom_generate", "restore"}:
        from hasten import dropin

        return getattr(dropin, name)
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")
