"""Drafters that are wrong, slow or hostile in every way we could think of; and two that are not."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from hasten.drafters.plain import NoDrafter
from hasten.tree import ROOT, DraftTree

VOCAB = 97
EOS = 1


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
    tokens = rng.integers(0, VOCAB, count)
    parents = [int(rng.integers(-1, node)) for node in range(count)]
    return DraftTree(tokens, parents)


def duplicates(rng, token_ids, budget):
    return DraftTree([5, 5, 5, 5, 6, 6], [-1, -1, 0, 1, 2, 2])


def too_deep(rng, token_ids, budget):
    return DraftTree.chain([7] * 300)


def end_inside(rng, token_ids, budget):
    return DraftTree([EOS, 3, EOS, EOS], [-1, 0, 1, -1])


def end_everywhere(rng, token_ids, budget):
    """Below every right-looking token an end of text: every token of the vocabulary, then EOS."""
    every = list(range(VOCAB))
    return DraftTree([*every, *[EOS] * VOCAB], [ROOT] * VOCAB + every)


def outside_vocabulary(rng, token_ids, budget):
    return DraftTree([-7, 10**9, 4, VOCAB, VOCAB - 1], [-1, -1, 0, 2, -1])


def bad_scores(rng, token_ids, budget):
    return DraftTree([4, 5, 6], [-1, 0, 1], [np.nan, -3.0, np.inf])


def unsorted_scores(rng, token_ids, budget):
    tree = random_tree(rng, token_ids, budget)
    return DraftTree(tree.token_ids, tree.parents, rng.random(len(tree)))


def very_wide(rng, token_ids, budget):
    """Every token of the vocabulary at depth 1, and as many again below them."""
    first = rng.permutation(VOCAB)
    below = rng.integers(0, VOCAB, 110)
    return DraftTree([*first, *below], [ROOT] * VOCAB + rng.integers(0, VOCAB, 110).tolist())


ADVERSARIES = {
    make.__name__: make
    for make in (
        random_tree,
        duplicates,
        too_deep,
        end_inside,
        end_everywhere,
        outside_vocabulary,
        bad_scores,
        unsorted_scores,
        very_wide,
    )
}


class Oracle(NoDrafter):
    """Knows the text in advance; offers it as the best-scored chain among wrong branches.

    Wrong branches come first, so that accepted nodes are never the first slots of the cache.
    """

    name = "oracle"

    def __init__(self, full_text, depth=4, error_rate=0.0, seed=0):
        self._text = list(full_text)
        self._depth = depth
        self._error_rate = error_rate
        self._rng = np.random.default_rng(seed)

    def propose(self, sequence, budget):
        here = len(sequence.token_ids)
        right = [
            token if self._rng.random() >= self._error_rate else (token + 1) % VOCAB
            for token in self._text[here : here + self._depth]
        ]
        wrong = [(token + 5) % VOCAB for token in right]
        after = here + len(right[:2])
        aside = [*right[:2], *((token + 9) % VOCAB for token in self._text[after : after + 2])]
        tree = DraftTree.from_paths([wrong[:2], right, aside, wrong[1:3]])
        tree.scores = (0.1 ** tree.depths()).astype(np.float32)
        node = ROOT
        for depth, token in enumerate(right, start=1):
            node = tree.child(node, token)
            tree.scores[node] = 0.9**depth
        return tree


class Recorder(NoDrafter):
    """Drafts like another drafter and writes down everything it is told."""

    name = "recorder"

    def __init__(self, inner, top_k=0):
        self._inner = inner
        self.top_k = top_k
        self.begun, self.ended, self.observed = [], [], []

    def begin(self, sequence, prompt_candidates):
        self.begun.append((sequence, prompt_candidates))

    def propose(self, sequence, budget):
        return self._inner.propose(sequence, budget)

    def observe(self, sequence, observation):
        self.observed.append((sequence, list(sequence.token_ids), observation))

    def end(self, sequence):
        self.ended.append(sequence)


@st.composite
def trees(draw, max_nodes=12, vocab=VOCAB):
    """Any valid tree, duplicate siblings included."""
    count = draw(st.integers(0, max_nodes))
    tokens = draw(st.lists(st.integers(0, vocab - 1), min_size=count, max_size=count))
    parents = [draw(st.integers(-1, node - 1)) for node in range(count)]
    return DraftTree(tokens, parents)
