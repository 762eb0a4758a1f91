"""The diffusion loop on exact joint laws."""

from __future__ import annotations

import pytest

from diffusion.exact_laws import random_joint, write
from hasten.core import SamplingParams

SAMPLED = SamplingParams(temperature=1.0)


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "base", ["static", "static:2", "threshold:0.6", "static:order=random", "static+blocks:3"]
)
def test_freedave_writes_what_its_base_writes_in_fewer_forward_passes(
    base: str, params: SamplingParams
) -> None:
    passes = 0
    for seed in range(150):
        oracle = random_joint(seed, length=6)
        plain = write(oracle, base, params=params, seed=seed)
        drafted = write(oracle, f"{base}+freedave:6", params=params, seed=seed)
        assert drafted.token_ids == plain.token_ids
        assert drafted.stats.num_forwards <= plain.stats.num_forwards
        assert drafted.stats.num_steps == plain.stats.num_steps == plain.stats.num_forwards
        passes += plain.stats.num_forwards - drafted.stats.num_forwards
    assert passes > 0
