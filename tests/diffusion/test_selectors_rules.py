"""Which positions a selector chooses, from predictions that are given: the papers' rules, one by one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffusion.exact_laws import JointOracle, random_chain, random_joint, write
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec, Prediction
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.selectors.auto import Auto
from hasten.diffusion.selectors.entropy_bound import EntropyBound
from hasten.diffusion.selectors.factor import Factor
from hasten.diffusion.selectors.local_leap import LocalLeap
from hasten.diffusion.steps import DenoisingStep

WORDS = 6
SPEC = DenoiserSpec(mask_id=WORDS)


def step_of(laws, is_open=None) -> DenoisingStep:
    """One prediction, [length, words]; what is not open was written before."""
    laws = np.asarray(laws, dtype=np.float64)
    is_open = np.ones(len(laws), dtype=bool) if is_open is None else np.asarray(is_open, dtype=bool)
    canvas = Canvas.after((), np.full(len(laws), WORDS))
    canvas.commit(np.flatnonzero(~is_open), np.zeros((~is_open).sum(), dtype=np.int64))
    positions = np.flatnonzero(is_open)
    prediction = Prediction(positions, torch.from_numpy(np.log(laws[is_open])))
    return DenoisingStep(canvas, Block(0, len(laws)), prediction, 0, 0)


def sure(*confidences):
    """Laws whose best token has these probabilities, and the others the rest evenly."""
    laws = [[c] + [(1 - c) / (WORDS - 1)] * (WORDS - 1) for c in confidences]
    return np.array(laws)


parsed = cache(lambda text: parse_strategy(text, SPEC).selector)


def chosen(selector: str | Selector, step: DenoisingStep) -> list[int]:
    made = parsed(selector) if isinstance(selector, str) else selector
    return made.select(step, made.start(step.canvas)).positions.tolist()


confidences = st.lists(st.floats(0.2, 0.999), min_size=1, max_size=12)


@st.composite
def steps(draw):
    values = draw(confidences)
    is_open = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    is_open[draw(st.integers(0, len(values) - 1))] = True
    return step_of(sure(*values), is_open)


def equally(one: str, other: str) -> None:
    """Two strategies write the same texts in the same forward passes."""
    for seed in range(30):
        oracle = random_joint(seed, length=4) if seed % 2 else random_chain(seed, length=8, concentration=0.5)
        first, second = write(oracle, one), write(oracle, other)
        assert first.token_ids == second.token_ids
        for left, right in zip(first.records, second.records, strict=True):
            assert left.positions.tolist() == right.positions.tolist()


@pytest.mark.parametrize(
    "strict",
    [
        "threshold:1.01",
        "klass:1.01",
        "localleap:tau=1.01,relaxed=1.01",
        "static:steps=99",
        "dream:99,order=confidence",
    ],
)
def test_a_strict_selector_writes_one_token_a_forward(strict: str) -> None:
    equally(strict, "static")


def strictly_positive(seed: int) -> JointOracle:
    oracle = random_joint(seed, length=4)
    return JointOracle(oracle.probs + 1e-4)


@pytest.mark.parametrize(
    ("strict", "reference"),
    [
        ("factor:1e-9", "static"),
        ("auto:f=1e-9", "static"),
        ("entropy:0", "static:order=entropy"),
        ("entropy-bound:0", "static:order=entropy"),
    ],
)
def test_a_bound_of_nothing_writes_one_token_a_forward(strict: str, reference: str) -> None:
    for seed in range(20):
        oracle = strictly_positive(seed)
        written = write(oracle, strict)
        assert written.token_ids == write(oracle, reference).token_ids
        assert written.stats.num_forwards == 4


@pytest.mark.parametrize(
    "loose",
    ["threshold:0", "entropy:9", "entropy-bound:99", "factor:99", "maskgit:1", "dream:1", "static:steps=1"],
)
def test_a_loose_selector_writes_a_block_a_forward(loose: str) -> None:
    written = write(random_chain(0, length=12), f"{loose}+blocks:4")
    assert [record.positions.tolist() for record in written.records] == np.arange(12).reshape(3, 4).tolist()


# Fast-dLLM


def test_a_threshold_is_reached_by_equality_and_the_surest_is_always_written() -> None:
    assert chosen("threshold:0.5", step_of(sure(0.5, 0.4, 0.6))) == [0, 2]
    assert chosen("threshold:0.9", step_of(sure(0.5, 0.4, 0.6))) == [2]


@given(steps(), st.floats(0.05, 3))
def test_a_factor_writes_the_largest_number_that_is_sure_enough(step: DenoisingStep, f: float) -> None:
    values = sorted(step.open.confidence, reverse=True)
    fits = [n for n in range(1, len(values) + 1) if values[n - 1] >= 1 - f / (n + 1) - 1e-6]
    number = max(fits, default=1)
    written = chosen(Factor(f), step)
    assert len(written) == number
    assert min(step.open.confidence[step.open.rows_of(np.array(written))]) == values[number - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", range(2, 40))
def test_a_factor_bound_that_is_met_exactly_is_met_in_spite_of_rounding(number: int, dtype) -> None:
    step = step_of(sure(*[1 - 1 / number] * number))
    rounded = Prediction(step.prediction.positions, step.prediction.logits.to(dtype))
    step = DenoisingStep(step.canvas, step.block, rounded, 0, 0)
    assert len(chosen("factor", step)) == number - 1


# EB-sampler and DiffusionGemma


@given(steps(), st.floats(0, 2))
def test_an_entropy_bound_writes_the_largest_number_within_it(step: DenoisingStep, gamma: float) -> None:
    entropies = np.sort(step.open.entropy)
    fits = [n for n in range(1, len(entropies) + 1) if entropies[: n - 1].sum() <= gamma + 1e-12]
    assert len(chosen(EntropyBound(gamma), step)) == max(fits)


@given(steps(), st.floats(0.01, 2))
def test_an_entropy_bound_accepts_what_diffusion_gemma_accepts(step: DenoisingStep, gamma: float) -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        EntropyBoundSampler,
        EntropyBoundSamplerConfig,
    )

    count = len(step.open.positions)
    theirs = EntropyBoundSampler(EntropyBoundSamplerConfig(entropy_bound=gamma), count, WORDS, 1)
    theirs.accept_canvas(torch.zeros(1, count), torch.ones(1, count), step.open.logits[None], 0)
    accepted = theirs.accepted_token_mask[0].numpy()
    assert chosen(EntropyBound(gamma), step) == step.open.positions[accepted].tolist()


def total_correlation(oracle: JointOracle, text, places) -> float:
    """Of some open places of a canvas, nats."""
    index = tuple(slice(None) if token == oracle.num_words else int(token) for token in text)
    rest = oracle.probs[index]
    waiting = [place for place, token in enumerate(text) if token == oracle.num_words]
    others = tuple(axis for axis, place in enumerate(waiting) if place not in places)
    joint = (rest / rest.sum()).sum(others)
    apart = (joint.sum(tuple(set(range(joint.ndim)) - {axis})) for axis in range(joint.ndim))
    return sum(map(nats, apart)) - nats(joint)


def nats(law) -> float:
    return float(-np.sum(np.where(law > 0, law * np.log(np.where(law > 0, law, 1)), 0)))


@pytest.mark.parametrize("selector", ["entropy-bound", "entropy-bound:0.5", "auto"])
def test_what_is_written_together_depends_on_each_other_by_no_more_than_the_bound(selector: str) -> None:
    gamma = 0.5 if selector.endswith("0.5") else 0.1
    several = 0
    for seed in range(40):
        oracle = random_joint(seed, length=5, concentration=0.03)
        text = np.full(5, oracle.num_words)
        for record in write(oracle, selector).records:
            assert total_correlation(oracle, text, record.positions) <= gamma + 1e-9
            text[record.positions] = record.token_ids
            several += len(record.positions) > 1
    assert several > 5


# dParallel


@given(steps())
def test_every_low_entropy_is_written_or_the_lowest(step: DenoisingStep) -> None:
    low = step.open.positions[step.open.entropy <= 0.5].tolist()
    assert chosen("entropy", step) == (low or [int(step.open.positions[step.open.entropy.argmin()])])


# LocalLeap


@given(steps(), st.integers(0, 5))
def test_a_leap_writes_what_the_threshold_does_and_more_only_near_it(
    step: DenoisingStep, radius: int
) -> None:
    anchors = step.open.positions[step.open.confidence >= 0.8 - 1e-6]
    strict = chosen("threshold:0.8", step)
    written = chosen(LocalLeap(0.8, 0.5, radius), step)
    assert set(strict) <= set(written)
    for position in set(written) - set(strict):
        assert np.abs(anchors - position).min() <= radius
        assert 0.5 - 1e-6 <= step.open.confidence[step.open.rows_of(np.array([position]))] < 0.8
    assert chosen(LocalLeap(0.8, 0.8, radius), step) == strict


def test_a_leap_goes_as_far_as_its_radius() -> None:
    step = step_of(sure(0.8, 0.8, 0.95, 0.7, 0.8, 0.8))
    assert chosen("localleap:radius=1", step) == [1, 2]
    assert chosen("localleap:radius=2", step) == [0, 1, 2, 4]
    assert chosen("localleap", step) == [0, 1, 2, 4, 5]


# dInfer's hierarchy


def test_the_surest_of_every_gap_is_written() -> None:
    is_open = [True, True, False, True, True, True, False, True]
    step = step_of(sure(0.5, 0.6, 0.9, 0.95, 0.7, 0.92, 0.9, 0.3), is_open)
    assert chosen("hierarchy", step) == [1, 3, 5]  # the last gap is too unsure
    assert chosen("hierarchy:low=0.2", step) == [1, 3, 5, 7]
    assert chosen("hierarchy:low=0.9", step) == [3, 5]
    assert chosen("hierarchy", step_of(sure(0.3, 0.35, 0.2))) == [1]


@given(steps())
def test_a_hierarchy_adds_at_most_one_token_a_gap_to_the_threshold(step: DenoisingStep) -> None:
    written, strict = chosen("hierarchy", step), chosen("threshold", step)
    assert set(strict) <= set(written)
    gaps = 1 + int((np.diff(step.open.positions) > 1).sum())
    assert len(written) - len(strict) <= gaps


# auto


@given(steps(), st.floats(0.1, 3), st.floats(0, 2))
def test_auto_writes_as_many_as_both_bounds_allow(step: DenoisingStep, f: float, gamma: float) -> None:
    """With laws of this form the surest token and the lowest entropy are one order."""
    by_factor, by_entropy = chosen(Factor(f), step), chosen(EntropyBound(gamma), step)
    written = chosen(Auto(f, gamma), step)
    assert len(written) == min(len(by_factor), len(by_entropy))
    assert set(written) <= set(by_factor)
