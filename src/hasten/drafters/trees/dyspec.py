"""DySpec (arXiv 2410.11744): trees that grow where the draft is likeliest to be accepted.

A slot is a place for one more child of a node. Its value is the draft's probability of reaching it: that of
the node's path times what the node's elder children left of the law. The most valuable slot is filled with a
token drawn from what is left; that opens the slot beside it and the first one below it. If tokens are
accepted as often as the draft writes them, no tree of as many nodes gains more. A slot's value, and so
whether it is filled, depends on its elder siblings and its ancestors, never on its own token.

The heap has the draft read a node at a time. The threshold variant fills, level by level, all slots above a
value: as many passes as levels.

Tokens are drawn without replacement whatever the rule wants. Where they are not drawn, a slot is worth what
its token is, and the tree holds the likeliest paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.siblings import Candidate
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

_TITLE = "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure"

HEAP_SYSTEM = System(
    name="dyspec",
    title=_TITLE,
    arxiv="2410.11744",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.dyspec",
    summary="the likeliest tree by the draft's own probabilities, a pass of the draft a node",
)
THRESHOLD_SYSTEM = System(
    name="dyspec-threshold",
    title=_TITLE,
    arxiv="2410.11744",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.dyspec",
    summary="all nodes that the draft thinks likely enough, a pass of the draft a level",
)


class DySpec:
    """The most valuable slots, one by one.

    A node that is worth less than the time of the pass that would read it has no children.
    """

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        slots = _Slots(tree)
        slots.open(ROOT)
        while tree.room and (found := slots.pop()):
            node, value = found
            if node in slots.read:
                child = slots.fill(node)
                slots.open(node)
                slots.open(child)
            elif value >= tree.token_price:
                yield [node]
                slots.read.add(node)
                slots.open(node)

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """DySpec learns nothing."""


class DySpecThreshold:
    """All slots above a value, level by level; the most valuable of a level where room is short.

    Args:
        threshold: slots of this value and less stay empty; None: one over the budget. The levels end where
            all nodes of the last one together are worth less than the time of a pass.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise ConfigError(f"threshold={threshold} cannot work; it must be 0 or more, and below 1")
        self._threshold = threshold

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        threshold = 1 / max(2, tree.budget) if self._threshold is None else self._threshold
        level = [ROOT]
        while level and tree.room:
            if level != [ROOT]:
                if sum(map(tree.score, level)) < tree.token_price:
                    return
                yield level
            children = _fill_level(tree, level, threshold)
            below = [node for node in tree.best_first(children) if tree.score(node) > threshold]
            level = [node for node in below if tree.depth(node) < tree.max_depth][: tree.room]

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """DySpec learns nothing."""


def _fill_level(tree: Growing, level: list[int], threshold: float) -> list[int]:
    slots = _Slots(tree, threshold)
    slots.read.update(level)
    for node in level:
        slots.open(node)
    children = []
    while tree.room and (found := slots.pop()):
        node, _ = found
        children.append(slots.fill(node))
        slots.open(node)
    return children


class _Slots:
    """Slots above a value, the most valuable first. A node has at most one, for its next child."""

    def __init__(self, tree: Growing, threshold: float = 0.0) -> None:
        self.read = {ROOT}
        """the nodes whose candidates are known"""
        self._tree = tree
        self._threshold = threshold
        self._heap: list[tuple[float, int, int]] = []
        self._num_opened = 0
        self._next: dict[int, Candidate] = {}

    def open(self, node: int) -> None:
        """The slot for the next child of a node, if there can be one."""
        value = self._value(node)
        if self._tree.depth(node) < self._tree.max_depth and value > self._threshold:
            self._num_opened += 1
            heappush(self._heap, (-value, self._num_opened, node))

    def pop(self) -> tuple[int, float] | None:
        """(node, value of its slot), the most valuable; equal ones in the order they were opened in."""
        if not self._heap:
            return None
        value, _, node = heappop(self._heap)
        return node, -value

    def fill(self, node: int) -> int:
        """The child in a node's slot."""
        candidate = self._next.pop(node, None) or self._take(node)
        assert candidate is not None, "a slot without a candidate has no value"
        return self._tree.add(node, candidate)

    def _value(self, node: int) -> float:
        """Of its next slot. A node that was not read yet could have a child as likely as itself."""
        score = self._tree.score(node)
        if node not in self.read:
            return score
        if self._tree.generator is not None:
            return score * self._tree.siblings(node).remaining
        if (candidate := self._take(node)) is None:
            return 0.0
        self._next[node] = candidate
        return score * candidate.prob

    def _take(self, node: int) -> Candidate | None:
        return next(iter(self._tree.siblings(node).take(1, distinct=True)), None)
