"""What one drafter does in a running batch: drafts for its texts, as much as its policy says, and learns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from hasten.core import Acceptance, Sequence, TopCandidates
from hasten.drafters.base import (
    BatchDrafter,
    Drafter,
    FusedDrafter,
    Observation,
    SelfDrafter,
    fork_text,
)
from hasten.logits import Logits
from hasten.models.sessions.session import Session, pads_rows
from hasten.policies import DraftPolicy
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier


@dataclass(frozen=True, slots=True)
class Method:
    """Who drafts for a text, how much is verified, and by which rule: what a ``Drafting`` stands for."""

    drafter: Drafter
    policy: DraftPolicy
    verifier: Verifier = VERIFIERS["follow"]


@dataclass(frozen=True, slots=True)
class Gain:
    """What one step gained for one sequence."""

    sequence: Sequence
    tree: DraftTree
    acceptance: Acceptance

    def sources(self) -> list[str]:
        """Who proposed each written token."""
        names = [self.tree.source_names[int(self.tree.sources[node])] for node in self.acceptance.path]
        return [*names, "target"]


@dataclass(frozen=True, slots=True)
class Draft:
    """What is verified of a sequence: its tree, and the tree with the extra rows of a fused drafter."""

    tree: DraftTree
    extended: DraftTree


class DraftingGroup:
    """The texts of a batch with one drafter and one policy, in the order of their rows.

    Knows what the drafter was not told of yet: of every step, or later, of many steps as of one without a
    draft.
    """

    def __init__(self, drafter: Drafter, policy: DraftPolicy, vocab_size: int) -> None:
        self.drafter = drafter
        self.policy = policy
        self.sequences: list[Sequence] = []
        self.draft_ms = 0.0
        """of the drafter's time, what the running step took so far"""
        self._vocab_size = vocab_size
        # Asked once: whether a value keeps a protocol takes tens of microseconds.
        self._of_batches = drafter if isinstance(drafter, BatchDrafter) else None
        self._fused = drafter if isinstance(drafter, FusedDrafter) else None
        self._num_untold: Counter[Sequence] = Counter()

    def begin(self, sequence: Sequence, candidates: TopCandidates | None) -> None:
        """A text joins the batch, behind the others."""
        self.sequences.append(sequence)
        self.drafter.begin(sequence, _best(candidates, self.drafter.top_k))

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """A text goes on twice; the drafter is told first what it was not told of yet."""
        self._tell()
        self.sequences.append(child)
        fork_text(self.drafter, parent, child)

    def end(self, sequences: list[Sequence]) -> None:
        """Texts leave: the drafter hears all it was not told of yet, and forgets them."""
        self._tell()
        for sequence in sequences:
            self.sequences.remove(sequence)
            self.drafter.end(sequence)

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        """Row i of the session is now that of ``sequences[i]``, of all drafters."""
        if isinstance(self.drafter, SelfDrafter):
            self.drafter.attach(session, sequences)

    def draft(self, session: Session, num_others: int) -> list[Draft]:
        """Of each text. Trees are no deeper than it may still grow: its last token is the target's own.

        num_others: texts of other drafters in the pass.
        """
        self.draft_ms = 0.0
        with self._timed():
            contexts = [len(each.token_ids) for each in self.sequences]
            budget = self.policy.budget(contexts, num_others, pads_rows=pads_rows(session))
            if self.policy.is_learning:
                self._tell()
            trees = [session.fit(tree) for tree in self._propose(budget)]
            extends = budget > 0 and self._fused is not None
            return [
                Draft(tree, self._extended(session, sequence, tree) if extends else tree)
                for sequence, tree in zip(self.sequences, trees, strict=True)
            ]

    @property
    def top_k(self) -> int:
        """How many candidates of the step's nodes are looked at."""
        return self.drafter.top_k if self.policy.is_learning else 0

    def while_verifying(self) -> AbstractContextManager[None]:
        """To be held during the target's pass."""
        if self._of_batches is not None:
            return self._of_batches.while_verifying(self.sequences)
        return nullcontext()

    def hear(self, gains: list[Gain], logits: list[Logits]) -> None:
        """What the step gained for each text."""
        with self._timed():
            for gain, of_one in zip(gains, logits, strict=True):
                if self.policy.is_learning:
                    found = None
                    if self.top_k:  # of the tree's own rows, not of extra ones
                        found = of_one.candidates(self.top_k).rows(0, len(gain.tree) + 1)
                    seen = Observation(gain.tree, gain.acceptance, found, of_one)
                    self.drafter.observe(gain.sequence, seen)
                else:
                    self._num_untold[gain.sequence] += len(gain.acceptance.token_ids)

    def _tell(self) -> None:
        """All that was put off."""
        for sequence, count in self._num_untold.items():
            written = Acceptance([], sequence.token_ids[-count:])
            self.drafter.observe(sequence, Observation(DraftTree(), written))
        self._num_untold.clear()

    def _propose(self, budget: int) -> list[DraftTree]:
        drafter, sequences = self.drafter, self.sequences
        if not budget:
            return self.policy.choose([DraftTree() for _ in sequences])
        if self._of_batches is not None:
            trees = self._of_batches.propose_all(sequences, budget)
        else:
            trees = [drafter.propose(sequence, budget) for sequence in sequences]
        return self.policy.choose(
            [
                tree.sanitised(self._vocab_size, sequence.num_remaining - 1)
                for tree, sequence in zip(trees, sequences, strict=True)
            ]
        )

    def _extended(self, session: Session, sequence: Sequence, tree: DraftTree) -> DraftTree:
        """The tree with the drafter's extra rows, where the model can take them."""
        assert self._fused is not None
        larger = self._fused.extend(sequence, tree)
        clean = session.fit(larger.sanitised(self._vocab_size, sequence.num_remaining))
        return larger if tree.begins(larger) and len(clean) == len(larger) else tree

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.draft_ms += 1000 * (time.perf_counter() - start)


def _best(candidates: TopCandidates | None, k: int) -> TopCandidates | None:
    """The k likeliest; another drafter of the batch may have asked for more."""
    if candidates is None or not k:
        return None
    if candidates.token_ids.shape[1] <= k:
        return candidates
    return TopCandidates(candidates.token_ids[:, :k], candidates.probs[:, :k], candidates.positions)
