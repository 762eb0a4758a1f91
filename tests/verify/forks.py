"""Laws by enumeration: every random decision of drafter and rule is a fork with its probability."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import torch

from hasten.core import Sequence
from hasten.verify import residual
from judges import wanting


class Forks:
    """Runs a function once for every way its random decisions can go."""

    def __init__(self):
        self._trail, self._at, self._chance = [], 0, 1.0

    def choose(self, probs):
        """An index; the run is worth its probability."""
        if self._at == len(self._trail):
            self._trail.append([index for index, prob in enumerate(probs) if prob > 0][::-1])
        index = self._trail[self._at][-1]
        self._at += 1
        self._chance *= probs[index]
        return index

    def law_of(self, run):
        """result -> probability"""
        law = defaultdict(float)
        while True:
            self._at, self._chance = 0, 1.0
            result = run()
            law[result] += self._chance
            while self._trail and len(self._trail[-1]) == 1:
                self._trail.pop()
            if not self._trail:
                return dict(law)
            self._trail[-1].pop()

    # What a rule does with a uniform number: `random() * q < p`.
    def random(self):
        return _Uniform(self)


class _Uniform:
    def __init__(self, forks, scale=1.0):
        self._forks, self._scale = forks, scale

    def __mul__(self, scale):
        return _Uniform(self._forks, float(scale))

    def __lt__(self, bound):
        accepted = min(1.0, float(bound) / self._scale) if self._scale else float(bound > 0)
        return self._forks.choose([accepted, 1 - accepted]) == 0


class ForkedSampler:
    """Tells the laws of logits as they are, and forks instead of drawing."""

    is_greedy = False

    def __init__(self, forks):
        self.forks = forks

    def draws(self, logits): ...

    def guess(self, logits, position): ...

    def noisy(self, logits, position): ...

    def law(self, logits, token_ids=None):
        return torch.softmax(logits.double(), -1).numpy()

    def generator(self, position, stream):
        return self.forks

    def fork(self):
        return self


class NoStop:
    def after(self, token_id):
        return None


class Language:
    """A law for every text, any of them."""

    def __init__(self, vocab_size, seed):
        self.vocab_size, self._seed, self._known = vocab_size, seed, {}

    def logits(self, text):
        key = (self._seed, len(text), *text)
        if key not in self._known:
            self._known[key] = torch.from_numpy(np.random.default_rng(key).normal(0, 1.5, self.vocab_size))
        return self._known[key]

    def law(self, text):
        return torch.softmax(self.logits(text), -1).numpy()

    def rows(self, text, tree):
        paths = [tree.token_ids[tree.path_to(node)].tolist() for node in range(-1, len(tree))]
        return torch.stack([self.logits([*text, *path]) for path in paths])

    def texts(self, prompt, length):
        """The law of plain sampling."""
        law = {}
        for new in itertools.product(range(self.vocab_size), repeat=length):
            chance = 1.0
            for at, token in enumerate(new):
                chance *= self.law([*prompt, *new[:at]])[token]
            law[new] = chance
        return law


def sequence_of(sampler, prompt=(0,), stop_rule=None):
    return Sequence(
        list(prompt),
        len(prompt),
        10**6,
        sampler,
        stop_rule or NoStop(),
        judge=wanting("distinct", "distribution"),
    )


def written(language, sequence, propose, observe, length):
    """The first ``length`` tokens of one run."""
    while len(sequence.new_token_ids) < length:
        tree = propose()
        logits = language.rows(sequence.token_ids, tree)
        acceptance = residual(tree, logits, sequence)
        sequence.token_ids += acceptance.token_ids
        observe(tree, acceptance, logits)
    return tuple(sequence.new_token_ids[:length])


def distance(found, expected):
    """The largest difference of two laws."""
    return max(abs(found.get(key, 0.0) - expected.get(key, 0.0)) for key in {*found, *expected})
