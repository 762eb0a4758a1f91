"""Selectors that count forward passes or remember them: schedules, KLASS and CCD, on scripted predictions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.exact_laws import ScriptedOracle, random_chain, random_joint, write
from hasten.diffusion.canvas import Block, Canvas, Prediction
from hasten.diffusion.selectors.ccd_ds import CcdDs
from hasten.diffusion.selectors.klass import Klass
from hasten.diffusion.steps import DenoisingStep
from hasten.diffusion.transforms.ccd_history import CcdHistory

WORDS = 4


def sure(*confidences, best=0):
    """Logits [length, words] whose token ``best`` has these probabilities, and the others the rest evenly."""
    laws = np.array([[(1 - c) / (WORDS - 1)] * WORDS for c in confidences])
    laws[:, best] = confidences
    return np.log(laws)


def script(*forwards) -> ScriptedOracle:
    return ScriptedOracle(np.array(forwards))


def counts(oracle, strategy, **options) -> list[int]:
    """How many positions each forward pass writes."""
    return [len(record.positions) for record in write(oracle, strategy, **options).records]


# schedules


@pytest.mark.parametrize(("length", "steps"), [(12, 4), (12, 5), (7, 3), (5, 5), (3, 9), (10, 1)])
def test_a_number_of_steps_is_shared_out_the_larger_shares_first(length: int, steps: int) -> None:
    share, larger = divmod(length, steps)
    expected = [share + (number < larger) for number in range(steps)]
    oracle = random_chain(0, length=length)
    assert counts(oracle, f"static:steps={steps}+whole") == [one for one in expected if one]
    doubled = random_chain(0, length=2 * length)
    twice = counts(doubled, f"static:steps={steps}+blocks:{length}", prompt=[1])
    assert twice == [one for one in expected * 2 if one]


@pytest.mark.parametrize(
    ("length", "steps", "eps"), [(20, 6, 1e-3), (64, 10, 1e-3), (9, 3, 0.05), (5, 20, 1e-3)]
)
def test_dream_writes_what_its_noise_level_falls_by(length: int, steps: int, eps: float) -> None:
    levels, waiting, expected = np.linspace(1, eps, steps + 1), length, []
    for number in range(steps):
        fall = 1 if number == steps - 1 else 1 - levels[number + 1] / levels[number]
        expected.append(min(waiting, max(1, int(waiting * fall))))
        waiting -= expected[-1]
    strategy = f"dream:{steps},eps={eps}+whole"
    assert counts(random_chain(0, length=length), strategy) == [one for one in expected if one]


@pytest.mark.parametrize("temperature", [0, 4.5])
@pytest.mark.parametrize(("length", "steps"), [(64, 8), (60, 12), (17, 5), (4, 8), (9, 1)])
def test_maskgit_leaves_a_cosine_of_the_canvas_open(length: int, steps: int, temperature: float) -> None:
    written = counts(random_chain(0, length=length), f"maskgit:{steps},temperature={temperature}+whole")
    still_open = length - np.cumsum(written)
    assert still_open[-1] == 0
    assert (np.diff(still_open) < 0).all()
    assert len(written) <= steps
    if length > steps:
        cosine = [math.floor(math.cos(math.pi / 2 * (t + 1) / steps) * length) for t in range(steps)]
        assert still_open.tolist() == cosine


def test_maskgit_chooses_as_its_seed_says_and_at_last_the_surest() -> None:
    oracle = script(sure(*np.linspace(0.3, 0.9, 12)))
    orders = [
        [record.positions.tolist() for record in write(oracle, f"maskgit:4,seed={seed}+whole").records]
        for seed in (0, 0, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[1] != orders[2] != orders[3]
    calm = write(oracle, "maskgit:4,temperature=0+whole").records
    assert [record.positions.min() for record in calm] == [12 - 1, 8, 4, 0]
    assert write(oracle, "maskgit:1,seed=7+whole").stats.num_forwards == 1


@pytest.mark.parametrize("strategy", ["maskgit:3", "dream:3", "static:steps=4"])
def test_a_schedule_begins_anew_in_every_block(strategy: str) -> None:
    written = counts(random_chain(1, length=18), f"{strategy}+blocks:9")
    half = len(written) // 2
    assert written[:half] == written[half:]
    assert 1 < half < 9


# KLASS


def test_klass_waits_until_a_law_has_been_still_for_its_history() -> None:
    still = sure(*[0.95] * 8)
    assert counts(script(still), "klass+whole") == [1, 1, 6]
    assert counts(script(still), "klass:history=1+whole") == [1, 7]
    assert counts(script(still), "klass:history=4+whole") == [1, 1, 1, 1, 4]
    assert counts(script(sure(*[0.85] * 8)), "klass+whole") == [1] * 8


def test_klass_counts_from_the_last_change() -> None:
    before, after = sure(*[0.95] * 8), sure(*[0.99] * 8)
    assert counts(script(before, before, after), "klass+whole") == [1, 1, 1, 1, 4]


def test_klass_begins_anew_in_every_block() -> None:
    assert counts(script(sure(*[0.95] * 8)), "klass+blocks:4") == [1, 1, 2] * 2


def test_klass_does_not_trust_laws_that_move() -> None:
    moving = [sure(*[0.92 + 0.07 * (number % 2)] * 6) for number in range(6)]
    assert counts(script(*moving), "klass+whole") == [1] * 6
    still, moved = sure(*[0.95] * 6), sure(0.95, 0.95, 0.99, 0.95, 0.95, 0.95)
    moved[2] += [0, 0, 4, 0]
    written = write(script(still, still, moved, moved), "klass+whole").records
    assert [record.positions.tolist() for record in written][2] == [3, 4, 5]


def test_klass_measures_the_divergence_of_the_new_law_from_the_old() -> None:
    old, new = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.6, 0.3, 0.05, 0.05])
    change = float((new * np.log(new / old)).sum())
    oracle = script(np.log([old] * 4), np.log([new] * 4))
    assert counts(oracle, f"klass:tau=0.5,history=1,kl={change + 1e-9}+whole") == [1, 3]
    oracle.queries.clear()
    assert counts(oracle, f"klass:tau=0.5,history=1,kl={change - 1e-9}+whole") == [1, 1, 2]


def test_klass_takes_a_token_that_became_possible_for_a_change() -> None:
    with np.errstate(divide="ignore"):
        certain = np.log(np.array([[1.0, 0, 0, 0]] * 4))
    possible = sure(*[1 - 1e-9] * 4)
    assert counts(script(certain), "klass:history=1+whole") == [1, 3]
    assert counts(script(certain, possible), "klass:history=1+whole") == [1, 1, 2]


# CCD


def test_ccd_of_one_prediction_is_the_prediction() -> None:
    for seed in range(30):
        oracle = random_joint(seed, length=5)
        alone, base = write(oracle, "ccd:1"), write(oracle, "static:order=entropy")
        assert alone.token_ids == base.token_ids
        assert [one.positions.tolist() for one in alone.records] == [
            one.positions.tolist() for one in base.records
        ]


def seen(transform: CcdHistory, forwards, is_open, state, first=0) -> list[np.ndarray]:
    """The laws after the transform of some forward passes over one canvas, [length, words] each."""
    canvas = Canvas.after((), np.full(len(is_open), WORDS))
    canvas.commit(np.flatnonzero(~np.array(is_open)), np.zeros(is_open.count(False), dtype=np.int64))
    block, places, laws = Block(0, len(is_open)), np.arange(len(is_open)), []
    for number, logits in enumerate(forwards):
        prediction = Prediction(places, torch.from_numpy(logits))
        step = DenoisingStep(canvas, block, prediction, 0, first + number)
        laws.append(transform.apply(step, [], state).probs.numpy())
    return laws


def test_ccd_is_the_mean_law_of_the_last_forward_passes_of_a_block() -> None:
    forwards = [
        sure(0.5, 0.8, best=0),
        sure(0.9, 0.4, best=1),
        sure(0.6, 0.7, best=2),
        sure(0.3, 0.9, best=3),
    ]
    plain = [np.exp(one) for one in forwards]
    transform = CcdHistory(3)
    state = transform.start(Canvas.after((), np.full(2, WORDS)))
    laws = seen(transform, forwards, [True, True], state)
    np.testing.assert_allclose(laws[0], plain[0])
    np.testing.assert_allclose(laws[1], (plain[0] + plain[1]) / 2)
    np.testing.assert_allclose(laws[2], (plain[0] + plain[1] + plain[2]) / 3)
    np.testing.assert_allclose(laws[3], (plain[1] + plain[2] + plain[3]) / 3)
    np.testing.assert_allclose(seen(transform, forwards[:1], [True, True], state)[0], plain[0])  # a new block


def test_ccd_leaves_the_predictions_of_written_positions_alone() -> None:
    forwards = [sure(0.5, 0.8, best=0), sure(0.9, 0.4, best=1)]
    plain = [np.exp(one) for one in forwards]
    transform = CcdHistory(2)
    state = transform.start(Canvas.after((), np.full(2, WORDS)))
    seen(transform, forwards[:1], [True, True], state)
    laws = seen(transform, forwards[1:], [True, False], state, first=1)[0]
    np.testing.assert_allclose(laws[0], (plain[0] + plain[1])[0] / 2)
    np.testing.assert_allclose(laws[1], plain[1][1])


def test_ccd_prefers_a_position_that_does_not_move() -> None:
    """By itself the last prediction would write position 1."""
    first, second = sure(0.99, 0.7, 0.9, best=0), sure(0.5, 0.95, 0.9, best=1)
    second[2] = first[2]
    assert write(script(first, second), "static:order=entropy+whole").records[1].positions.tolist() == [1]
    assert write(script(first, second), "ccd+whole").records[1].positions.tolist() == [2]


def test_ccd_ds_writes_more_and_more_of_what_does_not_change() -> None:
    oracle = script(sure(*np.linspace(0.9, 0.5, 60)))
    written = counts(oracle, "ccd-ds+whole")
    assert written[:10] == [1] * 5 + [1, 2, 3, 4, 5]
    late = 60 - np.cumsum(written) <= 6
    first = int(np.flatnonzero(late)[0]) + 1
    assert set(written[9:first]) == {5}
    assert set(written[first:]) == {1}
    assert counts(oracle, "ccd-ds:2,expand=1,warm_up=0+whole")[:6] == [2, 2, 3, 4, 4, 4]


def test_ccd_ds_writes_its_base_number_where_nothing_agrees() -> None:
    length = 24
    turns = [sure(*np.linspace(0.9, 0.5, length), best=number % 2) for number in range(length)]
    assert counts(script(*turns), "ccd-ds+whole") == [1] * length
    assert counts(script(*turns), "ccd-ds:3+whole") == [3] * (length // 3)
    places = [sure(*np.roll(np.linspace(0.9, 0.5, length), 12 * number)) for number in range(length)]
    assert counts(script(*places), "ccd-ds:expand=1+whole") == [1] * length
    still = script(sure(*np.linspace(0.9, 0.5, length)))
    assert counts(still, "ccd-ds:expand=0+whole") == [1] * length


def test_ccd_ds_begins_anew_in_every_block() -> None:
    oracle = script(sure(*np.linspace(0.9, 0.5, 40)))
    for warm_up in (0, 2):
        halves = counts(oracle, f"ccd-ds:warm_up={warm_up}+blocks:20")
        assert halves[: len(halves) // 2] == halves[len(halves) // 2 :]
        assert max(halves) > 2


@pytest.mark.parametrize("selector", [Klass(history=1), CcdDs(warm_up=0)], ids=["klass", "ccd-ds"])
def test_a_block_that_is_written_again_is_not_remembered(selector: Klass | CcdDs) -> None:
    canvas = Canvas.after((), np.full(6, WORDS))
    state = selector.start(canvas)
    prediction = Prediction(np.arange(6), torch.from_numpy(sure(*np.linspace(0.98, 0.93, 6))))
    first = DenoisingStep(canvas, Block(0, 6), prediction, 0, 0)
    for _ in range(3):
        assert selector.select(first, state).positions.tolist() == [0]
    written = replace(first, canvas=canvas.fork(), forward_in_block=1)
    written.canvas.commit(np.array([0]), np.array([0]))
    assert 1 in selector.select(written, state).positions
