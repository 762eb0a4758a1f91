"""Where the tokens of many prompts lie when short prompts are laid end to end in shared rows.

Source: Prepacking (arXiv 2404.09529). A row shows each prompt only its own tokens and starts its positions
anew, so the keys and values are those of the prompt alone, and hardly a row is padded. Knows lengths only: no
model, no cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hasten.core import System

SYSTEM = System(
    name="prepacking",
    title="Prepacking",
    arxiv="2404.09529",
    kind="batch serving",
    guarantee="exact",
    module="hasten.models.sessions.prepacking",
    summary="many prompts of different length are cached in shared rows instead of padded ones",
)

ROW_CAPACITY = 256
"""Rows of short prompts end here: products are full by then, and attention hides few foreign tokens yet."""

_LEAST_FILLED = 7 / 8


@dataclass(slots=True)
class PackedRow:
    """Prompts laid end to end: ``prompts[i]`` takes ``sizes[i]`` slots from ``starts[i]`` on."""

    prompts: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    size: int = 0

    def append(self, prompt: int, size: int) -> None:
        self.prompts.append(prompt)
        self.starts.append(self.size)
        self.sizes.append(size)
        self.size += size

    def places(self) -> Iterator[tuple[int, slice]]:
        """Each prompt and its slots."""
        for prompt, start, size in zip(self.prompts, self.starts, self.sizes, strict=True):
            yield prompt, slice(start, start + size)

    def positions(self) -> NDArray[np.int64]:
        """[slots], from 0 in every prompt."""
        return np.arange(self.size) - np.repeat(np.asarray(self.starts, np.int64), self.sizes)

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """[stop - start, stop - start]: each of these slots sees itself and earlier ones of its prompt."""
        owners = np.repeat(np.arange(len(self.sizes)), self.sizes)[start:stop]
        return np.tril(owners[:, None] == owners[None, :])


def pack_rows(sizes: Sequence[int], capacity: int) -> list[PackedRow]:
    """Best-fit decreasing: the longest prompt first, each into the fullest row that still has room.

    A prompt longer than ``capacity`` gets a row to itself, one of size 0 gets no row at all. Returned longest
    row first.
    """
    rows: list[PackedRow] = []
    for prompt in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if not sizes[prompt]:
            break
        fitting = [row for row in rows if row.size + sizes[prompt] <= capacity]
        if not fitting:
            rows.append(PackedRow())
        row = max(fitting, key=lambda row: row.size) if fitting else rows[-1]
        row.append(prompt, sizes[prompt])
    return sorted(rows, key=lambda row: -row.size)


def group_rows(rows: list[PackedRow], max_tokens: int, chunk: int) -> list[list[PackedRow]]:
    """Rows to be run side by side, without much padding; ``rows`` come longest first.

    A pass takes at most ``chunk`` tokens of each row and ``max_tokens`` in all, unless one row has more.
    """
    groups: list[list[PackedRow]] = []
    for row in rows:
        if groups:
            grown = [*groups[-1], row]
            area = len(grown) * grown[0].size
            fits = len(grown) * min(grown[0].size, chunk) <= max_tokens
            if fits and sum(one.size for one in grown) >= _LEAST_FILLED * area:
                groups[-1] = grown
                continue
        groups.append([row])
    return groups
