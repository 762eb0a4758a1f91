"""What rules that weigh a draft's law against the target's have in common; all in float64.

Knows laws [vocab] and how to draw from them, and no rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.core import LawSampler, Sequence
from hasten.errors import ConfigError
from hasten.tree import DraftTree

STREAM = 1
"""Of the sampler's random numbers; drafters use others."""

Law = NDArray[np.float64]


def law_sampler(sequence: Sequence, verify: str) -> LawSampler:
    """The sequence's sampler. Raises ConfigError for one that does not tell its laws."""
    sampler = sequence.sampler
    if not isinstance(sampler, LawSampler):
        raise ConfigError(
            f"verify={verify!r} needs a sampler that tells its laws, and {type(sampler).__name__} does not; "
            "choose verify='follow'"
        )
    return sampler


def draft_law(tree: DraftTree, node: int, vocab_size: int) -> Law:
    """The law a node's token was drawn from; a token that was chosen has all of it."""
    if tree.draft_probs is None:
        return one_hot(int(tree.token_ids[node]), vocab_size)
    return normalised(tree.draft_probs[node])


def one_hot(token_id: int, vocab_size: int) -> Law:
    """The law that a token which was chosen counts as drawn from."""
    law: Law = np.zeros(vocab_size)
    law[token_id] = 1.0
    return law


def normalised(probs: NDArray[np.floating]) -> Law:
    """In float64, so that who drew from a float32 law and who weighs it mean the same numbers."""
    law: Law = probs.astype(np.float64)
    law /= law.sum()
    return law


def draw(law: Law, generator: np.random.Generator) -> int:
    """A token drawn from a law [vocab]; never one of probability 0."""
    total = law.cumsum()
    return int(np.searchsorted(total, generator.random() * total[-1], side="right"))


def acceptance_of(target: float, draft: float) -> float:
    """min(1, target / draft) of a drafted token's probabilities; 0 where the target's is 0."""
    return target / max(target, draft) if target > 0 else 0.0


def left_over(law: Law, weight: float, draft: Law) -> tuple[Law, float]:
    """What the target still owes after a token drawn from ``draft`` was rejected, and its new weight.

    The law that is owed with probability ``weight`` becomes norm(max(0, weight * law - draft)). With s the
    sum of that maximum, the weight becomes s / (s + 1 - weight): a draw gets min(weight * law, draft), so s
    is still owed, and a draw is rejected with probability s + 1 - weight.
    """
    rest = np.maximum(weight * law - draft, 0.0)
    owed = float(rest.sum())
    if owed > 0:
        return rest / owed, owed / (owed + (1.0 - weight))  # in this order: 1 stays 1
    # With all of the weight and nothing left, both laws are the same, and only rounding rejects.
    return law, 1.0 if weight == 1.0 else 0.0
