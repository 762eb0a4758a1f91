"""Drafters that are wrong, slow or hostile in every way we could think of."""

from __future__ import annotations

import numpy as np

from hasten.drafters.plain import NoDrafter
from hasten.tree import DraftTree


class Adversary(NoDrafter):
    """Proposes what ``make(rng, token_ids, budget)`` returns; wants top-k, to exercise that path."""

    name = "adversary"
    top_k = 3

    def __init__(self, make, seed=0):
        self._make = make
        self._rng = np.random.default_rng(seed)

    def propose(self, sequence, budget):
        return self._make(self._rng, sequence.token_ids, budget)


def random_tree(rng, token_ids, budget):
    count = int(rng.integers(0, 12))
    tokens = rng.integers(0, 97, count)
    parents = [int(rng.integers(-1, node)) for node in range(count)]
    return DraftTree(tokens, parents)


def duplicates(rng, token_ids, budget):
    return DraftTree([5, 5, 5, 5, 6, 6], [-1, -1, 0, 1, 2, 2])


def too_deep(rng, token_ids, budget):
    return DraftTree.chain([7] * 300)


def end_inside(rng, token_ids, budget):
    return DraftTree([1, 3, 1, 1], [-1, 0, 1, -1])


def outside_vocabulary(rng, token_ids, budget):
    return DraftTree([-7, 10**9, 4, 97, 96], [-1, -1, 0, 2, -1])


def bad_scores(rng, token_ids, budget):
    return DraftTree([4, 5, 6], [-1, 0, 1], [np.nan, -3.0, np.inf])


ADVERSARIES = {
    make.__name__: make
    for make in (random_tree, duplicates, too_deep, end_inside, outside_vocabulary, bad_scores)
}


class Oracle(NoDrafter):
    """Knows the text in advance; offers it as a chain among wrong branches."""

    name = "oracle"

    def __init__(self, full_text, depth=4, error_rate=0.0, seed=0):
        self._text = list(full_text)
        self._depth = depth
        self._error_rate = error_rate
        self._rng = np.random.default_rng(seed)

    def propose(self, sequence, budget):
        here = len(sequence.token_ids)
        right = [
            token if self._rng.random() >= self._error_rate else (token + 1) % 97
            for token in self._text[here : here + self._depth]
        ]
        wrong = [(token + 5) % 97 for token in right]
        return DraftTree.from_paths([wrong[:2], right, [*right[:2], 11, 12], wrong[1:3]])
