"""A drafter for every row of a batch; "off" leaves a row without drafts while others have them."""

from __future__ import annotations

from hasten.core import Sequence
from hasten.drafters import Drafter, NoDrafter, Observation
from hasten.drafters.base import FusedDrafter, SelfDrafter, TopCandidates
from hasten.models.sessions.session import Session
from hasten.tree import DraftTree


class PerRow(NoDrafter):
    """Hands everything on to the drafter of the sequence."""

    name = "per-row"

    def __init__(self, drafters: list[Drafter], sequences: list[Sequence]) -> None:
        self._drafters = dict(zip(sequences, drafters, strict=True))
        self.top_k = max(drafter.top_k for drafter in drafters)

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        drafter = self._drafters[sequence]
        drafter.begin(sequence, _best(prompt_candidates, drafter.top_k))

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return self._drafters[sequence].propose(sequence, budget)

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        drafter = self._drafters[sequence]
        candidates = _best(observation.candidates, drafter.top_k)
        seen = Observation(observation.tree, observation.acceptance, candidates, observation.logits)
        drafter.observe(sequence, seen)

    def end(self, sequence: Sequence) -> None:
        self._drafters[sequence].end(sequence)

    def extend(self, sequence: Sequence, tree: DraftTree) -> DraftTree:
        drafter = self._drafters[sequence]
        return drafter.extend(sequence, tree) if isinstance(drafter, FusedDrafter) else tree

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        for drafter in {id(drafter): drafter for drafter in self._drafters.values()}.values():
            if isinstance(drafter, SelfDrafter):
                drafter.attach(session, sequences)


def _best(candidates: TopCandidates | None, k: int) -> TopCandidates | None:
    if candidates is None or not k:
        return None
    return TopCandidates(candidates.token_ids[:, :k], candidates.probs[:, :k], candidates.positions)
