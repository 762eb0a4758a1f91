"""A draft model (arXiv 2211.17192, 2302.01318): a smaller model grows the tree that the target verifies.

The draft keeps a cache of its own for the sequences it drafts for, and catches up in its next pass with what
was written, whoever proposed it. How its guesses become a tree is a ``TreeShape``; several arms (a shape with
an exit of the draft, as in S2D, 2407.01955) may be given, and the one that writes fastest on this machine is
used most. A draft that costs more time than its tokens save is left out for a while, then tried again;
requests count the steps it was left out for in ``DecodeStats.resting_steps``.

Where draft and target run on different devices, the draft reads ahead while the target verifies, as if all it
had proposed were right (DuoDecoding, 2503.00784); what it read is found in its cache if it was. On one device
that is tried once and kept if it was faster.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.model.arms import Arm, Arms
from hasten.drafters.model.reading_ahead import Overlap, ReadingAhead
from hasten.drafters.trees.rows import Row
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

if TYPE_CHECKING:
    import torch

    from hasten.models.draft.draft_lm import DraftLM
    from hasten.models.draft.draft_session import DraftSession

SYSTEM = System(
    name="draft",
    title="Fast Inference from Transformers via Speculative Decoding",
    arxiv="2211.17192",
    kind="draft model",
    guarantee="exact",
    module="hasten.drafters.model.draft_model",
    summary="a smaller model grows the tree; its shape follows what a pass costs and gains",
)


@dataclass(eq=False)
class _Text:
    """What the draft reads for a sequence."""

    draft_ids: list[int] = field(default_factory=list)
    num_read: int = 0
    """target tokens that ``draft_ids`` stands for"""

    def follow(self, sequence: Sequence, draft: DraftLM) -> list[int]:
        self.draft_ids += draft.to_draft(sequence.token_ids[self.num_read :])
        self.num_read = len(sequence.token_ids)
        return self.draft_ids


@dataclass(eq=False)
class _Group:
    """Sequences that are drafted for side by side, with the cache that they share."""

    draft: DraftLM
    sequences: list[Sequence]
    session: DraftSession
    texts: dict[Sequence, _Text]
    reads_hidden: bool = False
    """whether the session's rows end with hidden states"""
    rows: list[Row] = field(default_factory=list)
    """of the last round, to read on while the target verifies"""
    finished: set[Sequence] = field(default_factory=set)

    def join(self, other: _Group) -> None:
        """The sequences of another group of the same draft go on behind these."""
        self.session.join(other.session)
        self.sequences += other.sequences
        self.texts |= other.texts

    def retain(self, sequences: list[Sequence]) -> None:
        """Go on with these, in their order."""
        if sequences != self.sequences:
            self.session.select([self.sequences.index(each) for each in sequences])
            self.sequences = list(sequences)
            self.texts = {each: self.texts[each] for each in sequences}


class _Round:
    """What is measured from a proposal to what became of it; without an arm, the draft rests."""

    def __init__(self, arm: Arm | None, num_rows: int) -> None:
        self.arm = arm
        self.started = time.perf_counter()
        self.trees: dict[Sequence, DraftTree] = {}
        self.num_rows = self.num_left = num_rows
        self.num_tokens = 0


