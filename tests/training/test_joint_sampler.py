"""The joint sampler: one layer that follows a base model while tokens are revealed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import build_model
from diffusion.exact_laws import write
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Query
from hasten.diffusion.denoisers.joint_sampler import JointSampler
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.sampler_file import load_sampler, save_sampler
from hasten.diffusion.trained import denoiser_fingerprint, find_filter, find_sampler
from hasten.errors import ConfigError, IncompatibleModels, ModelError, StoreError
from hasten.training.joint_sampler import JointTraining, divergence, train_joint_sampler

LENGTH = 6
VOCAB = 12
MASK = VOCAB - 1
FULL = DenoiserSpec(mask_id=MASK)


def build_denoiser(seed=2, **changes):
    return MaskedLM(build_model("llama", torch.float32, seed, vocab_size=VOCAB, **changes), FULL)


SHORT = {"steps": 40, "batch_size": 8, "warmup_steps": 5}


def canvases(count, length=LENGTH):
    return [Canvas.after([2 + number % 9, 2 + number // 9], np.full(length, MASK)) for number in range(count)]


def hidden_of(denoiser, token_ids):
    [prediction] = denoiser.open([len(token_ids)], keeps_rows=False).forward(
        [Query(sequence=0, token_ids=token_ids, wanted=np.arange(1, len(token_ids)), wants_hidden=True)]
    )
    return prediction


@pytest.fixture(scope="module")
def denoiser():
    return build_denoiser()


@pytest.fixture(scope="module")
def trained(denoiser):
    sampler = JointSampler(denoiser.model, FULL)
    return sampler, train_joint_sampler(denoiser, sampler, canvases(30), JointTraining(**SHORT))


def test_a_prediction_carries_the_hidden_states_of_the_whole_canvas(denoiser):
    ids = np.array([5, 7, MASK, MASK, 9])
    longer = np.array([5, 7, MASK, MASK, 9, 4, MASK])
    session = denoiser.open([5, 7], keeps_rows=False)
    found = session.forward(
        [
            Query(sequence=number, token_ids=one, wanted=np.array([2]), wants_hidden=True)
            for number, one in enumerate((ids, longer))
        ]
    )
    for one, prediction in zip((ids, longer), found, strict=True):
        expected = denoiser.model.model(torch.from_numpy(one)[None]).last_hidden_state[0]
        torch.testing.assert_close(prediction.hidden, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prediction.at(prediction.positions).hidden, prediction.hidden)


def test_an_untrained_sampler_changes_nothing(denoiser):
    ids = np.array([5, 7, MASK, MASK, 9])
    prediction = hidden_of(denoiser, ids)
    other = np.array([5, 7, 8, MASK, 9])
    logits, hidden = JointSampler(denoiser.model, FULL).reveal(other, prediction.positions, prediction.hidden)
    torch.testing.assert_close(hidden, prediction.hidden)
    torch.testing.assert_close(logits, prediction.logits)


def test_a_trained_sampler_is_nearer_to_the_model_than_its_last_prediction(trained):
    metrics = trained[1]
    assert metrics["divergence"] < 0.9 * metrics["untrained_divergence"]
    assert not any(parameter.requires_grad for parameter in trained[0].parameters())


def test_training_leaves_the_model_as_it_was(trained):
    before = build_denoiser().model
    fresh = build_denoiser()
    train_joint_sampler(
        fresh, JointSampler(fresh.model, FULL), canvases(4), JointTraining(**SHORT | {"steps": 2})
    )
    for one, other in zip(before.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_sampler_looks_in_both_directions(trained, denoiser):
    ids = np.array([5, 7, MASK, MASK, 9])
    prediction = hidden_of(denoiser, ids)
    other = ids.copy()
    other[4] = 6
    first, _ = trained[0].reveal(ids, np.array([2]), prediction.hidden)
    second, _ = trained[0].reveal(other, np.array([2]), prediction.hidden)
    assert not torch.allclose(first, second)


def test_padding_beside_longer_canvases_changes_nothing(trained):
    sampler = trained[0]
    token_ids = torch.randint(3, VOCAB - 1, (1, 4), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    alone = sampler(token_ids, hidden)
    padded = sampler(
        torch.nn.functional.pad(token_ids, (0, 3)),
        torch.nn.functional.pad(hidden, (0, 0, 0, 3)),
        torch.arange(7)[None] < 4,
    )
    torch.testing.assert_close(padded[:, :4], alone, atol=1e-5, rtol=1e-4)


def test_the_row_that_predicts_a_position_is_the_shifted_one(denoiser):
    shifted = JointSampler(denoiser.model, DenoiserSpec(mask_id=MASK, logits_shift=1))
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    plain = JointSampler(denoiser.model, FULL)
    torch.testing.assert_close(
        shifted.logits(hidden, torch.tensor([0, 3])), plain.logits(hidden, torch.tensor([0, 2]))
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_written_with_a_trained_sampler(trained, denoiser, temperature):
    params = SamplingParams(temperature=temperature)
    helpers = Helpers(sampler=trained[0])
    options = {"length": LENGTH, "prompt": [5], "params": params, "helpers": helpers}
    joint = write(denoiser, "joint:3", **options)
    assert joint.stats.num_forwards == 2
    assert MASK not in joint.token_ids
    plain = write(denoiser, "static", **options)
    drafted = write(denoiser, "static+adjust:4", **options)
    assert drafted.token_ids == plain.token_ids


def test_a_saved_sampler_is_the_same_sampler(trained, denoiser, tmp_path):
    file = tmp_path / "s.safetensors"
    save_sampler(file, trained[0], denoiser_fingerprint(denoiser))
    loaded = find_sampler(denoiser, file)
    ids = np.array([5, 7, MASK, MASK, 9])
    hidden = hidden_of(denoiser, ids).hidden
    first, _ = trained[0].reveal(ids, np.array([2, 3]), hidden)
    second, _ = loaded.reveal(ids, np.array([2, 3]), hidden)
    assert torch.equal(first, second)
    assert find_sampler(denoiser, None) is None


def test_a_sampler_that_does_not_fit_is_refused(trained, denoiser, tmp_path):
    file = tmp_path / "s.safetensors"
    with pytest.raises(StoreError, match=r"no joint sampler at .*hasten train joint"):
        find_sampler(denoiser, file)
    save_sampler(file, trained[0], denoiser_fingerprint(denoiser))
    with pytest.raises(IncompatibleModels, match="train a joint sampler for it"):
        find_sampler(build_denoiser(seed=1), file)
    wider = build_denoiser(intermediate_size=48)
    with pytest.raises(StoreError, match="does not hold a joint sampler"):
        load_sampler(file, wider.model, FULL, denoiser_fingerprint(denoiser))


def test_a_denoiser_without_a_model_has_no_helpers(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ModelError, match="trained for transformers models; object runs none"):
        denoiser_fingerprint(object())
    assert find_filter(object(), str(tmp_path), None) is None


def test_a_model_of_unknown_shape_is_refused():
    model = build_model("gpt2", torch.float32, 0)
    with pytest.raises(ModelError, match=r"its config \(gpt2\) has no"):
        JointSampler(model, FULL)


def test_the_divergence_of_a_law_from_itself_is_0_and_from_another_known():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 0.0, -torch.inf]])
    assert divergence(logits, logits).tolist() == pytest.approx([0, 0], abs=1e-6)
    even = torch.tensor([[0.0, 0.0, -torch.inf]])
    law = torch.tensor([0.25, 0.75]).log()
    found = divergence(even, torch.tensor([[law[0], law[1], -torch.inf]]))
    assert found.item() == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), abs=1e-6)


def test_what_cannot_be_trained_is_refused(denoiser):
    sampler = JointSampler(denoiser.model, FULL)
    with pytest.raises(ConfigError, match="1 texts are too few"):
        train_joint_sampler(denoiser, sampler, canvases(1), JointTraining())
    with pytest.raises(ConfigError, match="too short for a second token"):
        train_joint_sampler(denoiser, sampler, canvases(4, length=1), JointTraining())
    wrong_values = (
        {"unroll": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"temperature": -1.0},
    )
    for wrong in wrong_values:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* cannot work"):
            JointTraining(**wrong)
