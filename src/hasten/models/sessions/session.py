"""What the decoding loop needs of a model with caches, whatever its layers can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence as AbstractSequence
from functools import cache
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, TopCandidates
from hasten.errors import ConfigError
from hasten.logits import Draw, Logits, ask_all
from hasten.tree import DraftTree


class RowCache(NamedTuple):
    """Cached tokens of one row in the order of the text."""

    layers: list[tuple[torch.Tensor, torch.Tensor] | None]
    """keys and values of every layer, [kv heads, tokens, channels]; None for an unused layer"""
    positions: NDArray[np.int64]  # [tokens]

    def between(self, start: int, stop: int) -> RowCache:
        """Of these tokens, counted from the first that is here; views."""
        layers = [pair and (pair[0][:, start:stop], pair[1][:, start:stop]) for pair in self.layers]
        return RowCache(layers, self.positions[start:stop])

    def copy(self) -> RowCache:
        """In memory of its own."""
        return RowCache([pair and (pair[0].clone(), pair[1].clone()) for pair in self.layers], self.positions)

    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(pair[0].nbytes + pair[1].nbytes for pair in self.layers if pair is not None)


def joined(parts: AbstractSequence[RowCache]) -> RowCache:
    """Consecutive parts of one text as one."""
    layers: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for pairs in zip(*(part.layers for part in parts), strict=True):
        keys, values = ([pair[side] for pair in pairs if pair is not None] for side in (0, 1))
        layers.append((torch.cat(keys, 1), torch.cat(values, 1)) if keys else None)
    return RowCache(layers, np.concatenate([part.positions for part in parts]))


Candidates = list[TopCandidates | None]
"""Of each prompt, at some of its positions; None where there are none."""
Positions = list[NDArray[np.int64]]
"""Of each prompt: rising, below its length - 1."""
Reading = Generator[int, None, Candidates]
"""Reads prompts a chunk at a time; gives how many tokens each chunk had, and in the end the candidates."""


class Session(Protocol):
    """The caches of a batch of sequences, which join, leave and fork between passes.

    Invariant between calls: every committed token but the last is cached; that last one is the root of the
    next tree. A session begins empty, reads prompts, and may then be joined to another of its kind.
    """

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        """Cache all but the last token of each prompt, a chunk at a time; they become the rows.

        Gives in the end, where top_k asks for it, the candidates of these positions of each prompt; of all of
        them where ``positions`` is None. What rows share may bring more.

        Args:
            known: what ``CopiesRows.cached`` gave of a text that begins like the prompt, at most of all but
                its last token; it is not read again, so there are no candidates of it. Others ignore it.
        """
        ...

    def prefill(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Candidates:
        """As ``reading``, at once."""
        ...

    def fit(self, tree: DraftTree) -> DraftTree:
        """The part of a tree this model can verify in one pass: the tree, its best path, or nothing."""
        ...

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        """Logits [nodes + 1, vocab] of every row's tree, root first."""
        ...

    def keep(self, acceptances: list[Acceptance]) -> None:
        """Commit what the last ``forward`` gained; everything else it cached disappears."""
        ...

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, in this order; one that is named twice is forked."""
        ...

    def join(self, other: Self) -> None:
        """The rows of another session of the same target go on behind these; the other one is empty then."""
        ...

    def close(self) -> None:
        """Give the memory back; the session is empty afterwards."""
        ...


class ReadsAtOnce(ABC):
    """What every session makes of ``reading``."""

    @abstractmethod
    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading: ...

    def prefill(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Candidates:
        """See Session."""
        chunks = self.reading(prompts, top_k, positions, known)
        while True:
            try:
                next(chunks)
            except StopIteration as end:
                found: Candidates = end.value
                return found


@runtime_checkable
class CopiesRows(Session, Protocol):
    """A session that gives away copies of what it cached, and begins from such copies.

    What recurrent layers hold belongs to the end of a text alone, and llama.cpp keeps its states for itself.
    """

    def cached(self, row: int, start: int = 0) -> RowCache:
        """What one row has cached from position ``start`` on."""
        ...


@runtime_checkable
class FindingSession(Session, Protocol):
    """A session whose passes find what is wanted of the logits while they compute them."""

    def find(
        self,
        trees: list[DraftTree],
        draws: AbstractSequence[Draw | None],
        top_k: int = 0,
        want_hidden: AbstractSequence[int] = (),
    ) -> list[Logits]:
        """As ``forward``. The draws are those of every row's tree; ``top_k`` candidates are asked for.

        Args:
            want_hidden: layers whose hidden states come along (``Logits.hidden``).
        """
        ...


@cache
def _finds(kind: type) -> bool:
    """Asked once a kind: looking a protocol up takes a tenth of a millisecond."""
    return issubclass(kind, FindingSession)


def find(
    session: Session,
    trees: list[DraftTree],
    draws: AbstractSequence[Draw | None],
    top_k: int = 0,
    want_hidden: AbstractSequence[int] = (),
) -> list[Logits]:
    """One pass of any session. A device that computes beside the host has to be waited for afterwards.

    Raises ConfigError for a session that does not see the hidden states that are wanted.
    """
    if _finds(type(session)):
        return session.find(trees, draws, top_k, want_hidden)  # type: ignore[attr-defined, no-any-return]
    if want_hidden:
        raise ConfigError(
            f"{type(session).__name__} gives no hidden states (layers {list(want_hidden)} were asked for); "
            "load a transformers checkpoint, or choose something that reads logits only"
        )
    logits = [Logits(rows) for rows in session.forward(trees)]
    if logits[0].whole().device.type != "cpu":
        ask_all(logits, draws, top_k)
    return logits


@runtime_checkable
class RaggedSession(Session, Protocol):
    """A session that knows whether its passes compute padding."""

    @property
    def pads_rows(self) -> bool:
        """Whether every row of a pass costs as much as the widest one."""
        ...


def pads_rows(session: Session) -> bool:
    """Whether every row of a pass costs as much as the widest one, as it does where nothing else is known."""
    return session.pads_rows if isinstance(session, RaggedSession) else True


def num_rows_run(session: Session, trees: list[DraftTree]) -> int:
    """Rows that a pass over these trees computes: roots, nodes, and what pads them."""
    sizes = [len(tree) + 1 for tree in trees]
    return len(sizes) * max(sizes) if pads_rows(session) else sum(sizes)
