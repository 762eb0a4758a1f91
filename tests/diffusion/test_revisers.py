"""Tokens that are taken back or replaced."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.exact_laws import random_joint, write
from diffusion.tables import FunctionDenoiser, table_denoiser
from hasten.constraints.base import Constraint
from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
BASES = ["static", "static:2", "threshold:0.5", "threshold:0.5+blocks:4"]
MASK = 2


def doubting(token_ids: np.ndarray) -> np.ndarray:
    """Expects 1 at position 0 until position 1 is written, then 0."""
    logits = np.array([[0.0, 0.8], [0.5, 0.0], [0.1, 0.0]])
    if token_ids[1] != MASK:
        logits[0] = [4.0, 0.0]
    return logits


def contrary(token_ids: np.ndarray) -> np.ndarray:
    """Sure that every written token is wrong."""
    logits = np.zeros((len(token_ids), 2))
    logits[token_ids == 0, 1] = 9.0
    logits[token_ids == 1, 0] = 9.0
    return logits


# remask


def test_a_token_that_lost_its_confidence_is_written_again() -> None:
    denoiser = FunctionDenoiser(doubting, 2, length=3)
    assert write(denoiser, "static").token_ids == [1, 0, 0]
    text = write(denoiser, "static+remask")
    assert text.token_ids == [0, 0, 0]
    assert [one.reopened.tolist() for one in text.records] == [[], [], [0], []]
    assert [one.positions.tolist() for one in text.records] == [[0], [1], [2], [0]]


def test_a_fall_counts_however_likely_the_token_still_is() -> None:
    denoiser = FunctionDenoiser(doubting, 2, length=3)
    assert write(denoiser, "static+remask:0,drop=0.6").token_ids == [0, 0, 0]
    assert write(denoiser, "static+remask:0,drop=0.7").token_ids == [1, 0, 0]


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("base", BASES)
def test_remasking_that_never_happens_changes_nothing(base: str, params: SamplingParams) -> None:
    for seed in range(8):
        denoiser = table_denoiser(seed)
        plain = write(denoiser, base, params=params)
        for never in ("remask:0,drop=1", "remask:1,budget=0"):
            text = write(denoiser, f"{base}+{never}", params=params)
            assert text.token_ids == plain.token_ids
            assert text.stats.num_forwards == plain.stats.num_forwards


@pytest.mark.parametrize("budget", [0, 1, 3])
@pytest.mark.parametrize("checks_end", [0, 1])
def test_no_position_is_opened_again_more_often_than_its_budget(budget: int, checks_end: int) -> None:
    denoiser = FunctionDenoiser(contrary, 2, length=6)
    for base in ("static", "static:3", "threshold:0.5+blocks:2"):
        text = write(denoiser, f"{base}+remask:budget={budget},checks_end={checks_end}")
        opened = np.concatenate([one.reopened for one in text.records])
        assert (np.bincount(opened, minlength=6) <= budget).all()
        assert MASK not in text.token_ids
        if checks_end:
            assert (np.bincount(opened, minlength=6) == budget).all()


def test_what_was_written_last_is_judged_where_that_is_asked_for() -> None:
    denoiser = FunctionDenoiser(doubting, 2, length=3)
    at_once = write(denoiser, "static:3+remask")
    assert at_once.token_ids == [1, 0, 0]
    assert at_once.stats.num_forwards == 1
    judged = write(denoiser, "static:3+remask:checks_end=1")
    assert judged.token_ids == [0, 0, 0]
    assert [one.positions.tolist() for one in judged.records] == [[0, 1, 2], [], [0], []]


def test_bold_texts_become_likelier_by_taking_tokens_back() -> None:
    gained = 0.0
    for seed in range(60):
        oracle = random_joint(seed, length=6, concentration=0.02)
        logs = np.log(oracle.probs + 1e-12)
        bold = write(oracle, "threshold:0.3")
        careful = write(oracle, "threshold:0.3+remask:0.5,budget=2,checks_end=1")
        gained += logs[tuple(careful.token_ids)] - logs[tuple(bold.token_ids)]
    assert gained / 60 > 1


# predictions without the written token


def sees_itself(seed: int) -> FunctionDenoiser:
    """A known law for what is masked; sure of every token that it sees."""
    oracle = random_joint(seed, length=6, concentration=0.02)

    def logits(token_ids: np.ndarray) -> np.ndarray:
        laws = np.array([oracle.law(token_ids, place) for place in range(6)])
        seen = np.flatnonzero(token_ids < 3)
        laws[seen] = np.eye(3)[token_ids[seen]]
        return np.log(laws + 1e-6)

    return FunctionDenoiser(logits, 3, length=6)


def test_a_denoiser_that_trusts_its_eyes_is_asked_without_them() -> None:
    num_changed = 0
    for seed in range(20):
        denoiser, oracle = sees_itself(seed), random_joint(seed, length=6, concentration=0.02)
        blind = write(denoiser, "threshold:0.3+remask:0.5,drop=1,checks_end=1")
        assert not any(len(one.reopened) for one in blind.records)
        text = write(denoiser, "threshold:0.3+unseen+remask:0.5,drop=1,checks_end=1")
        judged = write(oracle, "threshold:0.3+remask:0.5,drop=1,checks_end=1")
        assert text.token_ids == judged.token_ids
        assert text.stats.num_forwards == judged.stats.num_forwards
        num_changed += text.token_ids != blind.token_ids
    assert num_changed > 3


# edit


def test_a_written_token_is_replaced_where_another_is_sure() -> None:
    denoiser = FunctionDenoiser(doubting, 2, length=3)
    text = write(denoiser, "static+edit")
    assert text.token_ids == [0, 0, 0]
    assert [one.edited.tolist() for one in text.records] == [[], [], [0], []]
    assert write(denoiser, "static+edit:0.99").token_ids == [1, 0, 0]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_passes_after_the_end_of_a_block_are_bounded(steps: int) -> None:
    denoiser = FunctionDenoiser(contrary, 2, length=6)
    text = write(denoiser, f"static:3+blocks:3+edit:steps={steps}")
    assert text.stats.num_forwards == 2 * (1 + steps)
    assert all(len(one.edited) == 3 for one in text.records if not len(one.positions))
    assert text.token_ids == [steps % 2] * 6


def test_editing_ends_as_soon_as_nothing_changes() -> None:
    denoiser = FunctionDenoiser(doubting, 2, length=3)
    text = write(denoiser, "static:3+edit")
    assert [one.edited.tolist() for one in text.records] == [[], [0], []]
    assert text.token_ids == [0, 0, 0]


@pytest.mark.parametrize("base", BASES)
def test_editing_that_is_never_sure_changes_no_token(base: str) -> None:
    for seed in range(8):
        denoiser = table_denoiser(seed)
        plain = write(denoiser, base)
        text = write(denoiser, f"{base}+edit:1.01")
        assert text.token_ids == plain.token_ids
        assert write(denoiser, f"{base}+edit:1.01,steps=0").stats.num_forwards == plain.stats.num_forwards


@pytest.mark.parametrize("reviser", ["remask:1,budget=2,checks_end=1", "edit:0"])
def test_given_tokens_and_finished_blocks_stay(reviser: str) -> None:
    for seed in range(10):
        text = write(table_denoiser(seed), f"threshold:0.5+blocks:3+{reviser}", length=6, prompt=[3, 1])
        assert all(min([*one.reopened, *one.edited], default=2) >= 2 for one in text.records)
        for one in text.records:
            changed = np.concatenate([one.reopened, one.edited])
            assert ((one.block.start <= changed) & (changed < one.block.end)).all()


# refusals


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("remask:budget=-1", "budget"),
        ("edit:steps=-1", "steps"),
        ("editable+unroll+limit", "uniform noise"),
        ("static+editable+limit", "uniform noise"),
        ("static+renoise+limit", "uniform noise"),
        ("static+freedave+remask", "remask"),
        ("static+freedave+edit", "edit"),
    ],
)
def test_what_cannot_work_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_strategy(line, table_denoiser(0).spec)


@pytest.mark.parametrize("reviser", ["remask", "edit"])
def test_uniform_noise_has_revisers_of_its_own(reviser: str) -> None:
    with pytest.raises(ConfigError, match=rf"{reviser}.*(renoise|editable)"):
        parse_strategy(f"static+{reviser}+limit", DenoiserSpec(mask_id=None, noise="uniform"))


def test_edits_could_leave_the_language_of_a_constraint() -> None:
    spec = table_denoiser(0).spec

    class Anything:
        name = "anything"
        start = None

    constraint: Constraint = Anything()
    with pytest.raises(ConfigError, match=r"edit.*constraint.*remask"):
        parse_strategy("static+edit", spec).constrained(constraint).check(spec)
    parse_strategy("static+remask", spec).constrained(constraint).check(spec)
