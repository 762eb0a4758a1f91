"""What the tests of tree shapes share: a draft that is a table, trees grown from it, and a test of laws."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch

from hasten.core import SamplingParams, Sequence
from hasten.drafters.trees import (
    DySpec,
    DySpecThreshold,
    MultiCandidate,
    RsdBeams,
    RsdConstant,
    SpecTr,
)
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.growing import Growing
from hasten.sampling import Sampler
from hasten.tree import ROOT
from hasten.verify import residual
from judges import wanting

SHAPES = {
    "chain": Chain,
    "multi-candidate": MultiCandidate,
    "spectr": SpecTr,
    "rsd-c": RsdConstant,
    "rsd-s": RsdBeams,
    "dyspec": DySpec,
    "dyspec-threshold": DySpecThreshold,
}
PROPOSALS = ("coupled", "chosen", "distinct", "independent")


class NoStop:
    def after(self, token_id):
        return None


class Table:
    """A law for every text, made up from a seed."""

    def __init__(self, vocab_size, seed, spread=1.5):
        self.vocab_size, self._seed, self._spread, self._known = vocab_size, seed, spread, {}

    def logits(self, text):
        key = tuple(text)
        if key not in self._known:
            generator = np.random.default_rng((self._seed, len(text), *text))
            self._known[key] = torch.from_numpy(
                generator.normal(0, self._spread, self.vocab_size).astype(np.float32)
            )
        return self._known[key]

    def law(self, text):
        return torch.softmax(self.logits(text).double(), -1).numpy()

    def texts(self, prompt, length):
        """new tokens -> their probability"""
        law = {(): 1.0}
        for _ in range(length):
            law = {
                (*new, token): chance * float(after)
                for new, chance in law.items()
                for token, after in enumerate(self.law([*prompt, *new]))
            }
        return law

    def rows(self, text, tree):
        paths = [tree.token_ids[tree.path_to(node)].tolist() for node in range(-1, len(tree))]
        return torch.stack([self.logits([*text, *path]) for path in paths])


def text_of(proposals="coupled", temperature=1.0, seed=0, prompt=(0,), **params):
    sampler = Sampler(SamplingParams(temperature=temperature, **params), seed)
    return Sequence(list(prompt), len(prompt), 10**6, sampler, NoStop(), judge=wanting(proposals))


def path_of(tree, node):
    path = []
    while node != ROOT:
        path.append(tree.token_ids[node])
        node = tree.parents[node]
    return tuple(path[::-1])


class Grown:
    """A tree that a shape grew, and what it had read for it."""

    def __init__(self, shape, sequence, draft, budget, *, max_depth=99, token_price=0.0):
        self.passes, self.asked, self._read = [], set(), {ROOT}
        self._sequence, self._draft = sequence, draft
        self.growing = Growing(sequence, budget, max_depth, self._logits, token_price)
        for nodes in shape.grow(self.growing):
            assert nodes
            assert not self._read & {*nodes}
            assert len({*nodes}) == len(nodes)
            self._read.update(nodes)
            self.passes.append(list(nodes))
        self.tree = self.growing.tree("draft")

    def _logits(self, node):
        assert node in self._read
        self.asked.add(node)
        return self._draft.logits([*self._sequence.token_ids, *path_of(self.growing, node)])

    @property
    def unused(self):
        """Nodes that were read for nothing."""
        return self._read - self.asked - {ROOT}

    def paths(self):
        return [path_of(self.growing, node) for node in range(len(self.growing))]

    def children(self, node):
        return [self.growing.token_ids[child] for child in self.tree.drawn_below(node)]


def written(shape, draft, target, sequence, *, budget, length, change=None):
    """The first tokens of a text drafted by a shape under ``residual``; ``change`` spoils its trees."""
    while len(sequence.new_token_ids) < length:
        tree = Grown(shape, sequence, draft, budget).tree
        tree = tree if change is None else change(tree)
        acceptance = residual(tree, target.rows(sequence.token_ids, tree), sequence)
        shape.learn(tree, acceptance)
        sequence.token_ids += acceptance.token_ids
    return tuple(sequence.new_token_ids[:length])


def misfit(counts, law):
    """Chi-square of counts against a law, over the value it exceeds once in ten thousand times.

    What is too rare for a test is one event.
    """
    total = sum(counts.values())
    rare = {key for key, chance in law.items() if 0 < chance < 8 / total}
    assert {*counts} <= {key for key, chance in law.items() if chance > 0}
    found, expected = Counter(), Counter()
    for key in law:
        found["rare" if key in rare else key] += counts.get(key, 0)
        expected["rare" if key in rare else key] += total * law[key]
    expected = {key: value for key, value in expected.items() if value > 0}
    freedom = len(expected) - 1
    assert freedom, "one event only"
    square = sum((found[key] - value) ** 2 / value for key, value in expected.items())
    spread = 2 / (9 * freedom)
    return square / (freedom * (1 - spread + 3.72 * spread**0.5) ** 3)  # Wilson and Hilferty's cube


def distinct_pairs(law):
    """(first, second) drawn without replacement -> probability"""
    return {
        (first, second): law[first] * law[second] / (1 - law[first])
        for first, second in itertools.permutations(range(len(law)), 2)
    }
