"""One row of a draft model's cache: the tree that grows there, and where its nodes are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.core import Sequence
from hasten.drafters.trees.growing import Growing, TreeShape
from hasten.tree import ROOT

if TYPE_CHECKING:
    import torch

    from hasten.models.draft.draft_lm import DraftLM
    from hasten.models.draft.draft_session import DraftSession


class Row:
    """Lets a shape grow a tree and tells the draft what to read for it.

    Args:
        row: which one of the session's it is; it holds the sequence's text.
        budget, token_price: see Growing.
    """

    def __init__(
        self,
        draft: DraftLM,
        shape: TreeShape,
        session: DraftSession,
        row: int,
        sequence: Sequence,
        *,
        budget: int,
        token_price: float,
    ) -> None:
        self._draft = draft
        self._session = session
        self._row = row
        depth = max(0, sequence.num_remaining - 1)
        reads_hidden = getattr(shape, "reads_hidden", False)
        self.tree = Growing(
            sequence,
            budget if depth else 0,
            depth,
            self._logits,
            token_price,
            hidden_of=self._hidden if reads_hidden else None,
        )
        self._steps = shape.grow(self.tree)
        self._ids = {ROOT: ROOT}  # node of the tree -> node of the session
        self._asked: list[int] = []

    def _logits(self, node: int) -> torch.Tensor:
        return self._draft.to_target(self._session.logits(self._row, self._ids[node]))

    def _hidden(self, node: int) -> torch.Tensor:
        return self._session.logits(self._row, self._ids[node])[len(self._draft.head_ids) :]

    def advance(self) -> bool:
        """Let the shape add nodes; whether it wants any read."""
        nodes = next(self._steps, [])
        self._asked = [node for node in dict.fromkeys(nodes) if node not in self._ids]
        return bool(nodes)

    def wanted(self) -> list[tuple[int, int]]:
        """What the session is to grow: (its parent node, the draft's token)."""
        return [self._pair(node) for node in self._asked]

    def read(self, node_ids: list[int]) -> None:
        """The session's nodes of what was wanted."""
        self._ids.update(zip(self._asked, node_ids, strict=True))

    def _pair(self, node: int) -> tuple[int, int]:
        token_id = self._draft.draft_token(self.tree.token_ids[node])
        assert token_id is not None, "the draft's law holds shared tokens only"
        return self._ids[self.tree.parents[node]], token_id

    def unread(self) -> list[tuple[int, int]]:
        """The last node of the likeliest path, as ``wanted``; nothing if it was read."""
        node = self._likeliest()
        return [] if node in self._ids else [self._pair(node)]

    def last_read(self) -> int:
        """The session's node at the end of the likeliest path, if it was read."""
        return self._ids.get(self._likeliest(), ROOT)

    def _likeliest(self) -> int:
        node = ROOT
        children = [each for each, parent in enumerate(self.tree.parents) if parent == node]
        while children:
            node = max(children, key=self.tree.scores.__getitem__)
            children = [each for each, parent in enumerate(self.tree.parents) if parent == node]
        return node

    def following(self, node: int) -> tuple[int, int]:
        """(a node of the session, the draft's best token after it)."""
        head_ids = self._draft.head_ids
        column = int(self._session.logits(self._row, node)[: len(head_ids)].argmax())
        return node, int(head_ids[column])
