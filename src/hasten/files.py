"""Files as the whole package reads and writes them: complete or not at all, with errors that name them.

Knows paths and text; knows nothing of what a file is for but the word that a message uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from hasten.errors import HastenError, PromptError, WriteError

ABANDONED = 24 * 60 * 60
"""Seconds after which an unfinished file is taken for one of a killed run: nothing writes that long without a
word."""
_UNFINISHED = ".unfinished"


def write_whole(path: str | os.PathLike[str], write: Callable[[str], None], what: str) -> None:
    """Let ``write`` make a file beside this path, which takes its place only when it is complete.

    A link is written through, and a file keeps its permissions. What killed runs left beside it a day ago or
    earlier is removed.

    Raises WriteError, which says ``what`` it was, for a place that cannot be written or is no regular file.
    """
    target = Path(os.path.realpath(path))
    with writing(path, what):
        mode = _mode_of(target)
        if mode is not None and not stat.S_ISREG(mode):
            raise OSError("it is no regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        handle, temporary = tempfile.mkstemp(_UNFINISHED, f".{target.name}.", target.parent)
        os.close(handle)
        try:
            write(temporary)
            os.chmod(temporary, _usual_mode() if mode is None else stat.S_IMODE(mode))
            _flush(temporary)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Whatever is wrong with a place, in here, is a WriteError that names it and what it was for."""
    try:
        yield
    except (OSError, SafetensorError) as problem:  # the latter also for a full disk
        why = getattr(problem, "strerror", None) or problem
        raise WriteError(
            f"cannot write the {what} {os.fspath(path)!r}: {why}; choose another place"
        ) from problem


def write_array(path: str | os.PathLike[str], array: NDArray[Any], what: str) -> None:
    """Write a .npy file as a whole. Raises WriteError."""

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)

    write_whole(path, write, what)


def write_text(path: str | os.PathLike[str], text: str, what: str) -> None:
    """Write a UTF-8 file as a whole; a pipe or a terminal such as /dev/stdout is written as it is.

    Raises WriteError.
    """
    with writing(path, what):
        mode = _mode_of(Path(os.path.realpath(path)))
    if mode is None or stat.S_ISREG(mode):
        write_whole(path, lambda temporary: _write(temporary, text), what)
        return
    with writing(path, what):
        _write(path, text)


def _write(path: str | os.PathLike[str], text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _usual_mode() -> int:
    """What open() would give; temporary files are private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _flush(path: str) -> None:
    """To the disk, so that the name never comes before the contents; a full disk may say so only here."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(target: Path) -> None:
    for file in target.parent.glob(f".{_escaped(target.name)}.*{_UNFINISHED}"):
        remove_if_abandoned(file)


def remove_if_abandoned(file: Path) -> None:
    """Remove a file that nobody has written to for a day; one that cannot be removed stays."""
    with contextlib.suppress(OSError):
        if time.time() - file.stat().st_mtime > ABANDONED:
            file.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def require_writable(path: str | os.PathLike[str], what: str) -> None:
    """Before the work: an hour's results must not be lost to a wrong folder. Raises WriteError."""
    place = Path(path)
    with writing(path, what):
        place.parent.mkdir(parents=True, exist_ok=True)
        was_there = place.exists()
        with place.open("ab"):
            pass
        if not was_there:
            place.unlink()


def read_text(path: str | os.PathLike[str], error: type[HastenError] = PromptError) -> str:
    """A UTF-8 file, with or without a byte order mark, its line ends as "\\n". Raises ``error``."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{os.fspath(path)!r} is not UTF-8 ({problem.reason} at byte {problem.start}); give a text file"
        ) from problem
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise error(f"cannot read {os.fspath(path)!r}: {why}; give a text file") from problem


def read_json_lines(
    path: str | os.PathLike[str], error: type[HastenError] = PromptError
) -> Iterator[tuple[str, Any]]:
    """("FILE:LINE", value) of every line that is not empty. Raises ``error`` with that place."""
    # Not splitlines(): a JSON string may hold U+2028 and others, which are no line ends here.
    for number, line in enumerate(read_text(path, error).split("\n"), start=1):
        if line.strip():
            place = f"{os.fspath(path)}:{number}"
            yield place, parse_json(line, place, error, "write one JSON value a line")


def parse_json(line: str, place: str, error: type[HastenError], remedy: str) -> Any:
    """A JSON value all of whose strings are text. Raises ``error``."""
    try:
        value = json.loads(line)
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as problem:
        raise error(f"{place} is not JSON ({problem}); {remedy}") from problem
    require_characters(text, place, error)
    return value


def require_characters(text: str, place: str, error: type[HastenError] = PromptError) -> None:
    """No text of a tokenizer holds half a surrogate pair, or a byte of the command line that is no UTF-8.

    Raises ``error``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        letter = text[problem.start]
        raise error(
            f"{place} holds the lone surrogate U+{ord(letter):04X}, which is no character; remove it or mend "
            "how the text was decoded"
        ) from problem
