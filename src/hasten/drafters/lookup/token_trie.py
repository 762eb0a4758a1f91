"""A bounded token trie in plain arrays: which paths of tokens were seen, and how often.

The store behind Lookahead (arXiv 2312.12728). The part below one first token is a tree of its own; the size
of every tree and the number of trees are bounded. A full tree drops what was seen once and halves the other
counts; of too many trees the quarter that was used least goes. Knows tokens only; drafting is elsewhere.

Nodes are rows of one int32 array, and a hash of (parent, token) finds a child, so that a path of a dozen
tokens is counted in about a microsecond.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.drafters.tables.trigrams import mixed
from hasten.errors import StoreError

Rows = NDArray[np.int32]
Tokens = NDArray[np.int64]

ROOT = 0
NONE = -1
MAX_COUNT = 2**30
"""Counts stay here, far from where their type ends."""

# Columns of a node.
PARENT, TOKEN, FIRST_CHILD, NEXT_SIBLING, COUNT, TREE, SIZE = range(7)
NUM_COLUMNS = 7
# TREE is the node's ancestor below the root; SIZE, kept there, counts the nodes of its tree, itself included.
# What kernels read from these rows is widened, because numba compiles a function anew for each integer type.

# Counters.
NUM_NODES, NUM_TREES, END, FREE = range(4)
# END is the first row never used; FREE the first of the rows given back, linked by NEXT_SIBLING.

_INITIAL_CAPACITY = 64
_PIECE = 1024
"""Tokens inserted at once; room is made for the worst case of one piece."""


@numba.njit(cache=True)
def _home(slots: Rows, parent: int, token: int) -> int:
    key = (np.uint64(parent) << np.uint64(32)) ^ np.uint64(token)
    return int(np.int64(mixed(key) & np.uint64(len(slots) - 1)))


@numba.njit(cache=True)
def _slot(nodes: Rows, slots: Rows, parent: int, token: int) -> int:
    """Where the child is in the hash, or the free slot where it belongs."""
    slot = _home(slots, parent, token)
    while slots[slot] != NONE:
        node = slots[slot]
        if nodes[node, PARENT] == parent and nodes[node, TOKEN] == token:
            break
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@numba.njit(cache=True)
def child_of(nodes: Rows, slots: Rows, parent: int, token: int) -> int:
    """The node below ``parent`` that carries ``token``, or NONE."""
    return int(np.int64(slots[_slot(nodes, slots, parent, token)]))


@numba.njit(cache=True)
def _walk(nodes: Rows, slots: Rows, tokens: Tokens) -> int:
    node = int(np.int64(ROOT))
    for token in tokens:
        node = child_of(nodes, slots, node, token)
        if node == NONE:
            break
    return node


@numba.njit(cache=True)
def _add(nodes: Rows, slots: Rows, counters: Tokens, parent: int, token: int) -> int:
    node = counters[FREE]
    if node == NONE:
        node = counters[END]
        counters[END] += 1
    else:
        counters[FREE] = nodes[node, NEXT_SIBLING]
    nodes[node, PARENT], nodes[node, TOKEN] = parent, token
    nodes[node, COUNT], nodes[node, SIZE] = 0, 0
    nodes[node, FIRST_CHILD] = NONE
    nodes[node, NEXT_SIBLING] = nodes[parent, FIRST_CHILD]
    nodes[parent, FIRST_CHILD] = node
    tree = node
    if parent == ROOT:
        counters[NUM_TREES] += 1
    else:
        tree = int(np.int64(nodes[parent, TREE]))
    nodes[node, TREE] = tree
    nodes[tree, SIZE] += 1
    counters[NUM_NODES] += 1
    slots[_slot(nodes, slots, parent, token)] = node
    return int(np.int64(node))


@numba.njit(cache=True)
def _forget(nodes: Rows, slots: Rows, parent: int, token: int) -> None:
    """Take a child out of the hash; what was pushed on by it moves back."""
    last = len(slots) - 1
    hole = _slot(nodes, slots, parent, token)
    slot = hole
    while True:
        slot = (slot + 1) & last
        node = slots[slot]
        if node == NONE:
            break
        home = _home(slots, int(np.int64(nodes[node, PARENT])), int(np.int64(nodes[node, TOKEN])))
        if ((slot - home) & last) >= ((slot - hole) & last):
            slots[hole] = node
            hole = slot
    slots[hole] = NONE


@numba.njit(cache=True)
def _give_back(nodes: Rows, slots: Rows, counters: Tokens, top: int) -> None:
    """Free a node and all below it; it must be out of its parent's list already."""
    tree = int(np.int64(nodes[top, TREE]))
    nodes[top, NEXT_SIBLING] = NONE
    pending = int(np.int64(top))
    while pending != NONE:
        node = pending
        pending = int(np.int64(nodes[node, NEXT_SIBLING]))
        child = int(np.int64(nodes[node, FIRST_CHILD]))
        while child != NONE:
            following = int(np.int64(nodes[child, NEXT_SIBLING]))
            nodes[child, NEXT_SIBLING] = pending
            pending = child
            child = following
        _forget(nodes, slots, int(np.int64(nodes[node, PARENT])), int(np.int64(nodes[node, TOKEN])))
        nodes[tree, SIZE] -= 1
        counters[NUM_NODES] -= 1
        nodes[node, NEXT_SIBLING] = counters[FREE]
        counters[FREE] = node


