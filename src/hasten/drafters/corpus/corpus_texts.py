"""Text files as documents of token ids, read and tokenised piece by piece.

Knows files and one tokenizer, which is passed in; knows nothing of what the tokens are for. A long text is
tokenised in pieces that end at line ends, so now and then a token there differs from that of the whole text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.drafters.corpus.suffix_array import Progress
from hasten.errors import ConfigError
from hasten.files import parse_json

SUFFIXES = (".jsonl", ".md", ".py", ".txt")
"""What is read of a folder; a file that is named itself may be called anything."""

_PIECE = 1 << 16
_LONGEST_LINE = 1 << 16
_BATCH = 1 << 22
_REMEDY = 'write every line as {"text": "..."}, or leave the file out'


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    ends_document: bool
    bytes_read: int
    """of this file, so far"""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Every file once: folders give all files in them that end in one of SUFFIXES, hidden ones left out.

    Raises ConfigError for a path that is not there and for a folder without such files.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_corpus_file(file, path))
            if not inside:
                raise ConfigError(
                    f"no {', '.join(SUFFIXES)} files in the folder {str(path)!r}; name the files"
                )
        elif path.is_file():
            inside = [path]
        else:
            raise ConfigError(f"no file or folder at {str(path)!r}; give text files, .jsonl files or folders")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _is_corpus_file(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix in SUFFIXES and not is_hidden and file.is_file()


def tokenised(
    files: Iterable[Path], tokenizer: Any, on_progress: Progress | None = None
) -> Iterator[NDArray[np.int32]]:
    """The documents: a file, or of a .jsonl file the "text" of each line. Special tokens are not added.

    on_progress: called with (bytes tokenised, bytes of all files).

    Raises ConfigError, naming file and line, for text that is not UTF-8 and lines without a "text" string,
    before anything is tokenised.
    """
    files = list(files)
    _check(files)
    total = sum(file.stat().st_size for file in files)
    parts: list[NDArray[np.int32]] = []
    for batch, num_bytes in _batches(files):
        for piece, token_ids in zip(batch, _encode(tokenizer, [one.text for one in batch]), strict=True):
            parts.append(token_ids)
            if piece.ends_document:
                yield np.concatenate(parts)
                parts.clear()
        if on_progress:
            on_progress(num_bytes, total)


def _check(files: list[Path]) -> None:
    """Reading is quick, and the tokens of all files before a bad one would be lost with it."""
    for file in files:
        for _ in _pieces(file):
            pass


def _batches(files: list[Path]) -> Iterator[tuple[list[_Piece], int]]:
    """Pieces of about _BATCH characters together, and how many bytes were read by then."""
    batch: list[_Piece] = []
    num_characters = bytes_before = 0
    for file in files:
        for piece in _pieces(file):
            batch.append(piece)
            num_characters += len(piece.text)
            if num_characters >= _BATCH:
                yield batch, bytes_before + piece.bytes_read
                batch, num_characters = [], 0
        bytes_before += file.stat().st_size
    yield batch, bytes_before


def _pieces(file: Path) -> Iterator[_Piece]:
    try:
        yield from _lines(file) if file.suffix == ".jsonl" else _text(file)
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{str(file)!r} is not UTF-8 ({problem.reason}); give text files") from problem
    except OSError as problem:
        raise ConfigError(f"cannot read {str(file)!r}: {problem.strerror}") from problem


def _text(file: Path) -> Iterator[_Piece]:
    with file.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as opened:
        text = opened.read(_PIECE)
        while text:
            text += opened.readline(_LONGEST_LINE)
            following = opened.read(_PIECE)
            yield _Piece(text, not following, raw.tell())
            text = following


def _lines(file: Path) -> Iterator[_Piece]:
    with file.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            record = parse_json(line, f"{file}:{number}", ConfigError, _REMEDY)
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ConfigError(f'{file}:{number} has no "text" string; {_REMEDY}')
            yield _Piece(text, True, raw.tell())


def _encode(tokenizer: Any, texts: list[str]) -> list[NDArray[np.int32]]:
    if getattr(tokenizer, "is_fast", False):
        # The Rust tokenizer itself: it works on all cores, and no offsets are made into Python objects.
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return [np.array(row, np.int32) for row in rows]
