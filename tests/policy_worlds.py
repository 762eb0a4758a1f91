"""Worlds of synthetic milliseconds, in which a policy decodes texts: no clock is read, no model is run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hasten.policies import ForwardCost
from hasten.tree import DraftTree


def honest(chance):
    """A drafter of chains each of whose tokens is right with that chance, and that says so."""

    def draft(rng, step, count):
        scores = chance ** np.arange(1, count + 1)
        wrong = np.flatnonzero(rng.random(count) >= chance)
        return scores, int(wrong[0]) if len(wrong) else count

    return draft


def boasting(claimed, chance=0.0):
    """Says ``claimed`` where ``chance`` is true."""

    def draft(rng, step, count):
        _, accepted = honest(chance)(rng, step, count)
        return claimed ** np.arange(1, count + 1), accepted

    return draft


def alternating(drafts, period):
    """One after the other, ``period`` steps each."""
    return lambda rng, step, count: drafts[step // period % len(drafts)](rng, step, count)


@dataclass
class World:
    """What time and tokens cost there. Times are milliseconds.

    pass_ms: of a pass, (rows, context) -> milliseconds, without noise.
    """

    pass_ms: object
    draft: object
    propose_ms: float = 0.1
    node_ms: float = 0.0
    upkeep_ms: float = 0.0
    other_ms: float = 0.05
    prompt_ms: float = 0.0
    noise: float = 0.0
    extra_rows: int = 0
    seed: int = 0
    total_ms: float = 0.0
    plain_ms: float = 0.0
    sizes: list = field(default_factory=list)
    learning: list = field(default_factory=list)

    def __post_init__(self):
        self._rng = np.random.default_rng(self.seed)

    def write(self, policy, num_tokens, prompt_length=16, batch=1):
        """A text of a batch of equal rows; adds up what it took, and what plain decoding would have taken."""
        written, step = 0, len(self.sizes)
        policy.begin(self.prompt_ms)
        self.total_ms += self.prompt_ms
        self.plain_ms += self.prompt_ms
        while written < num_tokens:
            context = prompt_length + written
            budget = policy.budget([context] * batch)
            drafted = [self._draft(step, budget) for _ in range(batch)]
            trees = policy.choose([tree for tree, _ in drafted])
            size = max(map(len, trees))
            left = num_tokens - written - 1
            accepted = [min(right, len(tree), left) for (_, right), tree in zip(drafted, trees, strict=True)]
            rows = batch * (size + 1 + (self.extra_rows if budget else 0))
            forward = self.pass_ms(rows, context) * self._jitter()
            drafting = (
                self.propose_ms + self.node_ms * size if budget else self.upkeep_ms * policy.is_learning
            )
            policy.observe(rows, forward, drafting, accepted, self.other_ms)
            self.total_ms += forward + drafting + self.other_ms
            gained = 1 + min(accepted)
            self.plain_ms += sum(
                self.pass_ms(batch, context + token) + self.other_ms for token in range(gained)
            )
            written += gained
            step += 1
            self.sizes.append(size if budget else None)
            self.learning.append(policy.is_learning)
        return self.total_ms / self.plain_ms

    def write_apart(self, policy, num_tokens, drafts, prompt_length=16):
        """Texts of unequal sequences in passes without padding, each until it has so many tokens."""
        written, step, others = [0] * len(drafts), 0, self.draft
        policy.begin(0.0)
        while active := [row for row, count in enumerate(written) if count < num_tokens]:
            contexts = [prompt_length + written[row] for row in active]
            budget = policy.budget(contexts, pads_rows=False)
            drafted = []
            for row in active:
                self.draft = drafts[row]
                drafted.append(self._draft(step, budget))
            trees = policy.choose([tree for tree, _ in drafted])
            accepted = [
                min(right, len(tree), num_tokens - written[row] - 1)
                for row, (_, right), tree in zip(active, drafted, trees, strict=True)
            ]
            rows = len(active) + sum(map(len, trees))
            forward = self.pass_ms(rows, sum(contexts) / len(contexts)) * self._jitter()
            drafting = self.propose_ms if budget else self.upkeep_ms * policy.is_learning
            policy.observe(rows, forward, drafting, accepted, self.other_ms)
            self.total_ms += forward + drafting + self.other_ms
            for row, count in zip(active, accepted, strict=True):
                written[row] += 1 + count
            self.sizes.append([len(tree) for tree in trees] if budget else None)
            step += 1
        self.draft = others
        self.plain_ms += sum(
            self.pass_ms(len(drafts), prompt_length + token) + self.other_ms for token in range(num_tokens)
        )
        return self.total_ms / self.plain_ms

    def _draft(self, step, budget):
        if not budget:
            return DraftTree(), 0
        scores, right = self.draft(self._rng, step, budget)
        return DraftTree.chain([1] * len(scores), scores), right

    def _jitter(self):
        return float(np.exp(self.noise * self._rng.standard_normal()))


def linear(row_ms, first_ms=10.0):
    return lambda rows, context=0: first_ms + row_ms * (rows - 1)


def stock_float32(rows, context=0):
    """Gemma 3 270M on two cores, as transformers runs it: the second row is dearer than the next fourteen."""
    known = [1, 2, 16, 17, 32, 64]
    times = [72.0, 115.0, 135.0, 154.0, 195.0, 370.0]
    return float(np.interp(rows, known, times)) * (1 + context / 20000) * max(1.0, rows / 64)


def blocks(size, first_ms=10.0, block_ms=8.0):
    """Kernels that take their rows in blocks."""
    return lambda rows, context=0: first_ms + block_ms * (-(-rows // size) - 1)


def cliff(rows, context=0):
    """Beyond 2,048 tokens attention falls onto a slow path, worst for many rows."""
    return (10 + 0.2 * rows) * (1 if context < 2048 else 4 + 0.2 * rows)


def taught_cost(pass_ms, contexts=(64,)):
    cost = ForwardCost()
    for context in contexts:
        for rows in (1, 2, 4, 8, 16, 32, 64):
            cost.observe(rows, pass_ms(rows, context), context)
    return cost
