"""The oracles agree with each other: recursion and enumeration give the laws of the written-out joint."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from diffusion.exact_laws import JointOracle, Oracle, TextsOracle, list_task, random_chain, write
from hasten.diffusion.list_tasks import TASKS


def require_equal_laws(oracle: Oracle, joint: JointOracle, seed: int) -> None:
    """On canvases with random tokens written, possible ones and others."""
    random = np.random.default_rng(seed)
    places = np.arange(oracle.length)
    for _ in range(20):
        text = random.integers(oracle.num_words, size=oracle.length)
        text[random.random(oracle.length) < random.random()] = oracle.spec.mask_id
        np.testing.assert_allclose(oracle.laws(text, places), joint.laws(text, places), atol=1e-12)


@pytest.mark.parametrize("num_states", [None, 2, 5], ids=["plain", "narrow", "wide"])
@pytest.mark.parametrize("seed", range(5))
def test_the_laws_of_a_chain_are_those_of_its_joint(seed: int, num_states: int | None) -> None:
    chain = random_chain(seed, 3, 5, num_states, concentration=1.0)
    require_equal_laws(chain, chain.joint, seed)


def test_the_laws_of_texts_are_those_of_their_joint() -> None:
    texts = np.array(list(permutations(range(4))))
    probs = np.zeros((4,) * 4)
    probs[tuple(texts.T)] = 1
    require_equal_laws(TextsOracle(texts, 4), JointOracle(probs), 0)


@pytest.mark.parametrize("task", TASKS)
def test_one_token_a_forward_answers_every_list_task(task: str) -> None:
    for seed in range(3):
        oracle = list_task(task, 6, seed)
        written = write(oracle, "static")
        assert oracle.is_right(written.token_ids)
        assert written.stats.num_forwards == oracle.length


def test_a_chain_of_any_length_is_written() -> None:
    chain = random_chain(1, length=60)
    written = write(chain, "static+blocks:20", prompt=[0, 1])
    steps = zip(written.token_ids, written.token_ids[1:], strict=False)
    assert all(chain.transition[now, later] > 0 for now, later in steps)
