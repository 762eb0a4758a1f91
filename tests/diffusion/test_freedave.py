"""FreeDave (arXiv 2510.00294) writes what its base writes, whatever that remembers, on many joint laws."""

from __future__ import annotations

from functools import cache

import pytest

from diffusion.exact_laws import Oracle, list_task, random_chain, random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.parse import parse_strategy

BASES = (
    "static",
    "static:2,order=entropy",
    "static:steps=3,order=margin",
    "static:order=left-to-right",
    "dream:4",
    "maskgit:4",
    "threshold:0.6",
    "factor",
    "entropy",
    "entropy-bound:0.3",
    "localleap:tau=0.8,relaxed=0.5,radius=1",
    "hierarchy",
    "klass:tau=0.4,kl=0.5,history=1",
    "ccd:3",
    "ccd+ccd-ds:2,warm_up=0",
    "auto",
)
JOINTS = 36
SPEC = random_joint(0).spec
parsed = cache(lambda text: parse_strategy(text, SPEC))


def joint(seed: int) -> Oracle:
    return random_joint(seed, length=5, concentration=(0.03, 0.3)[seed % 2])


def saved_passes(oracle: Oracle, base: str, depth: int, params: SamplingParams, seed: int) -> int:
    plain = write(oracle, parsed(f"{base}+whole"), params=params, seed=seed)
    drafted = write(oracle, parsed(f"{base}+whole+freedave:{depth}"), params=params, seed=seed)
    assert drafted.token_ids == plain.token_ids
    assert [one.positions.tolist() for one in drafted.records] == [
        one.positions.tolist() for one in plain.records
    ]
    assert drafted.stats.num_steps == plain.stats.num_steps == plain.stats.num_forwards
    return plain.stats.num_forwards - drafted.stats.num_forwards


@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("base", BASES)
def test_freedave_writes_what_its_base_writes(base: str, temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    first = JOINTS * (BASES.index(base) + len(BASES) * int(temperature))  # joints of its own
    saved = [
        saved_passes(joint(first + number), base, 1 + number % 6, params, number) for number in range(JOINTS)
    ]
    assert min(saved) >= 0
    assert sum(saved) > 0
    assert not any(saved[::6])  # depth 1: nothing is drafted


@pytest.mark.parametrize("base", ["static+blocks:8", "klass:tau=0.5,history=1+blocks:8", "ccd-ds:warm_up=2"])
def test_freedave_writes_what_its_base_writes_on_longer_texts(base: str) -> None:
    saved = 0
    for seed in range(8):
        chain = random_chain(seed, length=24, num_states=6)
        plain, drafted = write(chain, base, seed=seed), write(chain, f"{base}+freedave:5", seed=seed)
        assert drafted.token_ids == plain.token_ids
        saved += plain.stats.num_forwards - drafted.stats.num_forwards
    assert saved > 0


def test_deeper_drafts_take_fewer_passes() -> None:
    passes = [
        sum(write(joint(seed), f"static+whole+freedave:{depth}").stats.num_forwards for seed in range(30))
        for depth in (1, 2, 3, 5)
    ]
    assert passes == sorted(set(passes), reverse=True)


def test_a_schedule_is_foreseen_as_far_as_it_goes() -> None:
    """The number that a later step writes is known, so that a certain text takes two passes."""
    oracle = list_task("copy", 12)
    for base in (
        "maskgit:4,temperature=9",
        "dream:5",
        "static:steps=5",
        "klass:history=3",
        "ccd-ds:warm_up=3",
    ):
        drafted = write(oracle, f"{base}+whole+freedave:12")
        assert drafted.stats.num_forwards == 2
        assert drafted.stats.num_steps > 3
