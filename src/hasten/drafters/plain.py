"""No draft at all: plain decoding, in the same loop."""

from __future__ import annotations

from hasten.core import Sequence
from hasten.drafters.base import Forgetful, Observation, TopCandidates
from hasten.tree import DraftTree


class NoDrafter(Forgetful):
    """Proposes nothing and learns nothing."""

    name = "off"
    top_k = 0

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        """Nothing to prepare."""

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return DraftTree()

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        """Nothing to learn."""

    def end(self, sequence: Sequence) -> None:
        """Nothing to forget."""
