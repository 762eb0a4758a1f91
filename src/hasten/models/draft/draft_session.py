"""The cache of a draft model: texts that were read once, and nodes that are grown on top of them.

A draft model falls behind while the target verifies, and catches up when the text is read again: tokens it
had grown itself are in its cache already and become text, others are run. What was grown below them stays, so
a drafter may go on ahead of the target. Knows texts and nodes; knows nothing of drafters, laws or the target.
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_rows import DraftRow, Step
from hasten.models.forwards.forward import PREFILL_CHUNK, Forward, Kept
from hasten.models.forwards.hidden_tap import HiddenForward
from hasten.models.sessions.tree_session import Block, TreeSession
from hasten.tree import ROOT

NODE_ROOM = 64
"""Positions a model of limited length keeps free for nodes."""


class DraftSession(Protocol):
    """Texts of a batch, and the nodes below each.

    Bounded context: a row holds at most ``context`` tokens of its text. A text that grew longer is read anew
    from its last ``context // 2`` tokens, as if it began there, and goes on from there until the row is full
    again. Nodes too deep for the positions that are left get approximate logits.
    """

    num_passes: int
    """forward passes run so far"""

    def read(self, texts: list[list[int]]) -> None:
        """Row i now holds ``texts[i]``, whole. Node ids of before are void.

        Neither the text before nor nodes that turned out to be written are run again; nodes below the written
        path are found again by ``grow``. Another number of texts than there are rows starts all rows anew.

        Raises ConfigError for a text without tokens.
        """
        ...

    def grow(self, wanted: list[list[tuple[int, int]]]) -> list[list[int]]:
        """Node ids of (parent node or ROOT, token id) pairs of every row.

        One pass for all rows, over the pairs that were not grown before; none if there are none.

        Raises ConfigError for a parent that is not a node.
        """
        ...

    def logits(self, row: int, node: int) -> torch.Tensor:
        """Logits [vocab] after a node; ROOT: after the text."""
        ...

    def join(self, other: Self) -> None:
        """The rows of another session of the same model go on behind these; the other one is empty then."""
        ...

    def select(self, rows: list[int]) -> None:
        """Go on with these rows, in this order."""
        ...


def open_draft_session(
    model: CausalLM, context: int | None = None, slow: bool = False, *, with_hidden: bool = False
) -> DraftSession:
    """A draft session that fits what the model was found to be able to do.

    Args:
        model: the draft model.
        context: text tokens a row may hold; by default, and at most, what the model has positions for.
        slow: run whole texts even where the model could grow trees in its cache.

    Raises:
        ConfigError: for a context without tokens.
        ModelError: for an encoder-decoder model.
    """
    if context is not None and context < 1:
        raise ConfigError(f"context={context} cannot work; it must be at least 1")
    if getattr(model.forward.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model.forward.model).__name__} reads a source as well; draft with a causal model"
        )
    limit = model.max_length
    if limit is not None:
        room = max(limit - NODE_ROOM, (limit + 1) // 2)
        context = room if context is None else min(context, room)
    session = RereadSession if slow or model.probe.mode != "tree" else GrowingSession
    forward = HiddenForward(model.forward.model) if with_hidden else model.forward
    return session(forward, context=context, max_length=limit)


def _check_texts(texts: list[list[int]]) -> None:
    if not all(texts):
        raise ConfigError("a text without tokens has no next token; give at least one")


class GrowingSession(TreeSession):
    """See DraftSession: nodes are appended to the cache, for models whose every layer takes a 4-D mask.

    Unlike in a TreeSession, a text's last token is cached like all others.

    Args:
        forward: the model.
        context: text tokens a row may hold; None: any number.
        max_length: positions of the model; None: any number.
        max_holes: hidden slots a row may have before they are compacted.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        context: int | None = None,
        max_length: int | None = None,
        max_holes: int = 64,
    ) -> None:
        super().__init__(forward, max_holes=max_holes)
        self.num_passes = 0
        self._context = context
        self._max_length = max_length
        self._rows: list[DraftRow] = []

    def read(self, texts: list[list[int]]) -> None:
        _check_texts(texts)
        if len(texts) != len(self._rows):
            self._rows = [DraftRow() for _ in texts]
            self._begin(len(texts))
        steps = [row.follow(text, self._context) for row, text in zip(self._rows, texts, strict=True)]
        for index, step in enumerate(steps):
            self._take_over(index, step)
        missing = [step.missing for step in steps]
        if any(self._lengths):
            self._drop_unused()
        elif texts:
            self.prefill(missing)
            missing = [token_ids[-1:] for token_ids in missing]
        self._catch_up(missing)

    def _take_over(self, index: int, step: Step) -> None:
        """Forget what a row's new text does not begin with, and commit the nodes it goes on with."""
        if step.num_kept < self._lengths[index]:
            self._table.visible[index] &= self._table.positions[index] < step.num_kept
        if step.written:
            self._table.visible[index, step.written] = True
        self._lengths[index] = step.num_kept + len(step.written)

    def _drop_unused(self) -> None:
        """Cut the slots after the last one of a text or a node; now and then, close the holes before it."""
        used = self._table.visible.copy()
        for index, row in enumerate(self._rows):
            used[index, row.slots] = True
        used = used[:, : 1 + int(np.flatnonzero(used.any(axis=0))[-1])]
        self._truncate(used.shape[1])
        width = max(length + len(row.slots) for length, row in zip(self._lengths, self._rows, strict=True))
        if self._compact_if_worth_it(used, width):
            new_slots = used.cumsum(axis=1) - 1
            for index, row in enumerate(self._rows):
                row.slots = new_slots[index, row.slots].tolist()

    def _catch_up(self, missing: list[list[int]]) -> None:
        """Run these tokens of every text, a chunk at a time.

        The texts end in the same slot, so that one slot's logits are enough.
        """
        size = max(map(len, missing), default=0)
        logits: torch.Tensor | None = None
        for start in range(0, size, PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, size)
            pieces = [
                token_ids[max(start - size + len(token_ids), 0) : max(stop - size + len(token_ids), 0)]
                for token_ids in missing
            ]
            logits = self._run([_at_the_end(piece, stop - start) for piece in pieces], logits_to_keep=1)
            self._commit([np.arange(stop - start - len(piece), stop - start) for piece in pieces])
        for index, row in enumerate(self._rows):
            if logits is not None and missing[index]:
                row.text_logits = logits[index, -1]

    def grow(self, wanted: list[list[tuple[int, int]]]) -> list[list[int]]:
        node_ids = [row.add(pairs) for row, pairs in zip(self._rows, wanted, strict=True)]
        blocks = [self._new_nodes(row, length) for row, length in zip(self._rows, self._lengths, strict=True)]
        counts = [len(block.token_ids) for block in blocks]
        if any(counts):
            logits = self._run(blocks, logits_to_keep=0)
            for index, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
                row.slots += range(self._block_start, self._block_start + count)
                row.logits += logits[index, :count].unbind()
        return node_ids

    def _new_nodes(self, row: DraftRow, length: int) -> Block:
        """The nodes without slots."""
        first = len(row.slots)
        deepest = None if self._max_length is None else self._max_length - 1 - length
        depths = np.array(row.depths[first:], np.int64) - 1
        queries: list[int] = []
        slots: list[int] = []
        for query, node in enumerate(row.parents[first:]):
            while node != ROOT:
                queries.append(query)
                slots.append(row.slots[node])
                node = row.parents[node]  # noqa: PLW2901
        return Block(
            np.array(row.token_ids[first:], np.int64),
            depths if deepest is None else np.minimum(depths, deepest),
            np.eye(len(depths), dtype=np.bool_),
            (queries, slots) if slots else None,
        )

    def logits(self, row: int, node: int) -> torch.Tensor:
        return self._rows[row].logits_of(node)

    def select(self, rows: list[int]) -> None:
        if rows:
            self._select(rows)
        else:
            self._begin(0)
        self._rows = [self._rows[row] for row in rows]

    def join(self, other: TreeSession) -> None:
        assert isinstance(other, GrowingSession)
        self._roots, other._roots = [0] * len(self._rows), [0] * len(other._rows)  # which nothing reads here
        rows = self._rows + other._rows
        super().join(other)
        self._rows, other._rows = rows, []

    def _run(self, blocks: list[Block], logits_to_keep: Kept) -> torch.Tensor:
        self.num_passes += 1
        return super()._run(blocks, logits_to_keep)


