"""What every selector owes: each position written once, in as many forward passes as positions, by a rule."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffusion.exact_laws import random_chain, random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Block, Canvas
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.selectors.static import Static
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
STRATEGIES = (
    "static",
    "static:2,order=margin",
    "static:steps=3,order=entropy",
    "static:steps=4,order=random,seed=3",
    "dream:3",
    "dream:4,order=left-to-right",
    "threshold:0.6",
    "factor",
    "entropy",
    "entropy-bound:0.4",
    "localleap:tau=0.8,relaxed=0.5,radius=1",
    "hierarchy",
    "klass:tau=0.5,kl=0.1,history=1",
    "ccd",
    "ccd-ds:warm_up=1",
    "ccd:3+ccd-ds:2,warm_up=0",
    "maskgit:4",
    "maskgit:3,temperature=0",
    "auto",
)
LENGTH = 6


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 9),
    size=st.sampled_from([1, 2, 3, 6]),
    concentration=st.sampled_from([0.02, 0.3]),
    params=st.sampled_from([SamplingParams(), SAMPLED]),
)
def test_every_position_is_written_once_and_every_pass_writes_one(
    strategy: str, seed: int, size: int, concentration: float, params: SamplingParams
) -> None:
    oracle = random_joint(seed, length=LENGTH, concentration=concentration)
    blocks = f"{strategy}+blocks:{size}"
    written = write(oracle, blocks, params=params, seed=seed)
    places = np.concatenate([record.positions for record in written.records])
    assert sorted(places.tolist()) == list(range(LENGTH))
    assert all(len(record.positions) for record in written.records)
    assert all((np.diff(record.positions) > 0).all() for record in written.records)
    assert len(written.records) == written.stats.num_forwards <= LENGTH
    assert (np.diff(places // size) >= 0).all()  # a block is finished before the next
    again = write(oracle, blocks, params=params, seed=seed)
    assert again.token_ids == written.token_ids
    assert again.stats.num_forwards == written.stats.num_forwards


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_canvas_with_gaps_is_filled_and_nothing_else(strategy: str) -> None:
    oracle = random_chain(3, length=12)
    is_open = np.arange(12) % 3 != 0
    canvas = Canvas.with_gaps(np.where(is_open, oracle.spec.mask_id, 1), is_open)
    written = write(oracle, strategy, canvas=canvas)
    assert all(written.token_ids[place] == 1 for place in np.flatnonzero(~is_open))
    assert written.stats.num_tokens == is_open.sum() >= written.stats.num_forwards
    assert reference_of(parse_strategy(strategy, oracle.spec)).guarantee == "exact"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_forked_state_sees_does_not_change_the_original(strategy: str) -> None:
    """Choosing on copies of the state in between, as a look ahead does, leaves the text as it was."""
    oracle = random_joint(1, length=LENGTH)
    plain = write(oracle, strategy)
    chosen = parse_strategy(strategy, oracle.spec)
    kind = type(chosen.selector)

    class Forking(kind):  # type: ignore[misc, valid-type]
        def select(self, step, state):
            for _ in range(2):
                super().select(step, copy.deepcopy(state))
            return super().select(step, state)

    selector = Forking(**vars(chosen.selector))
    forked = write(oracle, replace(chosen, selector=selector))
    assert forked.token_ids == plain.token_ids
    assert forked.stats.num_forwards == plain.stats.num_forwards


@pytest.mark.parametrize("strategy", ["static:2,order=random,seed=5", "static:steps=4,order=left-to-right"])
def test_positions_of_a_known_order_are_announced(strategy: str) -> None:
    oracle = random_chain(0, length=10)
    selector = parse_strategy(strategy, oracle.spec).selector
    assert selector.order_is_known
    canvas = Canvas.after((), np.full(10, oracle.spec.mask_id))
    state = selector.start(canvas)
    for record in write(oracle, f"{strategy}+whole").records:
        announced = selector.upcoming(canvas, Block(0, 10), state)
        assert announced.tolist() == record.positions.tolist()
        canvas.commit(record.positions, record.token_ids)
    assert not canvas.num_open


@pytest.mark.parametrize(
    "bad",
    [
        "static:0",
        "static:steps=0",
        "static:2,steps=3",
        "static:order=up",
        "dream:0",
        "dream:eps=1",
        "dream:order=up",
        "threshold:nan",
        "threshold:-1",
        "factor:0",
        "entropy:-1",
        "entropy-bound:-1",
        "localleap:relaxed=0.95",
        "localleap:radius=-1",
        "hierarchy:low=0.95",
        "klass:kl=0",
        "klass:history=0",
        "ccd:0",
        "ccd-ds:0",
        "ccd-ds:expand=-1",
        "maskgit:0",
        "maskgit:temperature=-1",
        "auto:f=0",
        "auto:gamma=-1",
    ],
)
def test_values_that_cannot_work_are_refused(bad: str) -> None:
    value = bad.rpartition("=")[2].rpartition(":")[2].split(",")[0]
    with pytest.raises(ConfigError, match=value):
        parse_strategy(bad, random_joint(0).spec)


def test_only_one_token_a_forward_is_called_exact() -> None:
    spec = random_joint(0).spec
    exact = {one for one in STRATEGIES if parse_strategy(one, spec).guarantee == "exact"}
    assert exact == {"static"}
    assert parse_strategy("static:order=random", spec).guarantee == "exact"


def test_selectors_that_choose_by_entropy_are_measured_against_the_order_of_entropy() -> None:
    for name in ("entropy", "entropy-bound", "ccd-ds", "ccd"):
        reference = parse_strategy(name, random_joint(0).spec).selector.reference
        assert reference == Static(order="entropy")
