"""DraftTree: guesses for the next tokens of one sequence; knows nothing about models or drafters.

``python -m hasten.tree`` draws one and its attention mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError

ROOT = -1
"""Parent of the nodes at depth 1. The root is the last committed token; it is not a node of the tree."""


class DraftTree:
    """A token tree below the last committed token.

    Invariants: ``parents[i] < i`` (topological order, so every prefix of the node list is ancestor-closed),
    siblings carry distinct tokens, and scores never rise from parent to child. Drafters may break them:
    ``checked`` refuses what cannot even be read, ``sanitised`` drops what cannot be verified, and wrong
    scores cost time only.

    Args:
        token_ids: int [nodes].
        parents: int [nodes]; ROOT (-1) below the last committed token.
        scores: float32 [nodes], the estimated probability that the target accepts the node *and all its
            ancestors*; 1.0 everywhere if omitted.
        sources: int [nodes], an index into source_names for the drafter that proposed the node.
        source_names: the drafters' names.
        draft_probs: float32 [nodes, vocab], the law each node's token was sampled from, where it was; for
            verification rules that use it. None: the tokens were chosen, not sampled.
        draws: int [draws], the nodes in the order they were drawn in, a node again where independent draws
            gave its token again. None: every node once, in node order.
    """

    __slots__ = (
        "_children",
        "_depths",
        "_is_checked",
        "draft_probs",
        "draws",
        "parents",
        "scores",
        "source_names",
        "sources",
        "token_ids",
    )

    def __init__(
        self,
        token_ids: Sequence[int] | NDArray[np.integer] = (),
        parents: Sequence[int] | NDArray[np.integer] = (),
        scores: Sequence[float] | NDArray[np.floating] | None = None,
        sources: Sequence[int] | NDArray[np.integer] | None = None,
        source_names: tuple[str, ...] = ("draft",),
        *,
        draft_probs: NDArray[np.float32] | None = None,
        draws: NDArray[np.int64] | None = None,
    ) -> None:
        self.token_ids = _whole("token_ids", token_ids)
        self.parents = _whole("parents", parents)
        count = len(self.token_ids)
        self.scores = np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32)
        self.sources = np.zeros(count, np.int64) if sources is None else _whole("sources", sources)
        self.source_names = source_names
        self.draft_probs = draft_probs
        self.draws = draws
        self._children: dict[tuple[int, int], int] | None = None
        self._depths: NDArray[np.int64] | None = None
        self._is_checked = False

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return f"DraftTree(token_ids={self.token_ids.tolist()}, parents={self.parents.tolist()})"

    @classmethod
    def chain(
        cls,
        token_ids: Sequence[int],
        scores: Sequence[float] | None = None,
        source_names: tuple[str, ...] = ("draft",),
    ) -> DraftTree:
        """A tree with one path."""
        return cls(token_ids, np.arange(-1, len(token_ids) - 1), scores, source_names=source_names)

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> DraftTree:
        """The prefix union of token paths; nodes in order of first appearance."""
        token_ids: list[int] = []
        parents: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        for path in paths:
            parent = ROOT
            for token in path:
                node = seen.setdefault((parent, int(token)), len(token_ids))
                if node == len(token_ids):
                    token_ids.append(int(token))
                    parents.append(parent)
                parent = node
        return cls(token_ids, parents)

    @classmethod
    def fuse(cls, trees: Iterable[DraftTree]) -> DraftTree:
        """The prefix union: every path of every tree, each node once and with the best score it has in any.

        Nodes come in order of first appearance and keep their first source. The laws that tokens were sampled
        from (``draft_probs``) are left out, as they are not those of the union.
        """
        token_ids: list[int] = []
        parents: list[int] = []
        scores: list[float] = []
        sources: list[int] = []
        names: dict[str, int] = {}
        seen: dict[tuple[int, int], int] = {}
        for tree in trees:
            source_of = [names.setdefault(name, len(names)) for name in tree.source_names]
            fused: list[int] = []
            columns = (tree.checked().token_ids, tree.parents, tree.scores, tree.sources)
            for token, parent, score, source in zip(*(column.tolist() for column in columns), strict=True):
                above = ROOT if parent == ROOT else fused[parent]
                node = seen.setdefault((above, token), len(token_ids))
                if node == len(token_ids):
                    token_ids.append(token)
                    parents.append(above)
                    scores.append(score)
                    sources.append(source_of[source])
                scores[node] = max(scores[node], score)
                fused.append(node)
        return cls(token_ids, parents, scores, sources, tuple(names) or ("draft",))

    def child(self, parent: int, token_id: int) -> int | None:
        """The node below ``parent`` that carries ``token_id``."""
        if self._children is None:
            pairs = zip(self.parents.tolist(), self.token_ids.tolist(), strict=True)
            self._children = {}
            for node, pair in enumerate(pairs):
                self._children.setdefault(pair, node)
        return self._children.get((parent, token_id))

    def drawn_below(self, parent: int) -> list[int]:
        """The children of a node in the order they were drawn in, one as often as it was drawn."""
        draws = np.arange(len(self)) if self.draws is None else self.draws
        children: list[int] = draws[self.parents[draws] == parent].tolist()
        return children

    def depths(self) -> NDArray[np.int64]:
        """int64 [nodes]; children of the root have depth 1."""
        if self._depths is None:
            depths = [0] * (len(self) + 1)  # the root's is the last
            for node, parent in enumerate(self.parents.tolist()):
                depths[node] = depths[parent] + 1
            self._depths = np.array(depths[:-1], np.int64)
        return self._depths

    def attention_mask(self) -> NDArray[np.bool_]:
        """bool [nodes + 1, nodes + 1]: row i may see column j. Row and column 0 are the root."""
        size = len(self) + 1
        mask = np.zeros((size, size), np.bool_)
        mask[0, 0] = True
        for node, parent in enumerate(self.parents.tolist(), start=1):
            mask[node] = mask[parent + 1]
            mask[node, node] = True
        return mask

    def path_to(self, node: int) -> list[int]:
        """The nodes from depth 1 to ``node``."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = int(self.parents[node])
        return path[::-1]

    def likeliest_path(self) -> list[int]:
        """The nodes from depth 1 on, always the best-scored child, the first among equals."""
        best: dict[int, int] = {}
        for node, parent in enumerate(self.parents.tolist()):
            if parent not in best or self.scores[node] > self.scores[best[parent]]:
                best[parent] = node
        path: list[int] = []
        node = ROOT
        while node in best:
            node = best[node]
            path.append(node)
        return path

    def head(self, count: int) -> DraftTree:
        """The first ``count`` nodes: ancestor-closed, because parents come first."""
        if count >= len(self):
            return self
        return self.select(slice(count), self.parents[:count])

    def checked(self) -> DraftTree:
        """Itself. Compiled loops trust what this checks: indexes and lengths of every column.

        Raises ConfigError that names the column.
        """
        if not self._is_checked and (problem := self._problem()):
            raise ConfigError(f"not a tree: {problem}")
        self._is_checked = True
        return self

    def _problem(self) -> str | None:
        shape, count = self.token_ids.shape, len(self.token_ids)
        columns = (self.parents, self.scores, self.sources)
        if len(shape) != 1 or any(column.shape != shape for column in columns):
            shapes = [list(column.shape) for column in (self.token_ids, *columns)]
            return f"token_ids, parents, scores and sources have the shapes {shapes}, not one of [nodes]"
        if self.draft_probs is not None and (self.draft_probs.ndim != 2 or len(self.draft_probs) != count):
            return f"draft_probs of shape {list(self.draft_probs.shape)} for {count} nodes"
        # As unsigned numbers, those below the root are large too.
        if ((self.parents - ROOT).view(np.uint64) > np.arange(count, dtype=np.uint64)).any():
            return f"parents {self.parents.tolist()} must come before their children"
        limits = {"sources": (self.sources, len(self.source_names)), "draws": (self.draws, count)}
        for name, (column, limit) in limits.items():
            if column is not None and len(column) and column.view(np.uint64).max() >= limit:
                return f"{name} {column.tolist()} must be 0 to {limit - 1}"
        return None

    def sanitised(self, vocab_size: int, max_depth: int) -> DraftTree:
        """The part that can be verified: known tokens, no duplicate siblings, no deeper than max_depth.

        Drafters may be wrong or hostile; a node that cannot be verified goes, and all its descendants too.
        Returns self when there is nothing to remove.

        Raises ConfigError as ``checked``.
        """
        count = len(self.checked())
        depths = self.depths()
        known = (self.token_ids >= 0) & (self.token_ids < vocab_size) & (depths <= max_depth)
        edges = (self.parents + 1) * vocab_size + self.token_ids
        if known.all() and len(set(edges.tolist())) == count:
            return self
        new_index = {ROOT: ROOT}
        seen: set[int] = set()
        kept: list[int] = []
        for node, (edge, parent) in enumerate(zip(edges.tolist(), self.parents.tolist(), strict=True)):
            if known[node] and edge not in seen and parent in new_index:
                seen.add(edge)
                new_index[node] = len(kept)
                kept.append(node)
        return self.select(kept, [new_index[parent] for parent in self.parents[kept].tolist()])

    def select(self, nodes: slice | list[int], parents: list[int] | NDArray[np.int64]) -> DraftTree:
        """These nodes, ancestors included, with their parents in the new numbering."""
        probs = None if self.draft_probs is None else self.draft_probs[nodes]
        tokens, scores, sources = self.token_ids[nodes], self.scores[nodes], self.sources[nodes]
        draws = None
        if self.draws is not None:
            places = np.full(len(self), -1)
            places[nodes] = np.arange(len(tokens))
            draws = places[self.draws]
            draws = draws[draws >= 0]
        return DraftTree(tokens, parents, scores, sources, self.source_names, draft_probs=probs, draws=draws)

    def followed_by(self, chain: DraftTree, parent: int) -> DraftTree:
        """This tree with the nodes of a chain below ``parent``; they count as chosen, not drawn.

        A node that is there already is not added again. Scores of the chain are those of a path from the root
        of its own, and are multiplied by the parent's.
        """
        tokens, parents, scores = self.token_ids.tolist(), self.parents.tolist(), self.scores.tolist()
        base = 1.0 if parent == ROOT else scores[parent]
        for token_id, score in zip(chain.token_ids.tolist(), chain.scores.tolist(), strict=True):
            known = self.child(parent, token_id) if parent < len(self) else None
            if known is None:
                known = len(tokens)
                tokens.append(token_id)
                parents.append(parent)
                scores.append(base * score)
            parent = known
        added = np.arange(len(self), len(tokens))
        laws, draws = self.draft_probs, self.draws
        if laws is not None:
            laws = with_chosen_laws(laws, np.asarray(tokens[len(self) :], np.int64))
        return DraftTree(
            tokens,
            parents,
            scores,
            np.concatenate((self.sources, np.zeros(len(added), np.int64))),
            self.source_names,
            draft_probs=laws,
            draws=None if draws is None else np.concatenate((draws, added)),
        )

    def best(self, count: int) -> DraftTree:
        """The nodes with the best scores, best first, ancestors included as they score no lower."""
        order = np.argsort(-self.scores, kind="stable")[: max(count, 0)].tolist()
        new_index = {ROOT: ROOT} | {node: place for place, node in enumerate(order)}
        return self.select(order, [new_index[parent] for parent in self.parents[order].tolist()])

    def begins(self, other: DraftTree) -> bool:
        """Whether the first nodes of the other tree are this tree."""
        count = len(self)
        return np.array_equal(self.token_ids, other.token_ids[:count]) and np.array_equal(
            self.parents, other.parents[:count]
        )

    def draw(self) -> str:
        """The tree as text, one node a line."""
        lines = ["(root)"]
        stack = [(node, 1) for node in reversed(np.flatnonzero(self.parents == ROOT).tolist())]
        while stack:
            node, depth = stack.pop()
            source = self.source_names[int(self.sources[node])]
            lines.append(f"{'   ' * depth}{self.token_ids[node]}  p={self.scores[node]:.2f}  {source}")
            children = np.flatnonzero(self.parents == node).tolist()
            stack.extend((child, depth + 1) for child in reversed(children))
        return "\n".join(lines)


def _whole(name: str, column: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    found = np.asarray(column)
    if found.dtype.kind not in "iu" and found.size:
        raise ConfigError(f"not a tree: {name} {found.tolist()} must be integers")
    return found.astype(np.int64, copy=False)


def with_chosen_laws(laws: NDArray[np.float32], token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Laws [nodes, vocab] with a row for each token that was chosen, not drawn: 1 at the token."""
    chosen = np.zeros((len(token_ids), laws.shape[1]), laws.dtype)
    chosen[np.arange(len(token_ids)), token_ids] = 1
    return np.concatenate((laws, chosen))


if __name__ == "__main__":
    tree = DraftTree.from_paths([[11, 12, 13], [11, 14], [15]])
    print(tree.draw())
    print(tree.attention_mask().astype(int))
