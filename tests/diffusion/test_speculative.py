"""Speculative sampling on a canvas: the law of the reference, in fewer forward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.enumerated import (
    SAMPLED,
    WARPED,
    CanvasOracle,
    always_kept,
    law_in_order,
    law_of,
    order_of,
    require_law,
)
from diffusion.exact_laws import random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Prediction
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.rejection import weighed
from hasten.diffusion.selectors import burst
from hasten.diffusion.speculators import speculative
from hasten.errors import ConfigError
from hasten.noise import gumbel_noise
from verify.forks import Forks, distance

ORDERS = ("random", "left-to-right")


def laws(count, size=4, seed=0):
    random = np.random.default_rng(seed)
    return random.dirichlet(np.full(size, 0.4), count)


def test_a_weighed_draft_has_the_true_law(monkeypatch):
    forks = Forks()
    monkeypatch.setattr(
        "hasten.diffusion.rejection.draw", lambda rest, _: forks.choose((rest / rest.sum()).tolist())
    )
    cases = [*zip(laws(30), laws(30, seed=1), strict=True), *((law, law) for law in laws(3))]
    cases += [(np.eye(4)[0], np.eye(4)[0]), (np.eye(4)[0], np.eye(4)[2]), (np.eye(4)[1], laws(1)[0])]
    for drafted, law in cases:
        found = forks.law_of(
            lambda drafted=drafted, law=law: weighed(forks.choose(drafted), drafted, law, forks)
        )
        assert distance(found, dict(enumerate(law))) < 1e-12


def test_a_draft_is_kept_as_often_as_two_laws_overlap():
    for drafted, law in zip(laws(20), laws(20, seed=1), strict=True):
        random = np.random.default_rng(0)
        tokens = random.choice(4, 2000, p=drafted)
        kept = np.mean([weighed(token, drafted, law, random) == token for token in tokens])
        assert kept == pytest.approx(np.minimum(drafted, law).sum(), abs=0.06)


def weighed_with(numbers, count=1000):
    """Candidates of one law weighed against another, with the numbers that ``numbers`` makes of a draw."""
    was, law = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    prediction = Prediction(np.array([3]), torch.from_numpy(np.log(was))[None])
    for seed in range(count):
        draw = Drawing(SAMPLED, seed)
        token_id = int(draw(prediction).token_ids[0])
        yield weighed(token_id, was, law, numbers(draw))


class OfTheCandidates:
    """The numbers behind the noise that candidates are drawn with, once more."""

    def __init__(self, draw):
        noise = gumbel_noise(draw.seed, draw.sample, position=3, vocab_size=3)
        self._numbers = iter(np.exp(-np.exp(-noise.astype(float))))

    def random(self):
        return next(self._numbers)


@pytest.mark.parametrize("stream", [speculative.STREAM, burst.STREAM])
def test_a_draft_is_weighed_with_other_random_numbers_than_it_was_drawn_with(stream):
    law = {0: 0.2, 1: 0.5, 2: 0.3}
    require_law(list(weighed_with(lambda draw: draw.generator(3, stream))), law)
    with pytest.raises(AssertionError):
        require_law(list(weighed_with(OfTheCandidates)), law)


@pytest.mark.parametrize("params", [SAMPLED, WARPED], ids=["sampled", "warped"])
@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("order", ORDERS)
def test_texts_have_the_law_of_the_reference(monkeypatch, order, depth, params):
    for seed in range(2):
        oracle = CanvasOracle(seed, num_words=2 if params is SAMPLED else 3)
        base = f"static:order={order},seed={seed}"
        expected = law_in_order(oracle, order_of(base, oracle.spec, oracle.length), params)
        found = law_of(oracle, f"{base}+speculative:{depth}", params, monkeypatch)
        assert sum(found.values()) == pytest.approx(1)
        assert distance(found, expected) < 1e-6  # candidates are drawn from float32 laws


def test_the_law_holds_over_several_blocks(monkeypatch):
    oracle = CanvasOracle(5, length=4)
    base = "static:order=left-to-right+blocks:2"
    found = law_of(oracle, f"{base}+speculative", SAMPLED, monkeypatch)
    assert distance(found, law_in_order(oracle, range(4), SAMPLED)) < 1e-6


class NoTwins:
    """Limits under which two neighbours never both hold 1."""

    def masked(self, canvas, prediction):
        logits = prediction.logits.clone()
        for row, place in enumerate(prediction.positions.tolist()):
            if 1 in canvas.token_ids[max(0, place - 1) : place + 2]:
                logits[row, 1] = -torch.inf
        return prediction.with_logits(logits)

    def admitted(self, canvas, prediction, selection):
        return selection


@pytest.mark.parametrize("order", ORDERS)
def test_the_law_holds_where_tokens_forbid_others(monkeypatch, order):
    oracle, base = CanvasOracle(2), f"static:order={order}"
    expected = law_of(oracle, base, SAMPLED, monkeypatch, NoTwins())
    found = law_of(oracle, f"{base}+speculative", SAMPLED, monkeypatch, NoTwins())
    assert distance(found, expected) < 1e-6
    assert all((1, 1) not in {text[:2], text[1:]} for text in found)


def test_keeping_every_draft_is_another_law(monkeypatch):
    oracle = CanvasOracle(0)
    base = "static:order=left-to-right"
    always_kept(monkeypatch, "speculators.speculative")
    found = law_of(oracle, f"{base}+speculative", SAMPLED, monkeypatch)
    assert distance(found, law_in_order(oracle, range(3), SAMPLED)) > 0.02


def texts_of(oracle, strategy, count, params=SAMPLED):
    parsed = parse_strategy(strategy, oracle.spec)
    return [tuple(write(oracle, parsed, params=params, seed=seed).token_ids) for seed in range(count)]


def test_texts_drawn_with_keyed_noise_have_the_joint_law_and_lose_it_if_all_drafts_are_kept(monkeypatch):
    oracle = random_joint(0, num_words=2, length=3, concentration=0.7)
    law = {text: float(oracle.probs[text]) for text in np.ndindex(*oracle.probs.shape)}
    strategy = "static:order=random+speculative"
    require_law(texts_of(oracle, strategy, 300), law)
    always_kept(monkeypatch, "speculators.speculative")
    with pytest.raises(AssertionError):
        require_law(texts_of(oracle, strategy, 300), law)


@pytest.mark.parametrize("order", ORDERS)
def test_a_greedy_text_is_that_of_the_reference(order):
    saved = 0
    for seed in range(40):
        oracle = random_joint(seed, length=6)
        plain = write(oracle, f"static:order={order}")
        drafted = write(oracle, f"static:order={order}+speculative")
        assert drafted.token_ids == plain.token_ids
        saved += plain.stats.num_forwards - drafted.stats.num_forwards
    assert saved > 0


def test_it_needs_fewer_forward_passes_than_the_reference():
    """About half of them, as FreeDave, which needs a twentieth more where a law has 16 words."""
    passes = 0
    for seed in range(30):
        written = write(
            random_joint(seed, length=6), "static:order=random+speculative", params=SAMPLED, seed=seed
        )
        assert written.stats.num_forwards <= written.stats.num_steps == 6
        passes += written.stats.num_forwards
    assert passes / 30 < 4


def test_how_much_is_drafted_depends_on_no_token():
    oracle = random_joint(0, length=6)
    write(oracle, "static:order=random+speculative:3", params=SAMPLED)
    sizes = {(int((queries[0].token_ids == 3).sum()), len(queries)) for queries in oracle.queries}
    assert sizes <= {(6, 1), (5, 3), (4, 3), (3, 3), (2, 2), (1, 1)}


@pytest.mark.parametrize("base", ["static", "static:order=margin", "threshold", "static:2,order=random"])
def test_an_order_that_predictions_decide_is_refused(base):
    with pytest.raises(ConfigError, match="order known in advance"):
        parse_strategy(f"{base}+speculative", random_joint(0).spec)


def test_it_promises_the_law_and_not_the_text():
    spec = random_joint(0).spec
    assert parse_strategy("static:order=random+speculative", spec).guarantee == "distribution"
    assert reference_of(parse_strategy("static:order=random+speculative", spec)).selector.order == "random"


def test_no_canvas_at_all_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="speculative:0"):
        parse_strategy("static:order=random+speculative:0", random_joint(0).spec)


def test_a_seed_writes_its_text_again():
    oracle, params = random_joint(3, length=6), SamplingParams(temperature=1.3)
    strategy = "static:order=random+speculative"
    texts = [write(oracle, strategy, params=params, seed=9).token_ids for _ in range(2)]
    assert texts[0] == texts[1]
