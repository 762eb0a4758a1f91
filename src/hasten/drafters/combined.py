"""Every source in one tree, chosen best-first by calibrated acceptance probability.

Each source scores its guesses in its own way; what such scores and the agreement of sources are worth is
learnt in calibration.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence as AbstractSequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hasten.core import SAMPLED, Sequence
from hasten.drafters.base import (
    BatchDrafter,
    Drafter,
    FusedDrafter,
    Observation,
    SelfDrafter,
    TopCandidates,
    fork_text,
)
from hasten.drafters.calibration import Calibration, Pool
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree, with_chosen_laws

if TYPE_CHECKING:
    from hasten.models.sessions.session import Session

_MAX_SOURCES = 6
_CALIBRATION = "calibration/"


class CombinedDrafter:
    """The union of several drafters; with one drafter, that drafter with calibrated scores.

    Raises ConfigError for no drafters, more than six, or several with extra rows of their own.
    """

    def __init__(self, drafters: AbstractSequence[Drafter], name: str = "auto") -> None:
        if not 1 <= len(drafters) <= _MAX_SOURCES:
            raise ConfigError(f"{len(drafters)} drafters cannot be combined; give 1 to {_MAX_SOURCES}")
        self.name = name
        self.drafters = list(drafters)
        self.top_k = max(drafter.top_k for drafter in drafters)
        count = len(self.drafters)
        self._calibration = Calibration(count)
        names = [drafter.name for drafter in self.drafters]
        self._set_names = tuple(
            "+".join(name for bit, name in enumerate(names) if mask >> bit & 1) for mask in range(2**count)
        )
        self._pools: dict[Sequence, Pool] = {}
        fused = [drafter for drafter in self.drafters if isinstance(drafter, FusedDrafter)]
        if len(fused) > 1:
            names = [drafter.name for drafter in fused]
            raise ConfigError(f"{'+'.join(names)} cannot be combined: each adds rows to the pass; choose one")
        self._fused = fused[0] if fused else None
        # Asked once: whether a value keeps a protocol takes tens of microseconds.
        self._batch_drafters = [
            drafter if isinstance(drafter, BatchDrafter) else None for drafter in self.drafters
        ]

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        for drafter in self.drafters:
            if isinstance(drafter, SelfDrafter):
                drafter.attach(session, sequences)

    def extend(self, sequence: Sequence, tree: DraftTree) -> DraftTree:
        return self._fused.extend(sequence, tree) if self._fused else tree

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        for drafter in self.drafters:
            drafter.begin(sequence, prompt_candidates if drafter.top_k else None)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        """Nodes come best first; scores are calibrated probabilities of the whole path."""
        return self.propose_all([sequence], budget)[0]

    def propose_all(self, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        """As ``propose``, a tree for each sequence.

        A tree that the first source sampled is kept whole and in its order, as the rules that weigh its laws
        demand; what others proposed follows, best first, in a third of the nodes that is left to them.
        """
        is_sampled = len(self.drafters) > 1 and any(each.proposals in SAMPLED for each in sequences)
        first_budget = budget - budget // 3 if is_sampled else budget
        by_source = [
            self._proposals_of(index, sequences, budget if index else first_budget)
            for index in range(len(self.drafters))
        ]
        return [
            self._union(sequence, list(trees), budget)
            for sequence, *trees in zip(sequences, *by_source, strict=True)
        ]

    def _proposals_of(self, source: int, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        if (of_batches := self._batch_drafters[source]) is not None:
            trees = of_batches.propose_all(sequences, budget)
        else:
            trees = [self.drafters[source].propose(sequence, budget) for sequence in sequences]
        return [tree.checked() for tree in trees]

    def _union(self, sequence: Sequence, trees: list[DraftTree], budget: int) -> DraftTree:
        if not any(map(len, trees)):
            self._pools.pop(sequence, None)
            return DraftTree()
        pool = self._pools[sequence] = self._calibration.merge(trees)
        laws = trees[0].draft_probs
        num_sampled = 0 if laws is None else len(trees[0])
        order, parents = pool.choose(max(budget, num_sampled), num_sampled)
        if laws is not None and len(order) > num_sampled:
            laws = with_chosen_laws(laws, pool.token_ids[order[num_sampled:]])
        return DraftTree(
            pool.token_ids[order],
            parents,
            pool.scores[order],
            pool.source_sets[order],
            self._set_names,
            draft_probs=laws,
            draws=_with_chosen(trees[0].draws, num_sampled, len(order)),
        )

    @contextmanager
    def while_verifying(self, sequences: list[Sequence]) -> Iterator[None]:
        with ExitStack() as stack:
            for drafter in self._batch_drafters:
                if drafter is not None:
                    stack.enter_context(drafter.while_verifying(sequences))
            yield

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        pool = self._pools.pop(sequence, None)
        if pool is not None and sequence.guarantee != "approximate":
            self._calibration.learn(pool, np.asarray(observation.acceptance.token_ids, np.int64))
        for drafter in self.drafters:
            drafter.observe(sequence, observation)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        for drafter in self.drafters:
            fork_text(drafter, parent, child)

    def end(self, sequence: Sequence) -> None:
        self._pools.pop(sequence, None)
        for drafter in self.drafters:
            drafter.end(sequence)

    def state(self) -> dict[str, NDArray[np.generic]]:
        state = {_CALIBRATION + key: value for key, value in self._calibration.state().items()}
        for drafter in self.drafters:
            state |= {f"{drafter.name}/{key}": value for key, value in drafter.state().items()}
        return state

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        mine = {
            key.removeprefix(_CALIBRATION): value
            for key, value in state.items()
            if key.startswith(_CALIBRATION)
        }
        try:
            self._calibration.check(mine)
        except StoreError as problem:
            raise StoreError(
                f"{problem}, so it does not fit the drafters {self._set_names[-1]}; a store is for the "
                "drafters that wrote it, and auto with a draft model is another than auto without"
            ) from problem
        parts: dict[str, dict[str, NDArray[np.generic]]] = {drafter.name: {} for drafter in self.drafters}
        for key, value in state.items():
            owner, _, name = key.partition("/")
            if owner in parts:
                parts[owner][name] = value
            elif not key.startswith(_CALIBRATION):
                raise StoreError(f"{key} belongs to none of the drafters {self._set_names[-1]}")
        before = [drafter.state() for drafter in self.drafters]
        try:
            for drafter in self.drafters:
                drafter.restore(parts[drafter.name])
        except StoreError:
            for drafter, learnt in zip(self.drafters, before, strict=True):
                drafter.restore(learnt)
            raise
        self._calibration.restore(mine)


def _with_chosen(
    draws: NDArray[np.int64] | None, num_sampled: int, num_nodes: int
) -> NDArray[np.int64] | None:
    """The order of drawing, where chosen nodes come after the sampled ones."""
    return None if draws is None else np.concatenate((draws, np.arange(num_sampled, num_nodes)))
