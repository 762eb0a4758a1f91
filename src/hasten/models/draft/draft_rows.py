"""One row of a draft session: its text, and the nodes below it. Knows no cache and no model."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hasten.errors import ConfigError
from hasten.tree import ROOT


class Step(NamedTuple):
    """What becomes of a row when another text is read."""

    num_kept: int  # tokens of the text before that stay
    written: list[int]  # slots of the nodes that follow them
    missing: list[int]  # tokens to be run after those


class DraftRow:
    """A text, and the nodes below it. Lists are by node; parents come before their children."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self.start = 0  # where the part that the model knows begins
        self.text_logits: torch.Tensor | None = None
        self.drop_nodes()

    def drop_nodes(self) -> None:
        self._children: dict[tuple[int, int], int] = {}
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.token_ids: list[int] = []
        self.slots: list[int] = []  # in the cache; 0 where there is none
        self.logits: list[torch.Tensor] = []

    @property
    def held(self) -> list[int]:
        """The part of the text that the model knows."""
        return self.text[self.start :]

    def path_to(self, node: int) -> list[int]:
        """Token ids from depth 1 to a node."""
        path = []
        while node != ROOT:
            path.append(self.token_ids[node])
            node = self.parents[node]
        return path[::-1]

    def add(self, wanted: list[tuple[int, int]]) -> list[int]:
        """Ids of these nodes; the new ones have no slots and logits yet."""
        for parent, _ in wanted:
            if not ROOT <= parent < len(self.parents):
                raise ConfigError(f"node {parent} was not grown since the last read; grow parents first")
        return [self._find_or_add(parent, token_id) for parent, token_id in wanted]

    def _find_or_add(self, parent: int, token_id: int) -> int:
        node = self._children.get((parent, token_id))
        if node is None:
            node = self._children[parent, token_id] = len(self.parents)
            self.parents.append(parent)
            self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
            self.token_ids.append(token_id)
        return node

    def follow(self, text: list[int], context: int | None) -> Step:
        """Hold another text."""
        held = len(self.text)
        goes_on = text[:held] == self.text
        start = self.start if goes_on else 0
        if context is not None and len(text) - start > context:
            start = len(text) - max(context // 2, 1)
        if goes_on and start == self.start:
            path = self._descend(text[held:])
            step = Step(held - start, [self.slots[node] for node in path], text[held + len(path) :])
            if path:
                self._make_root(path[-1])
        else:
            same = _common_length(text, self.text) if start == self.start else start
            # The last token is run again, because only its logits tell how the text goes on.
            num_kept = max(min(same, len(text) - 1) - start, 0)
            step = Step(num_kept, [], text[start + num_kept :])
        if step.missing:
            self.drop_nodes()
        self.text, self.start = list(text), start
        return step

    def _descend(self, token_ids: list[int]) -> list[int]:
        """The nodes that carry these tokens, as far as there are any."""
        path: list[int] = []
        for token_id in token_ids:
            node = self._children.get((path[-1] if path else ROOT, token_id))
            if node is None:
                break
            path.append(node)
        return path

    def _make_root(self, root: int) -> None:
        """Only what is below this node stays; ids change."""
        children, slots, logits = self._children, self.slots, self.logits
        self.text_logits = logits[root]
        self.drop_nodes()
        new_ids = {root: ROOT}
        for (parent, token_id), node in children.items():
            if parent in new_ids:
                new_ids[node] = self._find_or_add(new_ids[parent], token_id)
                self.slots.append(slots[node])
                self.logits.append(logits[node])

    def logits_of(self, node: int) -> torch.Tensor:
        if node != ROOT:
            return self.logits[node]
        if self.text_logits is None:
            raise ConfigError("a row that read no text has no logits; read one first")
        return self.text_logits


def _common_length(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
