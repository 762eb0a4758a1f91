"""The terminal or pipe that a command writes to: any encoding, closed early, or on a full disk."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import sys
from typing import Any

import typer

_SPELT = {"×": "x", "…": "...", "–": "-", "—": "-", "•": "*", "─": "-"}
_HANDLER = "hasten.spelt"
_ASCII = "hasten_ascii"
FAILED = 1
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


def prepare_streams() -> None:
    """Characters that the console lacks are spelt out, and any bytes may be typed."""
    codecs.register_error(_HANDLER, _spell)
    codecs.register(_ascii_by_another_name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors=_HANDLER)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _ascii_by_another_name(name: str) -> codecs.CodecInfo | None:
    """click takes a console that says it is ASCII for a mistake, and writes UTF-8 to it."""
    if name != _ASCII:
        return None
    ascii_ = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_.encode,
        ascii_.decode,
        ascii_.streamreader,
        ascii_.streamwriter,
        ascii_.incrementalencoder,
        ascii_.incrementaldecoder,
        name,
    )


def _spell(problem: UnicodeError) -> tuple[str, int]:
    assert isinstance(problem, UnicodeEncodeError)
    letters = problem.object[problem.start : problem.end]
    return "".join(
        _SPELT.get(one) or one.encode("ascii", "backslashreplace").decode() for one in letters
    ), problem.end


def print_json(value: Any, *, indent: int | None = None) -> None:
    """As one document; readable where the console takes every character, valid everywhere."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    is_unicode = codecs.lookup(encoding).name.startswith("utf")
    text = json.dumps(value, ensure_ascii=not is_unicode, indent=indent)
    if is_unicode and any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(value, indent=indent)
    typer.echo(text)


def finish_output() -> int:
    """Write out what is still held back. The exit code: a full disk or a closed pipe shows only here."""
    try:
        sys.stdout.flush()
    except OSError as problem:
        return report(problem)
    return 0


def report(problem: OSError) -> int:
    """The exit code after an output that could not be written; a reader who went away needs no message.

    Raises the problem again if it is about something else.
    """
    if problem.errno != errno.EPIPE:
        if problem.errno not in _UNWRITABLE:
            raise problem
        with contextlib.suppress(OSError):
            typer.echo(f"error: cannot write: {problem}; make room, or choose another place", err=True)
    # Python would try once more at its end, and print a traceback.
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return FAILED