def _at_the_end(token_ids: list[int], size: int) -> Block:
    """A block of ``size`` tokens that ends with these; those before them are padding."""
    num_padding = size - len(token_ids)
    block = Block(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros((size, size), np.bool_))
    block.token_ids[num_padding:] = token_ids
    block.depths[num_padding:] = np.arange(len(token_ids))
    block.visible[num_padding:, num_padding:] = np.tri(len(token_ids), dtype=np.bool_)
    return block


class RereadSession:
    """See DraftSession: whole texts in every pass, for models whose caches cannot hold a tree.

    Args:
        forward: the model.
        context: text tokens a row may hold; None: any number.
        max_length: positions of the model; None: any number.
    """

    def __init__(
        self, forward: Forward, *, context: int | None = None, max_length: int | None = None
    ) -> None:
        self.num_passes = 0
        self._forward = forward
        self._context = context
        self._max_length = max_length
        self._rows: list[DraftRow] = []

    def read(self, texts: list[list[int]]) -> None:
        _check_texts(texts)
        if len(texts) != len(self._rows):
            self._rows = [DraftRow() for _ in texts]
        unread = [
            row
            for row, text in zip(self._rows, texts, strict=True)
            if row.follow(text, self._context).missing
        ]
        for row, logits in zip(unread, self._run([row.held for row in unread]), strict=True):
            row.text_logits = logits

    def grow(self, wanted: list[list[tuple[int, int]]]) -> list[list[int]]:
        node_ids = [row.add(pairs) for row, pairs in zip(self._rows, wanted, strict=True)]
        owners: list[DraftRow] = []
        texts: list[list[int]] = []
        for row in self._rows:
            new = range(len(row.logits), len(row.parents))
            row.slots += [0] * len(new)
            owners += [row] * len(new)
            texts += [row.held + row.path_to(node) for node in new]
        for row, logits in zip(owners, self._run(texts), strict=True):
            row.logits.append(logits)
        return node_ids

    def logits(self, row: int, node: int) -> torch.Tensor:
        return self._rows[row].logits_of(node)

    def select(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def join(self, other: RereadSession) -> None:
        self._rows, other._rows = self._rows + other._rows, []

    def _run(self, texts: list[list[int]]) -> list[torch.Tensor]:
        """Logits [vocab] after each text, of one pass; padded behind, where a causal model does not look."""
        if not texts:
            return []
        self.num_passes += 1
        if self._max_length is not None:
            texts = [text[-self._max_length :] for text in texts]
        sizes = [len(text) for text in texts]
        longest = max(sizes)
        token_ids: NDArray[np.int64] = np.zeros((len(texts), longest), np.int64)
        for index, text in enumerate(texts):
            token_ids[index, : len(text)] = text
        positions = np.tile(np.arange(longest), (len(texts), 1))
        logits = self._forward(token_ids, positions, None, None, logits_to_keep=1 + longest - min(sizes))
        return [logits[index, size - longest - 1] for index, size in enumerate(sizes)]
