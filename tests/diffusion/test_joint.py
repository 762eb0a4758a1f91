"""ADJUST: several tokens a forward, each given those before it; and as the guesser of FreeDave."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.exact_laws import list_task, random_chain, random_joint, write
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Query
from hasten.diffusion.defaults import REFERENCE, reference_of
from hasten.diffusion.drawing import noise_source
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.selectors.joint import Joint
from hasten.errors import ConfigError

SAMPLED = SamplingParams(temperature=1.0)
BOTH = pytest.mark.parametrize("params", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])


class Sampler:
    """Predicts as the oracle does, to a share; the rest is what it says of an empty canvas."""

    def __init__(self, oracle, share=1.0):
        self.oracle, self.share = oracle, share
        self.calls = []

    def reveal(self, token_ids, positions, hidden):
        self.calls.append(token_ids.copy())
        now = self._probs(token_ids, positions)
        masked = np.full_like(token_ids, self.oracle.num_words)
        then = self._probs(masked, positions)
        return (self.share * now + (1 - self.share) * then).log(), hidden

    def _probs(self, token_ids, positions):
        query = Query(sequence=0, token_ids=token_ids, wanted=positions)
        return self.oracle._predict(query).logits.softmax(-1)


class Told:
    """A draw that gives every position a token that is told, and notes how likely it was."""

    def __init__(self, token_ids):
        self.token_ids, self.chances = np.array(token_ids), {}

    def __call__(self, prediction):
        drawn = prediction.with_tokens(self.token_ids[prediction.positions])
        self.chances.update(zip(drawn.positions.tolist(), drawn.confidence.tolist(), strict=True))
        return drawn


def law(oracle, strategy):
    """[words] * length: how likely each text is, exactly. Its order must not depend on what is drawn."""
    probs = np.zeros_like(oracle.probs)
    for text in itertools.product(range(oracle.num_words), repeat=oracle.length):
        noise = noise_source(oracle.spec, oracle.vocab_size, 0, 0)
        told = Told(text)
        writing = Writing(Canvas.after([], noise(np.arange(oracle.length), 0)), strategy, told, noise)
        list(denoise(oracle, [writing]))
        probs[text] = np.prod(list(told.chances.values()))
    return probs


def distance(first, second):
    """Total variation."""
    return np.abs(first - second).sum() / 2


def helped(oracle, share=1.0):
    return Helpers(sampler=Sampler(oracle, share))


@BOTH
@pytest.mark.parametrize("tokens", [2, 3, 6])
def test_a_perfect_sampler_writes_the_text_of_one_token_a_forward(tokens, params):
    for seed in range(25):
        oracle = random_joint(seed, length=6)
        plain = write(oracle, "static:order=entropy", params=params, seed=seed)
        joint = write(oracle, f"joint:{tokens}", params=params, seed=seed, helpers=helped(oracle))
        assert joint.token_ids == plain.token_ids
        assert joint.stats.num_forwards == 6 // tokens


@BOTH
def test_one_token_a_forward_is_the_reference_and_asks_no_sampler(params):
    for seed in range(40):
        oracle = random_joint(seed)
        helpers = helped(oracle)
        alone = write(oracle, "joint:1", params=params, seed=seed, helpers=helpers)
        assert alone.token_ids == write(oracle, "static:order=entropy", params=params, seed=seed).token_ids
        assert alone.stats.num_forwards == oracle.length
        assert not helpers.sampler.calls
    strategy = parse_strategy("joint:1", oracle.spec, helpers)
    assert strategy.guarantee == "exact"
    assert reference_of(strategy).selector == parse_strategy("static:order=entropy", oracle.spec).selector


def test_the_law_of_the_texts_goes_from_marginal_to_joint_with_the_sampler():
    for seed in range(6):
        oracle = random_joint(seed, num_words=2, length=4, concentration=0.3)
        found = [
            distance(
                law(oracle, replace(REFERENCE, selector=Joint(4, sampler=Sampler(oracle, share)))),
                oracle.probs,
            )
            for share in (0.0, 0.5, 0.9, 1.0)
        ]
        marginal = distance(law(oracle, parse_strategy("static:4", oracle.spec)), oracle.probs)
        assert found[0] == pytest.approx(marginal, abs=1e-9)
        assert found[3] == pytest.approx(0, abs=1e-9)
        assert marginal > found[1] > found[2] > 0


def test_fewer_tokens_a_forward_bring_the_law_nearer():
    oracle = random_joint(2, num_words=2, length=4, concentration=0.3)
    found = [
        distance(
            law(oracle, replace(REFERENCE, selector=Joint(tokens, sampler=Sampler(oracle, 0.0)))),
            oracle.probs,
        )
        for tokens in (4, 2, 1)
    ]
    assert found[0] > found[1] > found[2] == pytest.approx(0, abs=1e-9)


def test_a_shuffle_has_every_letter_once_if_tokens_know_of_each_other():
    oracle = list_task("shuffle", 5)
    right = {"joint:5": 0, "static:5": 0}
    for seed in range(20):
        for name in right:
            text = write(oracle, name, params=SAMPLED, seed=seed, helpers=helped(oracle)).token_ids
            right[name] += oracle.is_right(text)
    assert right["joint:5"] == 20
    assert right["static:5"] < 10


def test_the_sampler_is_shown_the_canvas_as_it_becomes():
    oracle = random_joint(4, length=4)
    helpers = helped(oracle)
    [record] = write(oracle, "joint:4", helpers=helpers, prompt=[1]).records
    assert record.positions.tolist() == [1, 2, 3, 4]
    num_open = [int((ids == oracle.num_words).sum()) for ids in helpers.sampler.calls]
    assert num_open == [3, 2, 1]
    assert all(ids[0] == 1 for ids in helpers.sampler.calls)


def test_hidden_states_go_from_call_to_call():
    class Counting(Sampler):
        def reveal(self, token_ids, positions, hidden):
            number = 0 if hidden is None else int(hidden[0])
            seen.append(number)
            logits, _ = super().reveal(token_ids, positions, hidden)
            return logits, torch.full((len(token_ids),), number + 1)

    seen = []
    oracle = random_joint(4, length=6)
    helpers = Helpers(sampler=Counting(oracle))
    write(oracle, "joint:3", helpers=helpers)
    assert seen == [0, 1, 0, 1]
    seen.clear()
    assert write(oracle, "static:order=entropy+adjust:6", helpers=helpers).stats.num_forwards == 2
    assert seen == [0, 1, 2, 3, 4]


def test_what_the_forward_pass_ruled_out_is_not_revealed():
    class Wild(Sampler):
        def reveal(self, token_ids, positions, hidden):
            logits = torch.zeros(len(positions), self.oracle.vocab_size, dtype=torch.float64)
            logits[:, self.oracle.num_words] = 9.0  # the mask token
            return logits, hidden

    oracle = random_joint(1)
    helpers = Helpers(sampler=Wild(oracle))
    assert max(write(oracle, "joint:5", helpers=helpers).token_ids) < oracle.num_words


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "base", ["static", "static:order=entropy", "static:2", "threshold:0.6", "static+blocks:3"]
)
def test_adjust_guesses_and_never_changes_the_text(base, share, params):
    for seed in range(8):
        oracle = random_joint(seed, length=6)
        plain = write(oracle, base, params=params, seed=seed)
        drafted = write(oracle, f"{base}+adjust:6", params=params, seed=seed, helpers=helped(oracle, share))
        assert drafted.token_ids == plain.token_ids
        assert drafted.stats.num_steps == plain.stats.num_forwards
        assert drafted.stats.num_forwards <= plain.stats.num_forwards


def test_a_perfect_guesser_needs_two_forwards():
    freedave = adjust = 0
    for seed in range(15):
        oracle = random_chain(seed, length=12)
        freedave += write(oracle, "static+whole+freedave:12").stats.num_forwards
        drafted = write(oracle, "static+whole+adjust:12", helpers=helped(oracle))
        assert drafted.stats.num_forwards == 2
        adjust += drafted.stats.num_forwards
    assert adjust < freedave


def test_adjust_is_as_exact_as_what_it_helps():
    oracle = random_joint(1)
    assert parse_strategy("static+adjust", oracle.spec, helped(oracle)).guarantee == "exact"
    assert parse_strategy("threshold+adjust", oracle.spec, helped(oracle)).guarantee == "approximate"


@pytest.mark.parametrize("part", ["joint", "adjust"])
def test_where_a_sampler_cannot_work_the_reason_is_told(part):
    helpers = helped(random_joint(1))
    with pytest.raises(ConfigError, match=r"--joint-sampler FILE.*hasten train joint"):
        parse_strategy(part, DenoiserSpec(mask_id=3))
    with pytest.raises(ConfigError, match=r"hidden states of the whole canvas.*leave /prefix out"):
        parse_strategy(f"{part}/prefix", DenoiserSpec(mask_id=3), helpers)
    causal = DenoiserSpec(mask_id=3, attention="block-causal", block_size=4)
    with pytest.raises(ConfigError, match="full attention"):
        parse_strategy(part, causal, helpers)


def test_less_than_one_token_is_refused():
    with pytest.raises(ConfigError, match="joint:0 cannot work"):
        parse_strategy("joint:0", DenoiserSpec(mask_id=3), helped(random_joint(1)))
