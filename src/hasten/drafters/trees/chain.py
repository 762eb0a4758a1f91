"""Chains (arXiv 2211.17192): one guess after the other, of a fixed length or until the draft is unsure.

The length of a chain may depend on the tokens before its end: a token is submitted first, and its confidence
then says whether another follows (Kangaroo's rule, arXiv 2404.18911, kept on the product of the path as in
SpecDec++, 2405.19715). Dropping the token instead would change the law of sampled texts.
"""

from __future__ import annotations

from collections.abc import Iterator

from hasten.core import Acceptance
from hasten.drafters.trees.growing import Growing
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree


class Chain:
    """A chain.

    Args:
        length: at most so many tokens.
        confidence: the chain ends after the token with which the draft's probability of the whole path falls
            under this; 0 never ends it early.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, length: int = 8, confidence: float = 0.0) -> None:
        if length < 1:
            raise ConfigError(f"length={length} cannot work; it must be at least 1")
        if not 0 <= confidence <= 1:
            raise ConfigError(f"confidence={confidence} cannot work; it must be between 0 and 1")
        self._length = length
        self._confidence = confidence

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        node = ROOT
        for left in reversed(range(min(self._length, tree.room, tree.max_depth))):
            added = tree.extend(node, 1)
            if not left or not added or tree.score(added[0]) < self._confidence:
                return
            yield added
            [node] = added

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """A chain learns nothing."""
