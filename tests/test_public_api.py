"""What users may import, and that importing it costs next to nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import hasten

PUBLIC = [
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


def test_the_public_names_are_these():
    assert hasten.__all__ == PUBLIC == sorted(PUBLIC)
    assert all(getattr(hasten, name) is not None for name in PUBLIC)
    assert hasten.__version__


def test_no_public_call_takes_or_gives_anything_at_all():
    """But for a hook with the arguments of transformers, and an interrupt, with texts of either kind."""
    found = []
    for name in set(PUBLIC) - {"custom_generate", "GenerationInterrupted"}:
        thing = getattr(hasten, name)
        parts = vars(thing) if isinstance(thing, type) else {"": thing}
        for part, value in parts.items():
            function = value.fget if isinstance(value, property) else value
            if inspect.isfunction(function) and (part == "__init__" or not part.startswith("_")):
                found += [
                    (name, part, each) for each in function.__annotations__.values() if "Any" in str(each)
                ]
    assert found == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'speed_up'"):
        hasten.speed_up  # noqa: B018


def test_importing_hasten_loads_nothing_heavy():
    heavy = "torch", "transformers", "numba", "safetensors", "numpy"
    code = f"import sys, hasten; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_every_error_is_a_hasten_error_except_an_interrupt():
    errors = [getattr(hasten, name) for name in PUBLIC if isinstance(getattr(hasten, name), type)]
    errors = [error for error in errors if issubclass(error, BaseException)]
    assert [error.__name__ for error in errors if not issubclass(error, hasten.HastenError)] == [
        "GenerationInterrupted"
    ]
    assert issubclass(hasten.GenerationInterrupted, KeyboardInterrupt)
    assert issubclass(hasten.ConfigError, ValueError)
    assert issubclass(hasten.PromptError, ValueError)
