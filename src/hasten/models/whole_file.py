"""Writes a file so that it is there as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hasten.errors import StoreError


def write_whole(path: Path, write: Callable[[str], None], what: str) -> None:
    """Let ``write`` make a file beside this path, which takes its place only when it is complete.

    Raises StoreError, which says ``what`` it was, if the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        try:
            write(temporary)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as problem:
        raise StoreError(f"cannot write the {what} {str(path)!r}: {problem}") from problem
