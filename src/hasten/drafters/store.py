"""What a drafter learnt, on disk: one safetensors file, written atomically, bound to one tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hasten.drafters.base import Drafter
from hasten.errors import IncompatibleModels, StoreError
from hasten.models.whole_file import write_whole

_FORMAT = "hasten-store-1"


def save_store(path: str | os.PathLike[str], drafter: Drafter, fingerprint: str) -> None:
    """Write what ``drafter`` learnt. An older file is replaced only when the new one is complete.

    Raises StoreError if the place cannot be written.
    """
    path = Path(path)
    arrays = {key: np.ascontiguousarray(value) for key, value in drafter.state().items()}
    metadata = {"format": _FORMAT, "drafter": drafter.name, "tokenizer": fingerprint}
    write_whole(path, lambda temporary: save_file(arrays, temporary, metadata), "store")


def load_store(path: str | os.PathLike[str], drafter: Drafter, fingerprint: str) -> None:
    """Give ``drafter`` what an earlier one learnt.

    Raises:
        StoreError: no such file, a damaged file, or one that another kind of drafter wrote.
        IncompatibleModels: the file was written with another tokenizer.
    """
    if not Path(path).is_file():
        raise StoreError(f"no store at {str(path)!r}; save one first with save_store or --store")
    try:
        with safe_open(path, framework="numpy") as store:
            metadata = store.metadata() or {}
            arrays = {key: store.get_tensor(key) for key in store.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as problem:
        raise StoreError(
            f"{str(path)!r} is not a readable store ({problem}); delete it and learn anew"
        ) from problem
    if metadata.get("format") != _FORMAT:
        raise StoreError(f"{str(path)!r} has format {metadata.get('format')!r}, expected {_FORMAT!r}")
    if metadata.get("tokenizer") != fingerprint:
        raise IncompatibleModels(
            f"{str(path)!r} was learnt with tokenizer {metadata.get('tokenizer')!r}, "
            f"this model has {fingerprint!r}; use one store per tokenizer"
        )
    if metadata.get("drafter") != drafter.name:
        raise StoreError(
            f"{str(path)!r} belongs to drafter {metadata.get('drafter')!r}, not {drafter.name!r}; "
            "load it with that drafter"
        )
    drafter.restore(arrays)
