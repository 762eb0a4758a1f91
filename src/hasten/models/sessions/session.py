"""What the decoding loop needs of a model with caches, whatever its layers can do."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, TopCandidates
from hasten.logits import Draw, Logits, ask_all
from hasten.tree import DraftTree


class Session(Protocol):
    """The caches of a batch of sequences.

    Invariant between calls: every committed token but the last is cached; that last one is the root of the
    next tree. Rows are in the order of ``prefill`` less those that ``retain`` dropped.
    """

    def prefill(
        self, prompts: list[list[int]], top_k: int = 0, positions: list[NDArray[np.int64]] | None = None
    ) -> list[TopCandidates | None]:
        """Cache all but the last token of each prompt.

        Returns, where top_k asks for it, the candidates of these positions of each prompt, rising and below
        its length - 1; of all of them where ``positions`` is None. What rows share may bring more.
        """
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

    def retain(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        ...


@runtime_checkable
class FindingSession(Session, Protocol):
    """A session whose passes find what is wanted of the logits while they compute them."""

    def find(
        self, trees: list[DraftTree], draws: AbstractSequence[Draw | None], top_k: int = 0
    ) -> list[Logits]:
        """As ``forward``. The draws are those of every row's tree; ``top_k`` candidates are asked for."""
        ...


def find(
    session: Session, trees: list[DraftTree], draws: AbstractSequence[Draw | None], top_k: int = 0
) -> list[Logits]:
    """One pass of any session. A device that computes beside the host has to be waited for afterwards."""
    if isinstance(session, FindingSession):
        return session.find(trees, draws, top_k)
    logits = [Logits(rows) for rows in session.forward(trees)]
    if logits[0].whole().device.type != "cpu":
        ask_all(logits, draws, top_k)
    return logits
