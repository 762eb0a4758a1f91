"""A corpus of token ids on disk with its suffix array: where the last tokens stood before, and what followed.

A folder of three arrays, mapped into memory and never read as a whole, and a manifest that names them, so
that replacing this one file replaces the store. Documents end with a separator that no token equals, so
neither a match nor what followed it crosses documents. Knows token ids only.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.drafters.corpus.suffix_array import DEPTH, SEPARATOR, Progress, Tokens, sort_suffixes
from hasten.errors import IncompatibleModels, StoreError
from hasten.files import remove_if_abandoned, write_array, write_text, writing

Starts = NDArray[np.int64]

REMEDY = "make one with `hasten index FILES -o STORE`"
MAX_TOKENS = 2**31 - 1
"""Positions and token ids are kept in 32 bits."""

_FORMAT = "hasten-index-2"
_MANIFEST = "manifest.json"
_ARRAYS = {"tokens": np.int32, "suffixes": np.int32, "starts": np.int64}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a store says about itself. ``depth``: suffixes are in order of so many tokens.

    ``mark`` is in the names of its arrays, no two stores have the same.
    """

    tokenizer: str
    num_documents: int
    num_tokens: int
    num_ids: int
    """one more than the largest token id"""
    mark: str
    depth: int = DEPTH
    format: str = _FORMAT

    @property
    def lengths(self) -> dict[str, int]:
        """Of each array: every document is followed by a separator, the last one by ``depth`` more."""
        separators = self.num_documents + self.depth
        return {
            "tokens": self.num_tokens + separators,
            "suffixes": self.num_tokens,
            "starts": self.num_ids + 1,
        }


@dataclass(frozen=True, slots=True)
class Match:
    """Suffixes ``start`` .. ``end - 1`` begin with the ``length`` tokens looked up, and a token follows."""

    length: int
    start: int
    end: int


@numba.njit(cache=True)
def _token_at(tokens: Tokens, position: int) -> int:
    """A damaged store may point anywhere: outside the text there are separators."""
    return int(tokens[position]) if 0 <= position < len(tokens) else SEPARATOR


@numba.njit(cache=True)
def _is_before(tokens: Tokens, position: int, pattern: NDArray[np.int64], is_upper: bool) -> bool:
    """Whether the suffix comes before those that continue the pattern; with ``is_upper``, or is one."""
    for at in range(len(pattern)):
        token = _token_at(tokens, position + at)
        if token != pattern[at]:
            return bool(token < pattern[at])
    return is_upper or _token_at(tokens, position + len(pattern)) == SEPARATOR


@numba.njit(cache=True)
def _bound(
    tokens: Tokens, suffixes: Tokens, start: int, end: int, pattern: NDArray[np.int64], is_upper: bool
) -> int:
    while start < end:
        middle = (start + end) // 2
        if _is_before(tokens, int(suffixes[middle]), pattern, is_upper):
            start = middle + 1
        else:
            end = middle
    return int(start)


@numba.njit(cache=True)
def _find(tokens: Tokens, suffixes: Tokens, starts: Starts, pattern: NDArray[np.int64]) -> tuple[int, int]:
    """The suffixes that begin with the pattern and go on: (start, end), equal where there are none."""
    first = pattern[0]
    if not 0 <= first < len(starts) - 1:
        return int(np.int64(0)), int(np.int64(0))
    start = _bound(tokens, suffixes, starts[first], starts[first + 1], pattern, False)
    return start, _bound(tokens, suffixes, start, starts[first + 1], pattern, True)


@numba.njit(cache=True)
def _longest(
    tokens: Tokens, suffixes: Tokens, starts: Starts, recent: NDArray[np.int64], shortest: int
) -> tuple[int, int, int]:
    """(length, start, end) of the longest match. Where a suffix occurs, all shorter ones do: bisection."""
    best = (int(np.int64(0)), int(np.int64(0)), int(np.int64(0)))
    found, too_long = np.int64(shortest - 1), np.int64(len(recent) + 1)
    while found + 1 < too_long:
        length = (found + too_long) // 2
        start, end = _find(tokens, suffixes, starts, recent[len(recent) - length :])
        if start < end:
            found = length
            best = (int(length), start, end)
        else:
            too_long = length
    return best


