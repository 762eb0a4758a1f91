"""Guidance, credit, temperature, banned ends, and predictions of written tokens."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.exact_laws import random_joint, write
from diffusion.tables import FunctionDenoiser, table_denoiser
from hasten.constraints.base import Constraint
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec, Prediction, Query
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.steps import DenoisingStep
from hasten.diffusion.transforms.cfg import Guidance
from hasten.diffusion.transforms.credit import Credit
from hasten.diffusion.transforms.temperature import Temperature
from hasten.diffusion.transforms.unseen import Unseen
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
PROMPT = [1, 2]


def step_on(logits: torch.Tensor, forward: int) -> DenoisingStep:
    """A pass over a canvas that is all open, and one block."""
    canvas = Canvas.after([], np.full(len(logits), logits.shape[-1]))
    return DenoisingStep(
        canvas, Block(0, len(canvas)), Prediction(np.arange(len(canvas)), logits), forward, forward
    )


# guidance


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_guidance_of_scale_0_changes_nothing(params: SamplingParams) -> None:
    for seed in range(5):
        denoiser = table_denoiser(seed)
        plain = write(denoiser, "threshold:0.5", length=6, prompt=PROMPT, params=params)
        guided = write(denoiser, "threshold:0.5+cfg:0", length=6, prompt=PROMPT, params=params)
        assert guided.token_ids == plain.token_ids
        assert guided.stats.num_rows == 2 * plain.stats.num_rows
        assert guided.stats.num_forwards == plain.stats.num_forwards


def test_guidance_moves_logits_away_from_those_without_the_prompt() -> None:
    num_changed = 0
    for seed in range(8):
        denoiser = table_denoiser(seed)

        def mixed(token_ids, table=denoiser):
            hidden = token_ids.copy()
            hidden[: len(PROMPT)] = table.spec.mask_id
            free = table.function(hidden)
            return free + 2.5 * (table.function(token_ids) - free)

        guided = write(denoiser, "static+cfg:1.5", length=6, prompt=PROMPT)
        mixture = FunctionDenoiser(mixed, denoiser.num_words)
        assert guided.token_ids == write(mixture, "static", length=6, prompt=PROMPT).token_ids
        num_changed += guided.token_ids != write(denoiser, "static", length=6, prompt=PROMPT).token_ids
    assert num_changed > 0


def test_guidance_keeps_banned_tokens_banned() -> None:
    step = step_on(torch.tensor([[0.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf]]), 0)
    free = Prediction(
        step.prediction.positions, torch.tensor([[2.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    )
    logits = Guidance(1.0).apply(step, [free], None).logits
    assert logits.tolist() == [[-2.0, 2.0, -torch.inf], [0.0, -torch.inf, -torch.inf]]


def test_the_query_without_the_prompt_reads_and_stores_no_rows() -> None:
    canvas = Canvas.after(PROMPT, np.full(4, 9))
    query = Query(
        sequence=0, token_ids=canvas.token_ids, wanted=np.array([3]), computed=np.array([3, 4]), stores=True
    )
    [free] = Guidance(1.0, DenoiserSpec(mask_id=9)).extra_queries(query, canvas)
    assert free.token_ids.tolist() == [9] * 6
    assert free.wanted.tolist() == [3]
    assert free.computed is None
    assert not free.stores


def test_guidance_is_part_of_the_question() -> None:
    strategy = parse_strategy("threshold+cfg:2", table_denoiser(0).spec)
    assert [one.name for one in reference_of(strategy).transforms] == ["cfg"]
    assert parse_strategy("static+cfg:2", table_denoiser(0).spec).guarantee == "exact"


# credit


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_credit_without_weight_is_threshold_decoding(params: SamplingParams) -> None:
    for seed in range(8):
        denoiser = table_denoiser(seed)
        plain = write(denoiser, "threshold:0.7", params=params)
        weightless = write(denoiser, "threshold:0.7+credit:0", params=params)
        assert weightless.token_ids == plain.token_ids
        assert [list(one.positions) for one in weightless.records] == [
            list(one.positions) for one in plain.records
        ]


@pytest.mark.parametrize("slots", [0, 1, 8])
def test_credit_of_constant_logits_grows_as_a_geometric_sum(slots: int) -> None:
    credit = Credit(alpha=0.7, gamma=0.5, beta=0.65, slots=slots)
    logits = torch.tensor([[1.0, 0.2, -0.3], [0.0, 0.1, 2.0]], dtype=torch.float64)
    state = credit.start(step_on(logits, 0).canvas)
    best, guesses = logits.softmax(-1).max(-1)
    before = torch.zeros(2, dtype=torch.float64)
    for passes in range(1, 9):
        fused = credit.apply(step_on(logits, passes - 1), [], state).logits
        earned = best**0.5 * (1 - 0.65**passes) / (1 - 0.65)
        expected = logits.clone()
        expected[torch.arange(2), guesses] += 0.7 * torch.log1p(earned)
        assert torch.allclose(fused, expected)
        now = fused.softmax(-1)[torch.arange(2), guesses]
        assert (now > before).all()
        before = now


@pytest.mark.parametrize("slots", [0, 5])
def test_credit_is_that_of_a_full_matrix(slots: int) -> None:
    """Few numbers a position are enough, because only best guesses earn credit."""
    random = np.random.default_rng(0)
    credit = Credit(slots=slots)
    state = credit.start(step_on(torch.zeros(3, 5), 0).canvas)
    matrix = torch.zeros(3, 5, dtype=torch.float64)
    for forward in range(30):
        logits = torch.from_numpy(random.standard_normal((3, 5)))
        step = step_on(logits, forward)
        matrix *= credit.beta
        best, guesses = logits.softmax(-1).max(-1)
        matrix[torch.arange(3), guesses] += best**credit.gamma
        expected = logits + credit.alpha * torch.log1p(matrix)
        assert torch.allclose(credit.apply(step, [], state).logits, expected)


def test_few_slots_keep_the_largest_credits() -> None:
    credit = Credit(slots=2)
    state = credit.start(step_on(torch.zeros(1, 4), 0).canvas)
    for forward, best in enumerate([0, 1, 1, 2]):
        logits = torch.zeros(1, 4, dtype=torch.float64)
        logits[0, best] = 3.0
        credit.apply(step_on(logits, forward), [], state)
    assert set(state[0]) == {1, 2}


def test_credit_begins_anew_with_each_block() -> None:
    for seed in range(6):
        denoiser = table_denoiser(seed)
        both = write(denoiser, "threshold:0.8+credit+blocks:4+limit:99")
        prompt = both.token_ids[:4]
        second = write(denoiser, "threshold:0.8+credit+blocks:4+limit:99", length=4, prompt=prompt)
        assert second.token_ids == both.token_ids[4:]
        assert second.stats.num_forwards == sum(one.block.start == 4 for one in both.records)


def test_credit_saves_forward_passes() -> None:
    passes = dict.fromkeys(("threshold:0.9", "threshold:0.9+credit"), 0)
    for seed, line in itertools.product(range(20), passes):
        passes[line] += write(random_joint(seed, length=6), line).stats.num_forwards
    assert passes["threshold:0.9+credit"] < passes["threshold:0.9"]


def test_credit_is_the_same_with_passes_made_ahead() -> None:
    for seed in range(10):
        denoiser = table_denoiser(seed)
        plain = write(denoiser, "threshold:0.8+credit")
        ahead = write(denoiser, "threshold:0.8+credit+freedave:4")
        assert ahead.token_ids == plain.token_ids
        assert [one.positions.tolist() for one in ahead.records] == [
            one.positions.tolist() for one in plain.records
        ]


# temperature


def test_the_temperature_falls_evenly() -> None:
    transform = Temperature(high=0.8, low=0.4, steps=48)
    assert [transform.at(n) for n in (0, 24, 48, 60)] == pytest.approx([0.8, 0.6, 0.4, 0.4])
    step = step_on(torch.tensor([[0.6, 1.2]]), 24)
    assert torch.allclose(transform.apply(step, [], None).logits, torch.tensor([[1.0, 2.0]]))


def test_a_constant_temperature_is_that_of_sampling() -> None:
    for seed in range(5):
        denoiser = table_denoiser(seed)
        warm = write(
            denoiser, "static:order=left-to-right+temperature:0.5,low=0.5", params=SAMPLED, seed=seed
        )
        half = SamplingParams(temperature=0.5)
        assert (
            warm.token_ids == write(denoiser, "static:order=left-to-right", params=half, seed=seed).token_ids
        )


# banned ends


def test_no_end_of_text_is_written_before_it_may_be() -> None:
    for seed in range(10):
        denoiser = table_denoiser(seed, eos_ids=(0, 2))
        everywhere = write(denoiser, "threshold:0.5+no-eos", length=6, prompt=PROMPT)
        assert not {0, 2} & set(everywhere.token_ids)
        early = write(denoiser, "threshold:0.5+no-eos:4", length=6, prompt=PROMPT)
        assert not {0, 2} & set(early.token_ids[:4])
    assert any(
        {0, 2} & set(write(table_denoiser(seed, eos_ids=(0, 2)), "static+no-eos:4").token_ids[4:])
        for seed in range(10)
    )


# predictions of written tokens


def echo(token_ids: np.ndarray) -> np.ndarray:
    """Sure of every token that it sees; of others it expects word 0, and word 1 next to one."""
    logits = np.zeros((len(token_ids), 3))
    logits[:, 0] = 1.0
    neighbours = np.append(token_ids[1:], 2) == 1
    logits[neighbours, 1] = 2.0
    seen = token_ids < 3
    logits[seen] = 0.0
    logits[np.flatnonzero(seen), token_ids[seen]] = 9.0
    return logits


def test_written_tokens_are_predicted_without_being_seen() -> None:
    canvas = Canvas.after([1], np.full(3, 3))
    canvas.commit(np.array([1, 3]), np.array([2, 1]), 1)
    transform = Unseen(spec=DenoiserSpec(mask_id=3))
    query = Query(sequence=0, token_ids=canvas.token_ids, wanted=np.array([0, 1, 2, 3]))
    denoiser = FunctionDenoiser(echo, 3)
    extras = transform.extra_queries(query, canvas)
    assert [(one.wanted.tolist(), one.token_ids.tolist()) for one in extras] == [
        ([1], [1, 3, 3, 1]),
        ([3], [1, 2, 3, 3]),
    ]
    [own, *others] = denoiser.forward([query, *extras])
    step = DenoisingStep(canvas, Block(1, 4), own, 0, 0)
    changed = transform.apply(step, others, None)
    assert changed.token_ids.tolist() == [1, 0, 1, 0]
    assert own.token_ids.tolist() == [1, 2, 1, 1]


def test_only_the_latest_tokens_are_predicted_anew() -> None:
    canvas = Canvas.after([], np.full(4, 3))
    canvas.commit(np.array([2]), np.array([0]), 1)
    canvas.commit(np.array([0, 1]), np.array([0, 0]), 2)
    query = Query(sequence=0, token_ids=canvas.token_ids, wanted=np.arange(4))
    extras = Unseen(2, DenoiserSpec(mask_id=3)).extra_queries(query, canvas)
    assert [one.wanted.tolist() for one in extras] == [[0], [1]]


# refusals


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("cfg:-1", "scale is 0"),
        ("cfg:inf", "finite"),
        ("credit:-1", "alpha"),
        ("credit:beta=1.5", "beta"),
        ("credit:gamma=-1", "gamma"),
        ("credit:slots=-1", "slots"),
        ("temperature:0.2", "low"),
        ("temperature:steps=0", "steps"),
        ("no-eos:-1", "no-eos"),
        ("no-eos", "eos_ids"),
        ("unseen", "remask"),
        ("unseen:0+remask", "at least one"),
    ],
)
def test_values_that_cannot_work_are_refused(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_strategy(line, table_denoiser(0).spec)


@pytest.mark.parametrize("line", ["cfg", "credit", "unseen+remask"])
def test_without_a_mask_token_these_are_refused(line: str) -> None:
    spec = DenoiserSpec(mask_id=None, noise="uniform")
    with pytest.raises(ConfigError, match=line.partition("+")[0]):
        parse_strategy(f"{line}+unroll+editable+fixed-point", spec)


def test_built_by_hand_the_mask_token_has_to_be_named() -> None:
    spec = table_denoiser(0).spec
    strategy = parse_strategy("threshold+remask", spec)
    for transform in (Guidance(), Unseen()):
        with pytest.raises(ConfigError, match="spec="):
            replace(strategy, transforms=(transform,)).check(spec)


def test_ends_are_not_banned_under_a_constraint() -> None:
    spec = table_denoiser(0, eos_ids=(0,)).spec

    class Anything:
        name = "anything"
        start = None

    constraint: Constraint = Anything()
    with pytest.raises(ConfigError, match="constraint"):
        parse_strategy("no-eos", spec).constrained(constraint).check(spec)


def test_credit_decoding_comes_with_a_threshold() -> None:
    assert parse_strategy("credit", table_denoiser(0).spec).selector.name == "threshold"
