"""The noise of the next positions, for drafters that keep laws: drawn with it, a draft is the target's token.

The token of a position is the arg-max of the target's scores plus noise that depends on the position alone.
A drafter that remembers what such scores were like adds the same noise, and so proposes what the target draws
wherever the two laws are alike. Knows samplers only.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence
from hasten.noise import BLOCK, fill_noise_of

Noise = NDArray[np.uint32]
"""uint32 [positions, 5]: the keys of the noise of the next positions; all 0 where there is none"""

MAX_AHEAD = 8
"""Positions ahead that are drawn with noise, and so the depth of such drafts."""

SOFTNESS = 0.6
"""How much the logarithm of a remembered probability is believed to err."""
_LEAST = 1e-4
_EULER = 0.5772
"""The mean of the noise."""

_GREEDY: Noise = np.zeros((MAX_AHEAD, 5), np.uint32)


def noise_ahead(sequence: Sequence, count: int = MAX_AHEAD) -> tuple[Noise, float]:
    """The noise of the next positions and the temperature; none, and 0, where drafts are to be the likeliest.

    Only for rules that draw the target's own token ("coupled"): others would gain nothing by it.
    """
    sampler = sequence.sampler
    # A NoisySampler; isinstance would take tens of microseconds to tell, several times a step.
    temperature = float(getattr(sampler, "temperature", 0.0))
    words_of: Callable[[int], NDArray[np.uint32]] | None = getattr(sampler, "noise_words", None)
    if not temperature or words_of is None or sequence.proposals != "coupled":
        return _GREEDY[:count], 0.0
    start = len(sequence.token_ids)
    return np.stack([words_of(position) for position in range(start, start + count)]), temperature


@numba.njit(cache=True)
def draw(
    found: NDArray[np.int64],
    chances: NDArray[np.float64],
    num_found: int,
    words: NDArray[np.uint32],
    temperature: float,
) -> None:
    """From a law to the chances that each token is the one that is written."""
    total = 0.0
    for at in range(num_found):
        total += chances[at]
    rest = max(1.0 - total, _LEAST)
    if temperature > 0:
        best = np.log(rest) / temperature + _EULER
        noise = np.empty(num_found, np.float32)
        fill_noise_of(words, np.empty(BLOCK, np.uint32), found[:num_found], noise)
        for at in range(num_found):
            chances[at] = np.log(max(chances[at], _LEAST)) / temperature + np.float64(noise[at])
            best = max(best, chances[at])
        whole = np.exp((np.log(rest) / temperature + _EULER - best) / SOFTNESS)
    else:
        best = 0.0
        for at in range(num_found):
            chances[at] = np.log(max(chances[at], _LEAST))
        whole = np.exp(np.log(rest) / SOFTNESS)
    for at in range(num_found):
        chances[at] = np.exp((chances[at] - best) / SOFTNESS)
        whole += chances[at]
    for at in range(num_found):
        chances[at] /= whole
