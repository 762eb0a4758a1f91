"""What a drafter learnt, on disk: one safetensors file, written atomically, bound to one tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hasten.drafters.base import Drafter
from hasten.errors import IncompatibleModels, StoreError
from hasten.files import write_whole, writing

_FORMAT = "hasten-store-1"


def save_store(path: str | os.PathLike[str], drafter: Drafter, fingerprint: str) -> None:
    """Write what ``drafter`` learnt. An older file is replaced only when the new one is complete.

    Raises WriteError if the place cannot be written.
    """
    path = Path(path)
    arrays = {key: np.ascontiguousarray(value) for key, value in drafter.state().items()}
    metadata = {"format": _FORMAT, "drafter": drafter.name, "tokenizer": fingerprint}
    write_whole(path, lambda temporary: save_file(arrays, temporary, metadata), "store")


def load_store(
    path: str | os.PathLike[str], drafter: Drafter, fingerprint: str, vocab_size: int | None = None
) -> None:
    """Give ``drafter`` what an earlier one learnt.

    Raises:
        StoreError: no such file, a damaged file, token ids of no vocabulary, or a store of another kind of
            drafter.
        IncompatibleModels: the file was written with another tokenizer.
    """
    contents = read_store(path)
    if contents.tokenizer != fingerprint:
        raise IncompatibleModels(
            f"{str(path)!r} was learnt with tokenizer {contents.tokenizer!r}, "
            f"this model has {fingerprint!r}; use one store per tokenizer"
        )
    if contents.drafter != drafter.name:
        raise StoreError(
            f"{str(path)!r} belongs to drafter {contents.drafter!r}, not {drafter.name!r}; "
            "load it with that drafter"
        )
    if vocab_size is not None:
        _check_ids(path, contents.arrays, vocab_size)
    drafter.restore(contents.arrays)


@dataclass(frozen=True, slots=True)
class StoreContents:
    """A store as it is on disk."""

    drafter: str
    tokenizer: str
    arrays: dict[str, NDArray[np.generic]]

    def texts(self) -> list[list[int]]:
        """What is in it word for word, as token ids: the answers that suffix keeps."""
        prefix = "" if self.drafter == "suffix" else "suffix/"
        kept, offsets = self.arrays.get(f"{prefix}token_ids"), self.arrays.get(f"{prefix}offsets")
        if kept is None or offsets is None:
            return []
        return [part.tolist() for part in np.split(kept, offsets.astype(np.int64)[1:-1]) if part.size]


def read_store(path: str | os.PathLike[str]) -> StoreContents:
    """What is in a store, whichever model wrote it. Raises StoreError."""
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
    return StoreContents(metadata.get("drafter", ""), metadata.get("tokenizer", ""), arrays)


def forget_store(path: str | os.PathLike[str]) -> None:
    """Delete a store, also behind a link. Raises StoreError for anything else."""
    read_store(path)
    with writing(path, "store"):
        Path(path).resolve().unlink()


def _check_ids(path: str | os.PathLike[str], arrays: dict[str, NDArray[np.generic]], vocab_size: int) -> None:
    """Arrays of token ids are called that, in every drafter; -1 is an empty place."""
    for key, array in arrays.items():
        if key.rpartition("/")[2] != "token_ids" or not array.size:
            continue
        if array.dtype.kind not in "iu" or int(array.min()) < -1 or int(array.max()) >= vocab_size:
            raise StoreError(
                f"{str(path)!r} holds token ids outside the vocabulary of {vocab_size} tokens in {key}; "
                "delete it and learn anew"
            )
