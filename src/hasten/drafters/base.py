"""What a drafter is: proposes a tree, learns from what the target did with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance, Sequence, TopCandidates
from hasten.tree import DraftTree

__all__ = ["Drafter", "Observation", "TopCandidates"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step taught. ``sequence.token_ids`` already ends with ``acceptance.token_ids``.

    ``candidates`` has one row for the root and then one a node, rejected nodes included; None unless a
    drafter asked for it (``top_k``).
    """

    tree: DraftTree
    acceptance: Acceptance
    candidates: TopCandidates | None = None


class Drafter(Protocol):
    """Proposes draft trees. May be wrong, slow or hostile: the written text does not change.

    One instance serves many sequences, also at the same time; what it learns may outlive them.
    """

    name: str
    top_k: int
    """how many best tokens of every node the drafter wants to see (0: none; nothing is computed)"""

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        """A sequence starts; its prompt is ``sequence.token_ids``.

        prompt_candidates: rows for the prompt positions 0 .. len(prompt) - 2, when top_k asked for them.
        """
        ...

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        """At most ``budget`` guesses for what follows ``sequence.token_ids``, without learning anything."""
        ...

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        """Learn from a step."""
        ...

    def end(self, sequence: Sequence) -> None:
        """The sequence is finished (or was given up): forget its state, keep what it taught."""
        ...

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What outlives requests, as arrays; empty if nothing does."""
        ...

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises StoreError if it does not fit."""
        ...
