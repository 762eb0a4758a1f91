"""The confidence filter learns which candidates of a block are final."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from diffusion.exact_laws import random_chain, write
from diffusion.models import build_denoiser
from hasten.diffusion.base import Helpers
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.drawing import noise_source
from hasten.errors import ConfigError
from hasten.training.confidence_filter import (
    FilterTraining,
    collect_passes,
    train_confidence_filter,
)

LENGTH = 12
WORDS = 4


class Chains:
    """Another Markov chain for each first token of a canvas."""

    def __init__(self, num_chains=60):
        self.chains = [random_chain(seed, WORDS, LENGTH) for seed in range(num_chains)]
        self.length, self.vocab_size, self.max_length = LENGTH, WORDS + 1, None
        self.spec = DenoiserSpec(mask_id=WORDS)

    def open(self, lengths, *, keeps_rows):
        return self

    def forward(self, queries):
        return [self.chains[query.token_ids[0]]._predict(query) for query in queries]

    def canvases(self):
        noise = noise_source(self.spec, self.vocab_size, 0, 0)
        return [Canvas.after([number], noise(np.arange(LENGTH), 0)) for number in range(len(self.chains))]


def nothing(done, total, metrics):
    pass


@pytest.fixture(scope="module")
def chains():
    return Chains()


@pytest.fixture(scope="module")
def trained(chains):
    options = FilterTraining(block_size=LENGTH, epochs=300)
    return train_confidence_filter(chains, chains.canvases(), options)


def test_a_trained_filter_rarely_accepts_a_wrong_candidate(trained):
    made, metrics = trained
    assert made.block_size == LENGTH
    assert metrics["false_positives_0.9"] < 0.1
    assert metrics["false_positives_0.96"] <= metrics["false_positives_0.9"]
    assert metrics["accepted_0.9"] > 0.3
    assert metrics["accepted_0.96"] <= metrics["accepted_0.9"]
    assert 1 <= metrics["oracle_forwards"] < metrics["forwards"] == LENGTH
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_a_trained_filter_saves_forwards_and_keeps_most_texts(chains, trained):
    others = Chains(90)
    same = forwards = 0
    for number in range(60, 90):
        plain = write(others, "static", prompt=[number])
        fast = write(others, "learn2pd:0.9", prompt=[number], helpers=Helpers(filter=trained[0]))
        same += fast.token_ids == plain.token_ids
        forwards += fast.stats.num_forwards
    assert forwards < 30 * LENGTH * 0.9
    assert same >= 20


def test_examples_are_what_the_oracle_saw(chains):
    canvases = chains.canvases()[:10]
    passes, metrics = collect_passes(chains, canvases, 6, nothing)
    assert len(passes) == 10
    assert metrics["oracle_forwards"] == np.mean([len(text) for text in passes])
    for number, text in enumerate(passes):
        answer = np.array(write(chains, "static+blocks:6", prompt=[number]).token_ids)
        confidences, is_right, is_open = text[0]
        assert is_open.all()
        empty = np.array([number, *[WORDS] * LENGTH])
        laws = chains.chains[number]._logits(empty[1:]).softmax(-1).numpy()[:6]
        np.testing.assert_allclose(confidences, laws.max(-1))
        assert (is_right == (laws.argmax(-1) == answer[:6])).all()
        # Whatever was right is written, so it is open no more in the next pass of the block.
        for before, after in itertools.pairwise(text):
            if not after[2].all():
                assert not (before[1] & before[2] & after[2]).any()


def test_canvases_stay_as_they_were(chains):
    canvases = chains.canvases()[:10]
    collect_passes(chains, canvases, 6, nothing)
    assert all(canvas.num_open == LENGTH for canvas in canvases)


def test_equal_seeds_give_equal_filters(chains, trained):
    state = torch.get_rng_state()
    again, metrics = train_confidence_filter(
        chains, chains.canvases(), FilterTraining(block_size=LENGTH, epochs=300)
    )
    assert (torch.get_rng_state() == state).all()
    assert metrics == trained[1]
    assert all(
        torch.equal(first, second)
        for first, second in zip(again.parameters(), trained[0].parameters(), strict=True)
    )


def test_progress_counts_texts_and_then_epochs(chains):
    seen = []
    options = FilterTraining(block_size=LENGTH, epochs=30)
    train_confidence_filter(
        chains,
        chains.canvases()[:10],
        options,
        lambda done, total, metrics: seen.append((done, total, metrics)),
    )
    assert [row[:2] for row in seen] == [(10, 20), (20, 20), (25, 30), (30, 30)]
    assert set(seen[-1][2]) == {"loss", "held_out_loss"}


def test_a_transformers_model_is_learnt_from():
    denoiser = build_denoiser()
    canvases = [Canvas.after([number], np.full(8, denoiser.spec.mask_id)) for number in range(3, 15)]
    made, metrics = train_confidence_filter(denoiser, canvases, FilterTraining(block_size=4, epochs=20))
    assert made.block_size == 4
    assert metrics["forwards"] == 8


def test_what_cannot_be_trained_is_refused(chains):
    with pytest.raises(ConfigError, match="9 texts are too few"):
        train_confidence_filter(chains, chains.canvases()[:9], FilterTraining(block_size=LENGTH))
    with pytest.raises(ConfigError, match="blocks:5 does not divide"):
        train_confidence_filter(chains, chains.canvases(), FilterTraining(block_size=5))
    for wrong in ({"epochs": 0}, {"block_size": 0}, {"hidden_size": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* cannot work"):
            FilterTraining(**wrong)
