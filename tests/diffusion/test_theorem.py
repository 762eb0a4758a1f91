"""Fast-dLLM's theorem (arXiv 2505.22618): n tokens that are sure enough are the likeliest together.

If n positions have a token of more than 1 - eps each and (n + 1) eps <= 1, the tokens that are best one by
one are the best joint choice. Just outside of the bound they need not be.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion.exact_laws import JointOracle, write

Floats = NDArray[np.float64]
WORDS = 3


def joints(seed: int, count: int, size: int) -> Floats:
    """[count] + [words] * size: much weight on one text, the rest on others near it."""
    random = np.random.default_rng(seed)
    texts = np.array(list(np.ndindex((WORDS,) * size)))
    distance = (texts != 0).sum(1)
    spread = random.dirichlet(np.full(len(texts), 0.3), count) * np.exp(
        -random.choice([0, 1, 3], (count, 1)) * distance
    )
    spread[random.random(count) < 0.5, 0] = 0
    near = (distance == 1) & (texts.max(1) == 1)  # one other word, once: what the bound is about
    evenly = random.random(count) < 0.5
    spread[evenly] = near * random.uniform(0.9, 1, (int(evenly.sum()), len(texts)))
    spread /= spread.sum(1, keepdims=True)
    weight = random.uniform(0, 1.2 * size / (size + 1), (count, 1))
    laws = (1 - weight) * (distance == 0) + weight * spread
    return laws.reshape((count, *(WORDS,) * size))


def needed(laws: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Of joint laws [count] + [words] * size: (n + 1) eps, and whether the best tokens are the best text."""
    size = laws.ndim - 1
    best, doubts = [], []
    for place in range(size):
        marginal = laws.sum(tuple(axis for axis in range(1, size + 1) if axis != place + 1))
        best.append(marginal.argmax(1))
        doubts.append(1 - marginal.max(1))
    apart = np.ravel_multi_index(best, (WORDS,) * size)
    together = laws.reshape(len(laws), -1)
    likeliest = together[np.arange(len(laws)), apart] >= together.max(1) - 1e-12
    return (size + 1) * np.max(doubts, axis=0), likeliest


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_tokens_that_are_sure_enough_for_their_number_are_the_likeliest_together(size: int) -> None:
    doubt, likeliest = needed(joints(size, 20_000, size))
    inside = doubt <= 1
    assert inside.sum() > 5_000
    assert (inside & (doubt > 0.9)).sum() > 100
    assert likeliest[inside].all()
    outside = (doubt > 1) & (doubt < 1.6)
    assert (~likeliest[outside]).sum() > 100
    assert (~likeliest & (doubt < 1.1)).any()  # the bound is tight


@pytest.mark.parametrize("selector", ["factor", "factor:0.5", "auto"])
def test_what_a_factor_writes_together_is_the_likeliest_together(selector: str) -> None:
    several = 0
    for law in joints(7, 250, 4):
        written = write(JointOracle(law), selector).records[0]
        others = tuple(set(range(4)) - set(written.positions.tolist()))
        joint = law.sum(others)
        assert joint[tuple(written.token_ids)] >= joint.max() - 1e-6
        several += len(written.positions) > 1
    assert several > 20


def test_a_larger_factor_writes_what_is_not_the_likeliest() -> None:
    wrong = 0
    for law in joints(7, 250, 4):
        written = write(JointOracle(law), "factor:2").records[0]
        joint = law.sum(tuple(set(range(4)) - set(written.positions.tolist())))
        wrong += joint[tuple(written.token_ids)] < joint.max() - 1e-6
    assert wrong > 0
