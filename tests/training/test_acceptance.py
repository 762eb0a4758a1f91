"""The acceptance head learns where the draft is right, from the draft's hidden states alone."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from conftest import VOCAB, build_model
from hasten.errors import ConfigError, IncompatibleModels
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.models.forwards.hidden_tap import HiddenTap
from hasten.training.acceptance import AcceptanceTraining, acceptance_loss, train_acceptance_head

TEXT = np.random.default_rng(0).integers(3, VOCAB, 4000)
SMALL = {"num_texts": 48, "prompt_length": 8, "new_tokens": 16, "batch_size": 32, "num_blocks": 1}


@pytest.fixture(scope="module")
def pair():
    """A target that looks at the last token alone, and a draft that is wrong about half of the tokens."""
    model = build_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.mul_(0.5)
        draft = copy.deepcopy(model)
        draft.lm_head.weight[: VOCAB // 2].neg_()
    target = CausalLM(model)
    return load_draft(draft, target=target, target_tokenizer=None), target


def test_training_improves_on_what_can_be_said_without_looking(pair):
    seen = []
    options = AcceptanceTraining(**(SMALL | {"num_texts": 192}), epochs=10)
    head, metrics = train_acceptance_head(*pair, TEXT, options, lambda *row: seen.append(row))
    assert metrics["held_out_loss"] < 0.93 * metrics["untrained_loss"]
    assert 0.05 < metrics["acceptance"] < 0.95
    assert head.hidden_size == 32
    assert seen[-1][0] == seen[-1][1]
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_a_draft_that_is_the_target_is_always_right(pair):
    _, target = pair
    same = load_draft(target.forward.model, target=target, target_tokenizer=None)
    head, metrics = train_acceptance_head(same, target, TEXT, AcceptanceTraining(**SMALL, learning_rate=0.01))
    assert metrics["acceptance"] == pytest.approx(1, abs=1e-4)
    assert head.chance(torch.zeros(32)) > 0.7


def test_the_same_seed_trains_the_same_head_and_changes_no_model(pair):
    before = [parameter.clone() for parameter in pair[0].model.forward.model.parameters()]
    state = torch.get_rng_state()
    heads = [train_acceptance_head(*pair, TEXT, AcceptanceTraining(**SMALL))[0] for _ in range(2)]
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert one.equal(other)
    assert torch.get_rng_state().equal(state)
    for one, other in zip(before, pair[0].model.forward.model.parameters(), strict=True):
        assert one.equal(other)
        assert other.grad is None
    assert not pair[0].model.forward.model.lm_head._forward_pre_hooks


def test_rejections_weigh_six_times_as_much():
    labels = torch.tensor([1.0, 0.0, 0.25])
    log_odds = torch.tensor([0.3, -0.7, 1.2])
    chance = torch.sigmoid(log_odds)
    expected = -(labels * chance.log() + 6 * (1 - labels) * (1 - chance).log()).sum() / (1.25 + 6 * 1.75)
    assert acceptance_loss(log_odds, labels) == pytest.approx(float(expected))


def test_the_tap_hears_what_the_head_reads(pair):
    model = pair[1].forward.model
    tap = HiddenTap(model)
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, 7]])).logits
        assert tap.newest.shape == (1, 3, 32)
        assert torch.allclose(model.lm_head(tap.newest), logits)
    tap.close()
    heard = tap.newest
    with torch.inference_mode():
        model(torch.tensor([[8]]))
    assert tap.newest is heard


def test_what_cannot_be_trained_is_refused(pair):
    draft, target = pair
    with pytest.raises(ConfigError, match="4 tokens of text are too few for prompt_length=8"):
        train_acceptance_head(draft, target, TEXT[:4], AcceptanceTraining(**SMALL))
    with pytest.raises(ConfigError, match="= 308 is above a model's 256 positions"):
        train_acceptance_head(draft, target, TEXT, AcceptanceTraining(prompt_length=8, new_tokens=300))
    with pytest.raises(ConfigError, match="epochs=0 cannot work"):
        AcceptanceTraining(epochs=0)
    with pytest.raises(ConfigError, match="learning_rate=0 cannot work"):
        AcceptanceTraining(learning_rate=0)
    other = copy.copy(draft)
    other.vocabulary = copy.copy(draft.vocabulary)
    other.vocabulary.is_same = False
    with pytest.raises(IncompatibleModels, match="another tokenizer"):
        train_acceptance_head(other, target, TEXT, AcceptanceTraining(**SMALL))


def test_the_tap_hears_its_own_thread_only(pair):
    model = pair[1].forward.model
    tap = HiddenTap(model)
    token_ids = torch.tensor([[5, 6, 7]])
    other = threading.Thread(target=lambda: model(token_ids))
    other.start()
    other.join()
    assert tap.newest is None
    model(token_ids[:, :2])
    assert tap.newest is not None
    assert tap.newest.shape[1] == 2
    tap.close()
