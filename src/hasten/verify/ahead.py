"""Laws at positions that may never be written, for rules that judge whole paths before they keep one.

Logits processors may carry state and expect every position once and in order. So each branch of a tree is
asked with a fork of the sampler, and what is kept at the end is told to the sampler itself. Knows no rule.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from hasten.core import Acceptance, LawSampler, LogitRows, Sequence
from hasten.laws import STREAM, Law, law_sampler
from hasten.tree import ROOT, DraftTree
from hasten.verify.walk import walk


class Place:
    """A node of the tree, and the target's law of what follows it."""

    def __init__(
        self, tree: DraftTree, logits: LogitRows, sampler: LawSampler, text: list[int], node: int = ROOT
    ) -> None:
        self.tree = tree
        self.node = node
        self._logits = logits
        self._sampler = sampler
        self._text = text

    @cached_property
    def law(self) -> Law:
        """float64 [vocab]. Raises ModelError where the row holds NaN."""
        path = self.tree.token_ids[self.tree.path_to(self.node)].tolist()
        return self._sampler.law(self._logits[self.node + 1], self._text + path)

    def below(self, child: int) -> Place:
        """The place of a child, whose processors have seen this one."""
        _ = self.law  # before the fork, as processors see positions in order
        return Place(self.tree, self._logits, self._sampler.fork(), self._text, child)


class Round:
    """One step of one sequence: where its paths begin, its random numbers, and how one path is kept.

    All random numbers come from the generator of the root's position: the positions after it may come again
    in the next round, and numbers that are used twice bias the law of both rounds together.

    Raises ConfigError for a sampler that does not tell its laws.
    """

    def __init__(self, verify: str, tree: DraftTree, logits: LogitRows, sequence: Sequence) -> None:
        self._sampler = law_sampler(sequence, verify)
        self._logits = logits
        self._sequence = sequence
        fork = self._sampler.fork()
        self._is_stateful = fork is not self._sampler
        self.root = Place(tree, logits, fork, list(sequence.token_ids))
        self.generator: np.random.Generator = self._sampler.generator(len(sequence.token_ids), STREAM)

    def keep(self, place: Place, token_id: int) -> Acceptance:
        """The path to a place and the token after it, up to the first stop."""
        path = place.tree.path_to(place.node)
        tokens = [*place.tree.token_ids[path].tolist(), token_id]
        written = zip(tokens, [*path, None], strict=True)

        def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
            if self._is_stateful:
                self._sampler.law(self._logits[node + 1], token_ids)
            return next(written)

        return walk(self._sequence, choose)
