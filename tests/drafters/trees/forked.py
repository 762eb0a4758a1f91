"""Laws of one round by enumeration: every draw of a shape and of the rule ``residual`` is a fork."""

from __future__ import annotations

import importlib
from collections import defaultdict

from grown import Grown, text_of

from hasten.sampling import Sampler
from hasten.verify import residual


class Forks(Sampler):
    """A sampler whose random numbers go every way they can, one run after the other."""

    def __init__(self, params):
        super().__init__(params)
        self._trail, self._at, self._chance = [], 0, 1.0

    def choose(self, probs):
        """An index; the run is worth its probability."""
        if self._at == len(self._trail):
            self._trail.append([index for index, prob in enumerate(probs) if prob > 0][::-1])
        index = self._trail[self._at][-1]
        self._at += 1
        self._chance *= probs[index]
        return index

    def runs(self, run):
        """(result, its probability) for all ways to go"""
        while True:
            self._at, self._chance = 0, 1.0
            yield run(), self._chance
            while self._trail and len(self._trail[-1]) == 1:
                self._trail.pop()
            if not self._trail:
                return
            self._trail[-1].pop()

    def generator(self, position, stream):
        return self

    def random(self):
        return _Uniform(self)


class _Uniform:
    """As rules use it: ``random() * draft < target``."""

    def __init__(self, forks):
        self._forks = forks

    def __mul__(self, draft):
        self._draft = float(draft)
        return self

    def __lt__(self, target):
        accepted = min(1.0, float(target) / self._draft)
        return self._forks.choose([accepted, 1 - accepted]) == 0


def worst_error(monkeypatch, shape, proposals, draft, target, *, budget, change=lambda tree: tree):
    """Of the law of two tokens, of which one round writes the first and the target what it did not reach."""
    sequence = text_of(proposals)
    sequence.sampler = forks = Forks(sequence.sampler.params)

    def choose(law, generator):
        return forks.choose((law / law.sum()).tolist())

    monkeypatch.setattr("hasten.drafters.trees.siblings.draw", choose)
    monkeypatch.setattr(importlib.import_module("hasten.verify.residual"), "draw", choose)

    def run():
        tree = change(Grown(shape, sequence, draft, budget).tree)
        return tuple(residual(tree, target.rows(sequence.token_ids, tree), sequence).token_ids)

    found = defaultdict(float)
    for token_ids, chance in forks.runs(run):
        after = dict(enumerate(target.law([0, token_ids[0]])))
        for second, share in ({token_ids[1]: 1.0} if len(token_ids) > 1 else after).items():
            found[token_ids[0], second] += chance * share
    expected = target.texts([0], 2)
    return max(abs(found[key] - expected.get(key, 0.0)) for key in {*found, *expected})
