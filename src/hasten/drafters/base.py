"""What a drafter is: proposes a tree, learns from what the target did with it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance, LogitRows, Sequence, TopCandidates
from hasten.errors import StoreError
from hasten.tree import DraftTree

if TYPE_CHECKING:
    from hasten.drafters.corpus.corpus_index import CorpusIndex
    from hasten.models.draft.draft_lm import DraftLM
    from hasten.models.sessions.session import Session
    from hasten.models.target import Target

__all__ = [
    "Drafter",
    "Forgetful",
    "FusedDrafter",
    "Observation",
    "Resources",
    "SelfDrafter",
    "TopCandidates",
    "require_alike",
]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a drafter may be built from.

    ``target`` is the model whose text is drafted; only drafters that run it themselves need it. ``index`` is
    a corpus index (``hasten index``), made with the target's tokenizer. ``draft`` is a smaller model that
    guesses in the target's tokens.
    """

    vocab_size: int
    target: Target | None = None
    index: CorpusIndex | None = None
    draft: DraftLM | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one step taught. ``sequence.token_ids`` already ends with ``acceptance.token_ids``.

    ``candidates`` has one row for the root and then one a node, rejected nodes included; None unless a
    drafter asked for it (``top_k``). ``logits`` [rows, vocab] are those of the whole pass on the target's
    device: the root, the nodes, and then the extra rows of a FusedDrafter, if it had any. They are to be read
    before the next pass.
    """

    tree: DraftTree
    acceptance: Acceptance
    candidates: TopCandidates | None = None
    logits: LogitRows | None = None


class Drafter(Protocol):
    """Proposes draft trees. May be wrong, slow or hostile: the written text does not change.

    One instance serves many sequences, also at the same time; what it learns may outlive them.
    """

    name: str
    top_k: int
    """how many best tokens of every node the drafter wants to see (0: none; nothing is computed)"""

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        """A sequence starts; its prompt is ``sequence.token_ids``.

        prompt_candidates: of some positions of the prompt (``positions``), as many as were worth their time,
            when top_k asked for them; the last token's come with the first step.
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


class Forgetful:
    """A drafter of which nothing outlives requests: its store is empty, and no other fits."""

    name: str

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        if state:
            raise StoreError(f"{self.name} keeps nothing between requests, found {sorted(state)}")


def require_alike(
    state: dict[str, NDArray[np.generic]], own: dict[str, NDArray[np.generic]], what: str
) -> None:
    """Raises StoreError, which says ``what`` it is about, unless names, shapes and dtypes are the same."""
    if state.keys() != own.keys():
        raise StoreError(f"{what} needs {sorted(own)}, found {sorted(state)}")
    for key, array in own.items():
        found = state[key]
        if found.shape != array.shape or found.dtype != array.dtype:
            expected = f"{array.dtype} {array.shape}"
            raise StoreError(f"{what}: {key} must be {expected}, found {found.dtype} {found.shape}")


@runtime_checkable
class ForkingDrafter(Drafter, Protocol):
    """A drafter with a state of each text that cannot be made from its tokens alone, or not so fast."""

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child goes on from where the parent is, as the parent would, and each by itself.

        In place of ``begin``; ``child.token_ids`` are those of the parent.
        """
        ...


def fork_text(drafter: Drafter, parent: Sequence, child: Sequence) -> None:
    """A text goes on twice. A drafter that cannot fork begins the child as a text with a longer prompt."""
    if isinstance(drafter, ForkingDrafter):
        drafter.fork(parent, child)
    else:
        drafter.begin(child, None)


@runtime_checkable
class BatchDrafter(Drafter, Protocol):
    """A drafter that drafts for the sequences of a batch side by side."""

    def propose_all(self, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        """As ``propose``, a tree for each sequence."""
        ...

    def while_verifying(self, sequences: list[Sequence]) -> AbstractContextManager[None]:
        """Entered around the target's pass: a drafter may work in that time."""
        ...


@runtime_checkable
class FusedDrafter(Drafter, Protocol):
    """A drafter that reads its next draft from rows of its own inside the verify pass."""

    def extend(self, sequence: Sequence, tree: DraftTree) -> DraftTree:
        """The tree with extra rows appended: nodes that see their ancestors but are never accepted.

        The first ``len(tree)`` nodes of what is returned are the tree's own. Their logits come back as the
        last rows of ``Observation.logits``. Not called in a step that drafts nothing; where a model cannot
        take the extended tree, the step runs without the extra rows.
        """
        ...


@runtime_checkable
class SelfDrafter(Drafter, Protocol):
    """A drafter that drafts with the target itself and looks into its caches."""

    def attach(self, session: Session, sequences: list[Sequence]) -> None:
        """Row i of the session holds ``sequences[i]``, some of which other drafters may draft for.

        Called before the next step whenever rows have joined or left.
        """
        ...
