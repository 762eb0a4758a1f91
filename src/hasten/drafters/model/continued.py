"""A draft model proposes, a copy continues (CopySpec with a draft model, arXiv 2502.08923; RASD, 2503.03434).

The end of the draft's likeliest path is looked up in the text; where the same words stood before, what
followed them then is appended. So a draft of a few tokens becomes a long one where a text repeats itself, for
no pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from hasten.core import Sequence, TopCandidates
from hasten.drafters.base import BatchDrafter, Drafter, Forgetful, Observation, fork_text
from hasten.tree import ROOT, DraftTree


class Copier(Drafter, Protocol):
    """A drafter that can look up a text that is not written yet."""

    def propose_after(self, sequence: Sequence, path: list[int], budget: int) -> DraftTree: ...


class Continued(Forgetful):
    """The trees of ``first``, their likeliest path continued by ``then``.

    Args:
        first: what may sample; its laws are kept, and what is appended counts as chosen.
        then: looked up at the end of the path. A quarter of the budget is left to it.
        name: of the source.
    """

    top_k = 0

    def __init__(self, first: BatchDrafter, then: Copier, name: str) -> None:
        self.first = first
        self.then = then
        self.name = name

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self.first.begin(sequence, prompt_candidates)
        self.then.begin(sequence, prompt_candidates)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return self.propose_all([sequence], budget)[0]

    def propose_all(self, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        trees = self.first.propose_all(sequences, max(1, budget - budget // 4))
        return [
            self._continue(sequence, tree, budget - len(tree))
            for sequence, tree in zip(sequences, trees, strict=True)
        ]

    def _continue(self, sequence: Sequence, tree: DraftTree, room: int) -> DraftTree:
        path = tree.likeliest_path()
        copied = self.then.propose_after(sequence, tree.token_ids[path].tolist(), room)
        longer = tree.followed_by(copied.head(room), path[-1] if path else ROOT)
        longer.source_names = (self.name,)
        return longer

    def while_verifying(self, sequences: list[Sequence]) -> AbstractContextManager[None]:
        return self.first.while_verifying(sequences)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        self.first.observe(sequence, observation)
        self.then.observe(sequence, observation)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        fork_text(self.first, parent, child)
        fork_text(self.then, parent, child)

    def end(self, sequence: Sequence) -> None:
        self.first.end(sequence)
        self.then.end(sequence)
