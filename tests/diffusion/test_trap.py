"""The trap of parallel decoding, on ideal denoisers of ParallelBench's list tasks (arXiv 2510.04767).

"Replace one item, any" has n right answers, so that every position keeps its letter with probability 1 - 1/n.
A threshold of 0.9 lets one position a forward pass through while the list is short. As soon as there are ten
it lets all through at once, and nothing is replaced. A threshold that counts the tokens does not fall for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from diffusion.exact_laws import TextsOracle, list_task, write
from hasten.core import SamplingParams
from hasten.diffusion.list_tasks import replace_random_success, shuffle_success

SAMPLED = SamplingParams(temperature=1.0)
SIZES = range(3, 16)


@pytest.mark.parametrize("size", SIZES)
def test_a_threshold_replaces_nothing_in_a_list_of_ten(size: int) -> None:
    oracle = list_task("replace_random", size)
    written = write(oracle, "threshold:0.9+whole")
    assert oracle.is_right(written.token_ids) == (size < 10)
    assert written.stats.num_forwards == (size if size < 10 else 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", ["factor", "static+freedave:15"])
def test_a_factor_and_freedave_replace_one_item_in_two_forward_passes(size: int, strategy: str) -> None:
    oracle = list_task("replace_random", size)
    written = write(oracle, f"{strategy}+whole")
    assert oracle.is_right(written.token_ids)
    assert written.stats.num_forwards == 2


def test_freedave_of_the_depth_of_the_list_is_deep_enough() -> None:
    for size in SIZES:
        oracle = list_task("replace_random", size)
        written = write(oracle, f"static+freedave:{size}+whole")
        assert written.token_ids == write(oracle, "static+whole").token_ids
        assert written.stats.num_forwards == 2


def test_all_at_once_the_most_likely_tokens_replace_nothing() -> None:
    oracle = list_task("replace_random", 6)
    assert not oracle.is_right(write(oracle, "static:6+whole").token_ids)


COUNT = 200


def share(oracle: TextsOracle, tokens: int, is_right: Callable[[list[int]], bool]) -> float:
    """Of texts drawn in random order, so many tokens a forward pass: how many are right."""
    right = 0
    for seed in range(COUNT):
        strategy = f"static:{tokens},order=random,seed={seed}+whole"
        right += is_right(write(oracle, strategy, params=SAMPLED, seed=seed).token_ids)
    return right / COUNT


def near(chance: float) -> object:
    """Within four standard deviations of a count of ``COUNT``."""
    return pytest.approx(chance, abs=4 * math.sqrt(max(chance * (1 - chance), 1e-3) / COUNT))


@pytest.mark.parametrize(("tokens", "known"), [(1, 1.0), (2, 0.3125), (3, 0.1235), (6, 0.0154)])
def test_a_shuffle_succeeds_as_often_as_its_closed_form_says(tokens: int, known: float) -> None:
    """Of a denoiser for which the list itself is one of its shuffles."""
    oracle = TextsOracle(np.array(list(permutations(range(6)))), 6)
    found = share(oracle, tokens, lambda text: sorted(text) == list(range(6)))
    assert shuffle_success(6, tokens) == pytest.approx(known, abs=5e-5)
    assert found == near(known)


@pytest.mark.parametrize(
    ("size", "tokens", "known"),
    [(6, 1, 1.0), (6, 2, 0.7335), (6, 6, 0.4019), (10, 2, 0.8121), (10, 10, 0.3874)],
)
def test_a_replacement_succeeds_as_often_as_its_closed_form_says(
    size: int, tokens: int, known: float
) -> None:
    oracle = list_task("replace_random", size)
    assert replace_random_success(size, tokens) == pytest.approx(known, abs=5e-5)
    assert share(oracle, tokens, oracle.is_right) == near(known)
