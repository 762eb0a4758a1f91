"""The bounded trie against brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings, strategies
from tries import Path, counted, windows

from hasten.drafters.lookup.token_trie import COUNT, NONE, NUM_TREES, ROOT, TokenTrie

TEXTS = strategies.lists(strategies.integers(0, 3), min_size=1, max_size=40)
FREE_OF_BOUNDS = {"max_nodes": 10**6, "max_trees": 10**6}


def insert_in_pieces(trie: TokenTrie, text: list[int], window: int, piece: int) -> None:
    for at in range(0, len(text), piece):
        start = max(0, at - window)
        trie.insert(np.array(text[start : at + piece], np.int64), at - start)


@settings(max_examples=80)
@given(
    texts=strategies.lists(TEXTS, min_size=1, max_size=3),
    window=strategies.integers(1, 6),
    piece=strategies.integers(1, 9),
)
def test_counts_equal_brute_force(texts: list[list[int]], window: int, piece: int) -> None:
    trie = TokenTrie(window, **FREE_OF_BOUNDS)
    expected: Counter[Path] = Counter()
    for text in texts:
        insert_in_pieces(trie, text, window, piece)
        expected += windows(text, window)
    assert counted(trie) == expected
    assert len(trie) == len(expected)
    for path, count in expected.items():
        assert trie.nodes[trie.find(np.array(path, np.int64)), COUNT] == count
    assert trie.find(np.array([9], np.int64)) == NONE


@settings(max_examples=150)
@given(
    texts=strategies.lists(
        strategies.lists(strategies.integers(0, 9), min_size=1, max_size=60), min_size=1, max_size=5
    ),
    window=strategies.integers(1, 5),
    spare=strategies.integers(0, 12),
    max_trees=strategies.integers(1, 12),
    piece=strategies.integers(1, 20),
)
def test_bounds_hold_whatever_is_inserted(
    texts: list[list[int]], window: int, spare: int, max_trees: int, piece: int
) -> None:
    max_nodes = window + spare
    trie = TokenTrie(window, max_nodes, max_trees)
    for text in texts:
        for at in range(0, len(text), piece):
            start = max(0, at - window)
            trie.insert(np.array(text[start : at + piece], np.int64), at - start)
            found = counted(trie)
            sizes = Counter(path[0] for path in found)
            assert len(sizes) == trie.counters[NUM_TREES] <= max_trees
            assert max(sizes.values()) <= max_nodes
            assert len(found) == len(trie)
            assert min(found.values()) >= 1
            for path, count in found.items():  # the hash and the links tell the same trie
                node = trie.find(np.array(path, np.int64))
                assert trie.nodes[node, COUNT] == count
            assert sum(slot != NONE for slot in trie.slots) == len(trie)


def test_a_full_tree_keeps_what_was_seen_often() -> None:
    trie = TokenTrie(2, 9, 10)
    for _ in range(8):
        trie.insert(np.array([1, 5], np.int64))
    for token in range(100, 115):
        trie.insert(np.array([1, token], np.int64))
    found = counted(trie)
    assert (1, 5) in found
    assert found[1, 5] < 8
    assert (1, 114) in found
    assert (1, 100) not in found


def test_of_too_many_trees_the_least_used_go() -> None:
    trie = TokenTrie(1, 4, 8)
    for token in (1, 2, 1, 2, 1, *range(100, 120)):
        trie.insert(np.array([token], np.int64))
    found = counted(trie)
    assert (1,) in found
    assert (119,) in found
    assert (100,) not in found


def test_dropped_room_is_used_again() -> None:
    trie = TokenTrie(4, 50, 10)
    random = np.random.default_rng(0)
    for _ in range(300):
        trie.insert(random.integers(0, 20, 30))
    assert len(trie.nodes) < 2 * 50 * 10
    assert trie.nodes[ROOT, COUNT] == NONE
