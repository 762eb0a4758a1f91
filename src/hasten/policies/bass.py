"""BASS (arXiv 2404.15778): one draft length for the whole batch, longer while drafts are accepted whole.

The constants are those of the paper as far as they are known to us; they were not checked against its code.
Made for drafters of chains: of a tree, the length counts nodes. A step in which no sequence had a draft,
which cannot happen to the paper's draft model, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core import System
from hasten.tree import DraftTree

SYSTEM = System(
    name="bass",
    title="BASS: Batched Attention-optimized Speculative Sampling",
    arxiv="2404.15778",
    kind="draft policy",
    guarantee="exact",
    module="hasten.policies.bass",
    summary="batches: one draft length for all, adapted to what the luckiest sequence accepts (policy bass)",
)

FIRST_LENGTH = 7
MAX_LENGTH = 32
INCREMENT = 2
SHRINKING = 10
"""The part of its length a draft loses when no sequence accepts it whole: a tenth, rounded up."""


class BassPolicy:
    """A common length: +2 when a sequence accepts all of it, else less, and ever less in a row."""

    is_learning = True

    def __init__(self) -> None:
        self._length = FIRST_LENGTH
        self._was_shrinking = False
        self._has_draft = False

    def num_prompt_rows(self, num_tokens: int) -> int | None:
        return None

    def begin(self, prefill_ms: float, share: float = 1.0) -> None:
        """The length goes on from text to text."""

    def budget(self, contexts: Sequence[int] = (), num_others: int = 0, *, pads_rows: bool = True) -> int:
        return self._length

    def choose(self, trees: list[DraftTree]) -> list[DraftTree]:
        self._has_draft = any(map(len, trees))
        return [tree.head(self._length) for tree in trees]

    def observe(
        self,
        num_rows: int,
        forward_ms: float,
        draft_ms: float,
        num_accepted: Sequence[int],
        other_ms: float = 0.0,
    ) -> None:
        if not self._has_draft:
            return
        most = max(num_accepted)
        if most == self._length:
            self._length = min(self._length + INCREMENT, MAX_LENGTH)
            self._was_shrinking = False
        else:
            loss = -(-self._length // SHRINKING) + self._was_shrinking
            self._length = max(1, most, self._length - loss)
            self._was_shrinking = True
