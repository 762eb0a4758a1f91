"""What a checkpoint is, by the files in its folder or repository, before anything of it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from hasten.core import SPEC_FILE
from hasten.errors import ModelError
from hasten.models.loading import resolve_source

DENOISERS = frozenset(
    (
        "Dream",
        "sdar",
        "a2d-llama",
        "a2d-qwen2",
        "a2d-qwen3",
        "bd3lm",
        "diffusion_gemma",
        "dream",
        "llada",
        "mdlm",
    )
)
"""model types of published denoisers: those of ``hasten.diffusion.denoisers.loading.FAMILIES``"""


def is_denoiser(name: str, spec: str | None = None) -> bool:
    """Whether a bundled name, a folder or a hub id is a denoiser, by its config.json and denoiser_spec.json.

    With a ``spec`` it is: the caller says so. False where nothing can be read, which loading will report.
    """
    if spec is not None:
        return True
    try:
        source = resolve_source(name)
        config = read_json(source, "config.json")
        return config.get("model_type") in DENOISERS or find_file(source, SPEC_FILE) is not None
    except (ModelError, OSError, ValueError):
        return False


def read_json(source: str, filename: str) -> dict[str, Any]:
    """Raises OSError where the file cannot be had, ValueError where it is no JSON object."""
    place = find_file(source, filename)
    if place is None:
        raise OSError(f"there is no {filename} at {source!r}, or the hub cannot be reached")
    found = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{filename} does not hold an object")
    return found


def find_file(source: str, filename: str) -> Path | None:
    """A file of a folder or a hub repository; None where it is not there."""
    if Path(source).is_dir():
        place = Path(source) / filename
        return place if place.is_file() else None
    found = cached_file(
        source,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
