"""A draft model's tree while it grows: what every shape builds on.

A shape (``TreeShape``) is a generator: it adds nodes and yields those it wants the draft to read; when it
goes on, their candidates can be asked for. So it reads like its paper, and the trees of a batch grow in step,
one pass of the draft a level for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch

from hasten.core import Acceptance, LawSampler, Sequence
from hasten.drafters.trees.siblings import Candidate, Siblings, is_sampled, siblings_below
from hasten.tree import ROOT, DraftTree

STREAM = 2
"""Of the sampler's random numbers at the root's position; rules use stream 1."""

_LOWEST_SCORE = float(np.finfo(np.float32).tiny)  # of a tree's float32 scores none may become 0


class TreeShape(Protocol):
    """Grows trees of one published shape; an instance serves many sequences."""

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        """Add nodes; yield the nodes that the draft shall read, each list in one pass."""
        ...

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """What became of a tree."""
        ...


class Growing:
    """One sequence's tree.

    Args:
        sequence: the text.
        budget: the most tokens that may be drawn; a token drawn again counts again, so that the size of a
            tree never depends on what was drawn.
        max_depth: of the nodes.
        logits_of: node -> the draft's logits [vocab] after it, once it was read.
        token_price: how many tokens of the text one pass of the draft costs, in time.
        hidden_of: node -> the draft's last hidden state [hidden] at it, once it was read; for shapes that
            say they read it (``reads_hidden``).
    """

    def __init__(
        self,
        sequence: Sequence,
        budget: int,
        max_depth: int,
        logits_of: Callable[[int], torch.Tensor],
        token_price: float = 0.0,
        *,
        hidden_of: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        self.sequence = sequence
        self.hidden_of = hidden_of
        self.budget = budget
        self.max_depth = max_depth
        self.token_price = token_price
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.depths: list[int] = []
        self._draws: list[int] = []
        self._laws: list[np.ndarray | None] = []
        self._children: dict[tuple[int, int], int] = {}
        self._siblings: dict[int, Siblings] = {}
        self._kept: list[int] | None = None
        self._logits_of = logits_of
        self._position = len(sequence.token_ids)
        self.generator: np.random.Generator | None = None
        """of a sampled tree's noise: new every round, as a round's root position never comes again"""
        if is_sampled(sequence):
            assert isinstance(sequence.sampler, LawSampler)
            self.generator = sequence.sampler.generator(self._position, STREAM)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def room(self) -> int:
        """How many tokens may still be drawn."""
        return self.budget - len(self._draws)

    def depth(self, node: int) -> int:
        return 0 if node == ROOT else self.depths[node]

    def score(self, node: int) -> float:
        """The draft's probability of the path to a node."""
        return 1.0 if node == ROOT else self.scores[node]

    def siblings(self, node: int) -> Siblings:
        """What may follow a node that was read (or the root)."""
        if node not in self._siblings:
            position = self._position + self.depth(node)
            self._siblings[node] = siblings_below(
                self.sequence, self._logits_of(node), position, self.generator
            )
        return self._siblings[node]

    def add(self, parent: int, candidate: Candidate) -> int:
        """The node of a candidate; one that was drawn before is the same node again."""
        key = (parent, candidate.token_id)
        node = self._children.setdefault(key, len(self.token_ids))
        if node == len(self.token_ids):
            self.token_ids.append(candidate.token_id)
            self.parents.append(parent)
            score = self.score(parent) * min(1.0, candidate.prob)  # rounding lifts some a little above
            self.scores.append(max(score, _LOWEST_SCORE))
            self.depths.append(self.depth(parent) + 1)
            self._laws.append(candidate.law)
        self._draws.append(node)
        return node

    def extend(self, parent: int, count: int) -> list[int]:
        """The nodes of the next ``count`` candidates below a node, as far as there is room and depth."""
        if self.depth(parent) >= self.max_depth:
            return []
        return [self.add(parent, each) for each in self.siblings(parent).take(min(count, self.room))]

    def keep(self, nodes: list[int]) -> None:
        """Of tokens that were chosen, propose only these nodes; a node's parent is among them, too.

        Which sampled tokens are proposed may not depend on the tokens, so those are all kept.
        """
        assert self.generator is None
        self._kept = sorted(nodes)

    def drawn(self, wanted: Mapping[int, int]) -> Generator[list[int], None, list[int]]:
        """Has nodes read, then draws so many candidates below each: ``level = yield from tree.drawn(...)``.

        The first nodes come first where there is no room for all; none is read without need. Returns the
        nodes drawn, one again if it was drawn again.
        """
        afforded: dict[int, int] = {}
        room = self.room
        for node, count in wanted.items():
            if room > 0 and self.depth(node) < self.max_depth:
                afforded[node] = min(count, room)
                room -= afforded[node]
        if unread := [node for node in afforded if node != ROOT]:
            yield unread
        return [child for node, count in afforded.items() for child in self.extend(node, count)]

    def best_first(self, nodes: list[int]) -> list[int]:
        """These nodes, each once, the likeliest first."""
        return sorted(dict.fromkeys(nodes), key=lambda node: -self.score(node))

    def tree(self, name: str) -> DraftTree:
        whole = self._whole_tree(name)
        if self._kept is None:
            return whole
        places = {ROOT: ROOT} | {node: place for place, node in enumerate(self._kept)}
        return whole.select(self._kept, [places[self.parents[node]] for node in self._kept])

    def _whole_tree(self, name: str) -> DraftTree:
        laws = [law for law in self._laws if law is not None]
        return DraftTree(
            self.token_ids,
            self.parents,
            self.scores,
            source_names=(name,),
            draft_probs=np.stack(laws) if laws else None,
            draws=np.array(self._draws, np.int64) if len(self._draws) > len(self.token_ids) else None,
        )
