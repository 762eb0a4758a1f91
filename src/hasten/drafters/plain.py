"""No draft at all: plain decoding, in the same loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence
from hasten.drafters.base import Observation, TopCandidates
from hasten.errors import StoreError
from hasten.tree import DraftTree


class NoDrafter:
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

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        if state:
            raise StoreError(f"plain decoding learns nothing, but the store holds {sorted(state)}")