@numba.njit(cache=True)
def _gather(tokens: Tokens, suffixes: Tokens, start: int, end: int, offset: int, rows: Tokens) -> None:
    for row in range(len(rows)):
        position = int(suffixes[start + row * (end - start) // len(rows)]) + offset
        token = np.int64(0)
        for at in range(rows.shape[1]):
            if token != SEPARATOR:  # what comes after it belongs to another document
                token = np.int64(_token_at(tokens, position + at))
            rows[row, at] = token


class CorpusIndex:
    """An open store; made by ``open_index``. Reading only: many drafters may share one."""

    def __init__(
        self, path: Path, manifest: Manifest, tokens: Tokens, suffixes: Tokens, starts: Starts
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._tokens = tokens
        self._suffixes = suffixes
        self._starts = starts

    def longest_match(self, token_ids: NDArray[np.int64], min_length: int, max_length: int) -> Match | None:
        """The longest end of a text that occurs in the corpus with something after it.

        token_ids: int64 [n]; 1 <= min_length <= max_length < DEPTH.
        """
        assert 1 <= min_length <= max_length < DEPTH
        recent = token_ids[max(len(token_ids) - max_length, 0) :]
        length, start, end = _longest(self._tokens, self._suffixes, self._starts, recent, min_length)
        return Match(length, start, end) if length else None

    def continuations(self, match: Match, num_tokens: int, max_rows: int) -> Tokens:
        """What followed, int32 [rows, num_tokens], SEPARATOR after a document's end.

        Every occurrence, or ``max_rows`` spread evenly over their order where there are more. Rows are in
        order as long as ``match.length + num_tokens`` is at most DEPTH.
        """
        num_rows = min(match.end - match.start, max_rows)
        rows = np.empty((num_rows, num_tokens), np.int32)
        _gather(self._tokens, self._suffixes, match.start, match.end, match.length, rows)
        return rows


def open_index(path: str | os.PathLike[str], fingerprint: str) -> CorpusIndex:
    """Open a store for a model with that vocabulary; takes no time, whatever the size.

    Raises:
        StoreError: no store there, or a damaged one.
        IncompatibleModels: the store was made with another tokenizer.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    if manifest.tokenizer != fingerprint:
        raise IncompatibleModels(
            f"the index {str(folder)!r} was made with tokenizer {manifest.tokenizer!r}, this model has "
            f"{fingerprint!r}; make one with this model's: `hasten index FILES -o STORE --tokenizer MODEL`"
        )
    try:
        arrays = {name: _read_array(folder, name, manifest) for name in _ARRAYS}
    except StoreError:
        if _read_manifest(folder) == manifest:
            raise
        return open_index(path, fingerprint)  # replaced between the two
    starts = np.array(arrays["starts"])  # small, and looked at in every search
    if starts[0] != 0 or starts[-1] != manifest.num_tokens or (np.diff(starts) < 0).any():
        raise _damaged(folder, f"starts must rise from 0 to {manifest.num_tokens}")
    return CorpusIndex(folder, manifest, arrays["tokens"], arrays["suffixes"], starts)


def _read_manifest(folder: Path) -> Manifest:
    if not (folder / _MANIFEST).is_file():
        raise StoreError(f"no corpus index at {str(folder)!r}; {REMEDY}")
    try:
        found = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise _damaged(folder, str(problem)) from problem
    if isinstance(found, dict) and found.get("format") != _FORMAT:
        raise StoreError(
            f"the index {str(folder)!r} has format {found.get('format')!r}, this version reads "
            f"{_FORMAT!r}; make it anew with `hasten index FILES -o STORE`"
        )
    expected = {name: type(value) for name, value in asdict(Manifest("", 0, 0, 0, "")).items()}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != expected:
        raise _damaged(folder, f"{_MANIFEST} must have {', '.join(expected)}")
    manifest = Manifest(**found)
    if manifest.depth != DEPTH:
        raise StoreError(
            f"the index {str(folder)!r} has depth {manifest.depth}, this version reads {DEPTH}; make it anew "
            "with `hasten index FILES -o STORE`"
        )
    if not manifest.mark.isalnum():
        raise _damaged(folder, f"mark {manifest.mark!r}")
    return manifest


def _array_file(folder: Path, name: str, mark: str) -> Path:
    return folder / f"{name}-{mark}.npy"


def _read_array(folder: Path, name: str, manifest: Manifest) -> NDArray[Any]:
    dtype, length = np.dtype(_ARRAYS[name]), manifest.lengths[name]
    file = _array_file(folder, name, manifest.mark)
    try:
        mapped = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as problem:
        raise _damaged(folder, f"{file.name}: {problem}") from problem
    if mapped.dtype != dtype or mapped.shape != (length,):
        found = f"{mapped.dtype} {mapped.shape}"
        raise _damaged(folder, f"{file.name} must be {dtype} ({length},), found {found}")
    return np.asarray(mapped)


def _damaged(folder: Path, why: str) -> StoreError:
    return StoreError(
        f"the index {str(folder)!r} is damaged ({why}); delete it and make it anew with "
        "`hasten index FILES -o STORE`"
    )


def write_index(
    path: str | os.PathLike[str],
    documents: Iterable[NDArray[np.integer]],
    fingerprint: str,
    on_progress: Progress | None = None,
) -> Manifest:
    """Make a store of documents, each int [tokens], none below 0. All or nothing: a failure leaves no trace.

    An older store at that place is replaced when the new one is complete.

    Args:
        fingerprint: of the tokenizer, as ``LanguageModel.fingerprint``.
        on_progress: called with (sorted suffixes, all suffixes).

    Raises StoreError for a place that holds something else or cannot be written, and for documents without
    tokens or with more than MAX_TOKENS.
    """
    folder = Path(path)
    _require_place(folder)
    was_there, replaced = folder.exists(), _mark_in(folder)
    mark = secrets.token_hex(4)
    with writing(folder, "index"):
        folder.mkdir(exist_ok=True)
        try:
            tokens, num_documents = _join(documents)
            suffixes, starts = sort_suffixes(tokens, on_progress)
            manifest = Manifest(fingerprint, num_documents, len(suffixes), len(starts) - 1, mark)
            for name, array in (("tokens", tokens), ("suffixes", suffixes), ("starts", starts)):
                write_array(_array_file(folder, name, mark), array, "index")
            write_text(folder / _MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n", "index")
        except BaseException:
            _remove_arrays(folder, mark)
            if not was_there:
                with suppress(OSError):
                    folder.rmdir()
            raise
        _remove_arrays(folder, replaced)
        for file in folder.iterdir():
            if mark not in file.name and file.name != _MANIFEST:
                remove_if_abandoned(file)  # of a killed run
    return manifest


def _join(documents: Iterable[NDArray[np.integer]]) -> tuple[Tokens, int]:
    parts: list[Tokens] = []
    num_tokens = num_documents = 0
    separator = np.array([SEPARATOR], np.int32)
    for document in documents:
        if not len(document):
            continue
        if int(document.min()) < 0 or int(document.max()) >= MAX_TOKENS:
            raise StoreError(f"token ids of an index lie between 0 and {MAX_TOKENS - 1}")
        parts += [document.astype(np.int32), separator]
        num_tokens += len(document)
        num_documents += 1
        if num_tokens + num_documents + DEPTH > MAX_TOKENS:
            raise StoreError(f"an index holds at most {MAX_TOKENS:,} tokens; make several smaller ones")
    if not parts:
        raise StoreError("there are no tokens to index; give files with text in them")
    return np.concatenate([*parts, np.full(DEPTH, SEPARATOR, np.int32)]), num_documents


def _require_place(folder: Path) -> None:
    """Raises StoreError for a place with anything but an index in it, whole or of a killed run."""
    if not folder.exists():
        return
    if not folder.is_dir() or not all(_is_ours(file) for file in folder.iterdir()):
        raise StoreError(f"{str(folder)!r} is there already and is no index; choose another place")


def _is_ours(file: Path) -> bool:
    array = rf"(?:{'|'.join(_ARRAYS)})(?:-\w+)?\.npy"
    return bool(re.fullmatch(rf"{_MANIFEST}|{array}|\.(?:{_MANIFEST}|{array})\..*", file.name))


def _mark_in(folder: Path) -> str | None:
    try:
        return _read_manifest(folder).mark
    except StoreError:
        return None  # none there, or one that cannot be read


def _remove_arrays(folder: Path, mark: str | None) -> None:
    """Who has them open goes on reading them."""
    if mark is not None:
        for name in _ARRAYS:
            _array_file(folder, name, mark).unlink(missing_ok=True)