class DraftModel(Forgetful):
    """Trees of a draft model.

    Args:
        arms: ways to draft; with several, each is tried and then the fastest used, the others now and then.
        name: of the source.
        rests: draft nothing while tokens take less time without, which is tried as well.
        overlap: "on" reads ahead while the target verifies, "off" never, "auto" where that pays.
        target_device: where the target runs.

    Raises ConfigError for no arm, or an unknown overlap.
    """

    top_k = 0

    def __init__(
        self,
        arms: list[Arm],
        name: str = "draft",
        *,
        rests: bool = False,
        overlap: Overlap = "auto",
        target_device: torch.device | None = None,
    ) -> None:
        if not arms:
            raise ConfigError("a draft model needs at least one tree shape")
        self.name = name
        self._arms = Arms(arms, may_rest=rests)
        has_own_device = target_device is not None and arms[0].draft.model.device != target_device
        self._ahead = ReadingAhead(overlap, has_own_device=has_own_device)
        self._groups: list[_Group] = []
        self._rounds: dict[Sequence, _Round] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        """The prompt is read with the first proposal, side by side with the others of its batch."""

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return self.propose_all([sequence], budget)[0]

    def propose_all(self, sequences: list[Sequence], budget: int) -> list[DraftTree]:
        """A tree for each, all grown in step: one pass of the draft a level."""
        arm = self._arms.choose()
        if arm is None:
            self._rounds |= dict.fromkeys(sequences, _Round(None, len(sequences)))
            for sequence in sequences:
                sequence.stats.resting_steps[self.name] += 1
            return self._nothing(sequences)
        group = self._group(arm, sequences)
        session = group.session
        texts = [group.texts[each].follow(each, arm.draft) for each in sequences]
        if not all(texts):  # tokens that mean nothing in the draft's vocabulary, and no others
            return self._nothing(sequences)
        if not session.num_passes:
            session.read(texts)  # prompts are read once, which is no part of what a round costs
        current = _Round(arm, len(sequences))
        passes = session.num_passes
        session.read(texts)
        trees = self._grow(arm, group, budget)
        draft_ms = 1000 * (time.perf_counter() - current.started)
        arm.took(draft_ms / max(1, session.num_passes - passes))
        current.trees = dict(zip(sequences, trees, strict=True))
        self._rounds |= dict.fromkeys(sequences, current)
        return trees

    def _nothing(self, sequences: list[Sequence]) -> list[DraftTree]:
        return [DraftTree(source_names=(self.name,)) for _ in sequences]

    def _grow(self, arm: Arm, group: _Group, budget: int) -> list[DraftTree]:
        token_price = self._arms.token_price(arm)
        group.rows = [
            Row(
                arm.draft,
                arm.shape,
                group.session,
                row,
                sequence,
                budget=budget,
                token_price=token_price,
            )
            for row, sequence in enumerate(group.sequences)
        ]
        while True:
            wants_more = [row.advance() for row in group.rows]
            if not any(wants_more):
                break
            found = group.session.grow([row.wanted() for row in group.rows])
            for row, node_ids in zip(group.rows, found, strict=True):
                row.read(node_ids)
        return [row.tree.tree(self.name) for row in group.rows]

    @contextmanager
    def while_verifying(self, sequences: list[Sequence]) -> Iterator[None]:
        """Reads ahead in the time that the body takes, where that pays."""
        asked = {each for each in sequences if each in self._rounds and self._rounds[each].arm}
        group = next((each for each in self._groups if asked and asked <= set(each.sequences)), None)
        if group is None or not self._ahead.is_on():
            yield
            return
        with self._ahead.reading(group.session, group.rows):
            yield

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        current = self._rounds.pop(sequence, None)
        if current is None:
            return
        acceptance = observation.acceptance
        if current.arm:
            own = current.trees[sequence]
            current.arm.shape.learn(own, replace(acceptance, path=_written_path(own, acceptance.token_ids)))
        current.num_tokens += len(acceptance.token_ids)
        current.num_left -= 1
        if not current.num_left:
            spent_ms = 1000 * (time.perf_counter() - current.started)
            self._arms.add(current.arm, spent_ms, current.num_tokens / current.num_rows)
            if current.arm:
                self._ahead.judge(spent_ms)

    def end(self, sequence: Sequence) -> None:
        self._rounds.pop(sequence, None)
        for group in self._groups:
            group.finished.add(sequence)
        self._groups = [group for group in self._groups if not group.finished.issuperset(group.sequences)]

    def _group(self, arm: Arm, sequences: list[Sequence]) -> _Group:
        """The cache of these sequences: theirs alone, in this order."""
        reads_hidden = getattr(arm.shape, "reads_hidden", False)
        for group in self._groups:
            if group.draft is not arm.draft or group.reads_hidden != reads_hidden:
                continue
            new = [each for each in sequences if each not in group.sequences]
            if len(new) < len(sequences) and self._has_joined(group, new, arm):
                group.retain(sequences)
                return group
        return self._opened(arm, sequences, reads_hidden=reads_hidden)

    def _has_joined(self, group: _Group, new: list[Sequence], arm: Arm) -> bool:
        """Sequences that the batch was joined by are read by themselves first, and go on in the group."""
        if not new:
            return True
        joining = self._opened(arm, new, reads_hidden=group.reads_hidden)
        self._groups.remove(joining)
        texts = [joining.texts[each].follow(each, arm.draft) for each in new]
        if not all(texts):
            return False
        joining.session.read(texts)
        group.join(joining)
        return True

    def _opened(self, arm: Arm, sequences: list[Sequence], *, reads_hidden: bool) -> _Group:
        from hasten.models.draft.draft_session import open_draft_session  # transformers is heavy to import

        session = open_draft_session(arm.draft.model, arm.draft.context, with_hidden=reads_hidden)
        texts = {each: _Text() for each in sequences}
        group = _Group(arm.draft, list(sequences), session, texts, reads_hidden)
        self._groups.append(group)
        return group


def _written_path(tree: DraftTree, token_ids: list[int]) -> list[int]:
    """The nodes of a tree that were written, whoever proposed them in the tree that was verified."""
    path: list[int] = []
    for token_id in token_ids:
        node = tree.child(path[-1] if path else ROOT, token_id)
        if node is None:
            break
        path.append(node)
    return path
