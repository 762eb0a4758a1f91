"""Drafts and targets that are tables, and what tree shapes gain with them by a simulated clock."""

from __future__ import annotations

import numpy as np
import torch

from hasten.core import SamplingParams, Sequence
from hasten.drafters.trees.growing import Growing
from hasten.sampling import Sampler
from hasten.tree import ROOT
from hasten.verify import VERIFIERS
from judges import wanting

MODES = {
    "coupled": "follow",
    "distinct": "residual",
    "independent": "residual-independent",
    "chosen": "point-mass",
}
"""what is drafted, and a rule that judges it"""


class NoStop:
    def after(self, token_id):
        return None


def sequence_of(proposals="coupled", temperature=1.0, seed=0, token_ids=(0, 0), sampler=None):
    """A text that never ends."""
    sampler = sampler or Sampler(SamplingParams(temperature=temperature), seed)
    return Sequence(list(token_ids), len(token_ids), 10**9, sampler, NoStop(), judge=wanting(proposals))


class Pair:
    """A target and its draft: their laws depend on the last tokens.

    Args:
        agreement: how much of the target's logits is the draft's; the rest is noise of its own.
        sharpness: standard deviation of the draft's logits, of which every context has its own share.
    """

    def __init__(self, vocab_size=24, agreement=0.8, sharpness=4.0, seed=0, memory=8):
        self.vocab_size, self._agreement, self._sharpness = vocab_size, agreement, sharpness
        self._seed, self._memory = seed, memory
        self._known = {}

    def both(self, text):
        """(draft logits, target logits) after a text."""
        key = tuple(text[-self._memory :])
        if key not in self._known:
            rng = np.random.default_rng((self._seed, *key))
            sharp = self._sharpness * rng.uniform(0.1, 1.9)
            draft, other = rng.normal(0, sharp, (2, self.vocab_size))
            mixed = self._agreement * draft + np.sqrt(1 - self._agreement**2) * other
            self._known[key] = tuple(torch.from_numpy(row).float() for row in (draft, mixed))
        return self._known[key]

    def draft(self, text):
        return self.both(text)[0]

    def target(self, text):
        return self.both(text)[1]


def path_of(growing, node):
    path = []
    while node != ROOT:
        path.append(growing.token_ids[node])
        node = growing.parents[node]
    return path[::-1]


def grow(shape, sequence, draft_logits, budget, *, max_depth=99, token_price=0.0, hidden_of=None):
    """(the tree, how many passes it took): nodes can be asked for only once they were read."""
    read = {ROOT}

    def logits_of(node):
        assert node in read, "asked for what was not read"
        return draft_logits([*sequence.token_ids, *path_of(growing, node)])

    growing = Growing(sequence, budget, max_depth, logits_of, token_price, hidden_of=hidden_of)
    passes = 1  # the text itself
    for nodes in shape.grow(growing):
        assert nodes
        assert len(set(nodes)) == len(nodes)
        assert not read & set(nodes), "read twice"
        assert all(growing.parents[node] in read for node in nodes)
        read |= set(nodes)
        passes += 1
    return growing.tree("draft"), passes


def target_rows(pair, text, tree):
    paths = [tree.token_ids[tree.path_to(node)].tolist() for node in range(-1, len(tree))]
    return torch.stack([pair.target([*text, *path]) for path in paths])


def simulate(shape, pair, *, price, budget, proposals, temperature, num_rounds=300, seed=0):
    """Tokens per millisecond where a pass of the target takes 1 ms and one of the draft ``price`` ms."""
    sequence = sequence_of(proposals, temperature, seed)
    rule = VERIFIERS[MODES[proposals]].rule
    speed, milliseconds = 1.0, 0.0
    for _ in range(num_rounds):
        tree, passes = grow(shape, sequence, pair.draft, budget, token_price=price * speed)
        acceptance = rule(tree, target_rows(pair, sequence.token_ids, tree), sequence)
        shape.learn(tree, acceptance)
        sequence.token_ids += acceptance.token_ids
        spent = 1 + price * passes
        milliseconds += spent
        speed += 0.1 * (len(acceptance.token_ids) / spent - speed)
    return len(sequence.new_token_ids) / milliseconds
