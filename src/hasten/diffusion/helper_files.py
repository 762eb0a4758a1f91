"""Files of what was trained for one denoiser: tensors, and notes on what they are and whose.

Knows safetensors; knows neither what the tensors are for nor how they were trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hasten.errors import IncompatibleModels, StoreError
from hasten.files import write_whole


@dataclass(frozen=True, slots=True)
class HelperKind:
    """One kind of file."""

    what: str
    """as messages call it"""
    command: str
    """that makes it"""
    format: str


def save_helper(
    path: Path, kind: HelperKind, tensors: dict[str, Tensor], notes: dict[str, str], fingerprint: str
) -> None:
    """Write a file for the denoiser of this fingerprint, whole or not at all.

    Raises StoreError if the place cannot be written.
    """
    notes = {**notes, "format": kind.format, "denoiser": fingerprint}
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(stored, temporary, notes), kind.what)


def load_helper(path: Path, kind: HelperKind, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of a file for the denoiser of this fingerprint.

    Raises:
        StoreError: no such file, or one of another kind.
        IncompatibleModels: a file for another denoiser.
    """
    if not path.is_file():
        raise StoreError(f"no {kind.what} at {str(path)!r}; train one with `{kind.command}`")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as problem:
        raise StoreError(
            f"{str(path)!r} is not readable ({problem}); train the {kind.what} anew with `{kind.command}`"
        ) from problem
    if notes.get("format") != kind.format:
        raise StoreError(
            f"{str(path)!r} is no {kind.what}: its format is {notes.get('format')!r}, not {kind.format!r}"
        )
    if notes.get("denoiser") != fingerprint:
        raise IncompatibleModels(
            f"{str(path)!r} was trained for the model {notes.get('denoiser')!r}, this one is "
            f"{fingerprint!r}; train a {kind.what} for it with `{kind.command}`"
        )
    return tensors, notes