@numba.njit(cache=True)
def _drop_children(nodes: Rows, slots: Rows, counters: Tokens, parent: int) -> None:
    """Drop the children counted once or less, with all below them, and halve the others' counts."""
    previous = int(np.int64(NONE))
    child = int(np.int64(nodes[parent, FIRST_CHILD]))
    while child != NONE:
        following = int(np.int64(nodes[child, NEXT_SIBLING]))
        if nodes[child, COUNT] > 1:
            nodes[child, COUNT] //= 2
            previous = child
        else:
            if previous == NONE:
                nodes[parent, FIRST_CHILD] = following
            else:
                nodes[previous, NEXT_SIBLING] = following
            _give_back(nodes, slots, counters, child)
        child = following


@numba.njit(cache=True)
def _shrink_tree(nodes: Rows, slots: Rows, counters: Tokens, tree: int, max_size: int) -> None:
    while nodes[tree, SIZE] > max_size:
        node = int(np.int64(tree))
        while True:  # depth first, along the links
            _drop_children(nodes, slots, counters, node)
            if nodes[node, FIRST_CHILD] != NONE:
                node = int(np.int64(nodes[node, FIRST_CHILD]))
                continue
            while node != tree and nodes[node, NEXT_SIBLING] == NONE:
                node = int(np.int64(nodes[node, PARENT]))
            if node == tree:
                break
            node = int(np.int64(nodes[node, NEXT_SIBLING]))


@numba.njit(cache=True)
def _drop_trees(nodes: Rows, slots: Rows, counters: Tokens, max_trees: int) -> None:
    """Drop the least used trees, of equals the older ones."""
    trees = np.empty(counters[NUM_TREES], np.int64)
    tree = int(np.int64(nodes[ROOT, FIRST_CHILD]))
    for place in range(len(trees) - 1, -1, -1):
        trees[place] = tree
        tree = int(np.int64(nodes[tree, NEXT_SIBLING]))
    uses = np.empty(len(trees), np.int64)
    for place in range(len(trees)):
        uses[place] = nodes[trees[place], COUNT]
    order = np.argsort(uses, kind="mergesort")
    num_dropped = max(0, len(trees) - max_trees)
    for place in order[:num_dropped]:
        uses[place] = NONE
    nodes[ROOT, FIRST_CHILD] = NONE
    for place in range(len(trees)):
        tree = trees[place]
        if uses[place] == NONE:
            _give_back(nodes, slots, counters, tree)
            counters[NUM_TREES] -= 1
        else:
            nodes[tree, NEXT_SIBLING] = nodes[ROOT, FIRST_CHILD]
            nodes[ROOT, FIRST_CHILD] = tree


@numba.njit(cache=True)
def _make_room(
    nodes: Rows, slots: Rows, counters: Tokens, first: int, num_new: int, max_nodes: int, max_trees: int
) -> None:
    """For ``num_new`` nodes below a first token; for a quarter of the tree at least, so that it lasts."""
    tree = child_of(nodes, slots, int(np.int64(ROOT)), first)
    if tree == NONE:
        if counters[NUM_TREES] >= max_trees:
            _drop_trees(nodes, slots, counters, max_trees - max(1, max_trees // 4))
    elif nodes[tree, SIZE] + num_new > max_nodes:
        _shrink_tree(nodes, slots, counters, tree, max_nodes - max(num_new, max_nodes // 4))


@numba.njit(cache=True)
def _insert(
    nodes: Rows,
    slots: Rows,
    counters: Tokens,
    tokens: Tokens,
    num_known: int,
    window: int,
    max_nodes: int,
    max_trees: int,
) -> None:
    for start in range(max(0, num_known - window + 1), len(tokens)):
        known, end = max(start, num_known), min(len(tokens), start + window)
        num_new = end - max(known, start + 1)
        _make_room(nodes, slots, counters, tokens[start], num_new, max_nodes, max_trees)
        # A path begun earlier may have been dropped since; then its rest follows nothing.
        node = _walk(nodes, slots, tokens[start:known])
        if node == NONE:
            continue
        for token in tokens[known:end]:
            child = child_of(nodes, slots, node, token)
            if child == NONE:
                child = _add(nodes, slots, counters, node, token)
            nodes[child, COUNT] = min(MAX_COUNT, nodes[child, COUNT] + 1)
            node = child


@numba.njit(cache=True)
def _fill_slots(nodes: Rows, slots: Rows) -> None:
    # Along the links, because rows given back carry old tokens; the root has no slot.
    node = int(np.int64(nodes[ROOT, FIRST_CHILD]))
    while node not in (NONE, ROOT):
        parent, token = int(np.int64(nodes[node, PARENT])), int(np.int64(nodes[node, TOKEN]))
        slots[_slot(nodes, slots, parent, token)] = node
        if nodes[node, FIRST_CHILD] != NONE:
            node = int(np.int64(nodes[node, FIRST_CHILD]))
            continue
        while node != ROOT and nodes[node, NEXT_SIBLING] == NONE:
            node = int(np.int64(nodes[node, PARENT]))
        if node != ROOT:
            node = int(np.int64(nodes[node, NEXT_SIBLING]))


@numba.njit(cache=True)
def _fit(nodes: Rows, slots: Rows, counters: Tokens, max_nodes: int, max_trees: int) -> None:
    if counters[NUM_TREES] > max_trees:
        _drop_trees(nodes, slots, counters, max_trees)
    tree = int(np.int64(nodes[ROOT, FIRST_CHILD]))
    while tree != NONE:
        _shrink_tree(nodes, slots, counters, tree, max_nodes)
        tree = int(np.int64(nodes[tree, NEXT_SIBLING]))


@numba.njit(cache=True)
def _listed(nodes: Rows, num_nodes: int) -> tuple[Rows, Rows, Rows]:
    """Breadth first: token, parent's place in the list (NONE below the root) and count of every node."""
    order, parents = np.empty(num_nodes + 1, np.int32), np.empty(num_nodes + 1, np.int32)
    tokens, counts = np.empty(num_nodes + 1, np.int32), np.empty(num_nodes + 1, np.int32)
    order[0] = ROOT
    end = 1
    for place in range(num_nodes + 1):
        tokens[place], counts[place] = nodes[order[place], TOKEN], nodes[order[place], COUNT]
        child = nodes[order[place], FIRST_CHILD]
        while child != NONE:
            order[end], parents[end] = child, place - 1
            end += 1
            child = nodes[child, NEXT_SIBLING]
    return tokens[1:], parents[1:], counts[1:]


@numba.njit(cache=True)
def _rebuild(nodes: Rows, slots: Rows, counters: Tokens, tokens: Rows, parents: Rows, counts: Rows) -> bool:
    """Add listed nodes in their order; False if a token stands twice below one parent."""
    last_child = np.full(len(tokens) + 1, NONE, np.int64)
    for place in range(len(tokens)):
        parent, token = int(np.int64(parents[place])) + 1, int(np.int64(tokens[place]))
        if child_of(nodes, slots, parent, token) != NONE:
            return False
        first = nodes[parent, FIRST_CHILD]
        node = _add(nodes, slots, counters, parent, token)
        nodes[node, COUNT] = counts[place]
        if last_child[parent] != NONE:  # to the end of the list, where it stood when it was listed
            nodes[parent, FIRST_CHILD] = first
            nodes[last_child[parent], NEXT_SIBLING] = node
            nodes[node, NEXT_SIBLING] = NONE
        last_child[parent] = node
    return True


class TokenTrie:
    """Every window of a text as a path from the root, counted.

    ``nodes`` and ``slots`` are for kernels; they are replaced when the trie grows.

    Args:
        window: tokens of a path, its first one included.
        max_nodes: of one tree, its first node included; at least ``window``.
        max_trees: different first tokens.
    """

    __slots__ = ("_bounds", "_capacity", "counters", "nodes", "slots")

    def __init__(self, window: int, max_nodes: int, max_trees: int) -> None:
        self._bounds = (window, max_nodes, max_trees)
        self.counters: Tokens = np.array([0, 0, 1, NONE], np.int64)
        self.nodes: Rows = np.full((1, NUM_COLUMNS), NONE, np.int32)
        self._capacity = 0
        self._reserve(_INITIAL_CAPACITY)

    def __len__(self) -> int:
        return int(self.counters[NUM_NODES])

    def insert(self, tokens: Tokens, num_known: int = 0) -> None:
        """Count every window of a text, at its end also those that are not full yet.

        tokens: int64, 0 or more, below 2**31; the first ``num_known`` were inserted before, so that a growing
        text is inserted step by step with the last ``window`` tokens known.
        """
        window, max_nodes, max_trees = self._bounds
        for start in range(num_known, len(tokens), _PIECE):
            piece = tokens[: start + _PIECE]
            self._reserve(min(len(self) + (len(piece) - start) * window, max_nodes * max_trees))
            _insert(self.nodes, self.slots, self.counters, piece, start, window, max_nodes, max_trees)

    def find(self, tokens: Tokens) -> int:
        """The node of a path, or NONE."""
        return int(_walk(self.nodes, self.slots, tokens))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """token_ids, parents (-1: none) and counts of all nodes, int32, parents first."""
        token_ids, parents, counts = _listed(self.nodes, len(self))
        return {"token_ids": token_ids, "parents": parents, "counts": counts}

    def restore(self, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Replace everything by saved arrays; what exceeds the bounds is dropped. Raises StoreError."""
        token_ids, parents, counts = _checked(arrays)
        window, max_nodes, max_trees = self._bounds
        fresh = TokenTrie(window, max_nodes, max_trees)
        fresh._reserve(len(token_ids))
        if not _rebuild(fresh.nodes, fresh.slots, fresh.counters, token_ids, parents, counts):
            raise StoreError("the lookahead trie's token_ids must differ below one parent")
        _fit(fresh.nodes, fresh.slots, fresh.counters, max_nodes, max_trees)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def _reserve(self, num_nodes: int) -> None:
        if num_nodes <= self._capacity:
            return
        self._capacity = max(num_nodes, 2 * self._capacity)
        nodes = np.full((self._capacity + 1, NUM_COLUMNS), NONE, np.int32)
        nodes[: len(self.nodes)] = self.nodes
        slots = np.full(1 << (2 * self._capacity).bit_length(), NONE, np.int32)
        _fill_slots(nodes, slots)
        self.nodes, self.slots = nodes, slots


def _checked(arrays: dict[str, NDArray[np.generic]]) -> tuple[Rows, Rows, Rows]:
    if arrays.keys() != {"token_ids", "parents", "counts"}:
        raise StoreError(f"the lookahead trie needs token_ids, parents and counts, found {sorted(arrays)}")
    for key, values in arrays.items():
        if values.dtype != np.int32 or values.shape != arrays["token_ids"].shape or values.ndim != 1:
            found = f"{values.dtype} {values.shape}"
            raise StoreError(
                f"the lookahead trie's {key} must be int32, flat and as long as the others, found {found}"
            )
    token_ids, parents, counts = (arrays[key].astype(np.int32) for key in ("token_ids", "parents", "counts"))
    if (token_ids < 0).any():
        raise StoreError("the lookahead trie's token_ids must be 0 or more")
    if not ((parents >= NONE) & (parents < np.arange(len(parents)))).all():
        raise StoreError("the lookahead trie's parents must come before their children")
    if not ((counts >= 1) & (counts <= MAX_COUNT)).all():
        raise StoreError(f"the lookahead trie's counts must lie between 1 and {MAX_COUNT}")
    return token_ids, parents, counts
