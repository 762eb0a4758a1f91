"""The probe finds what a model can verify, and trusts no name."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from conftest import ARCHITECTURES, build_model
from hasten.errors import ConfigError, ModelError
from hasten.models.attention import AttentionKinds
from hasten.models.causal_lm import CausalLM
from hasten.models.probe import SESSIONS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gets_its_best_mode(targets, name):
    found = targets(name).probe
    assert found.mode == ARCHITECTURES[name][2]
    assert found.noise < 1e-3
    assert np.isfinite(found.noise)
    better = list(SESSIONS)[: list(SESSIONS).index(found.mode)]
    assert list(found.rejected) == better
    assert all(found.rejected.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_mode_does_not_depend_on_the_dtype(targets, dtype):
    for name in ("llama", "gemma3", "gpt2", "mpt-alibi", "lfm2-hybrid", "mamba-recurrent"):
        assert CausalLM(build_model(name, dtype)).probe.mode == ARCHITECTURES[name][2]


def test_a_model_that_ignores_the_mask_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def causal_only(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return stock(input_ids, None, position_ids, past_key_values, **kwargs)

    model.forward = causal_only
    found = CausalLM(model).probe
    assert found.mode == "chain"
    assert "logits differ" in found.rejected["tree"]


def test_a_model_that_ignores_positions_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def own_positions(input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
        return stock(input_ids, attention_mask, None, past_key_values, **kwargs)

    model.forward = own_positions
    assert CausalLM(model).probe.mode == "chain"


def test_a_window_that_no_mask_expresses_is_found_however_long_it_is():
    """GPT-Neo counts its local window in cache slots, which holes would shift."""
    assert CausalLM(build_model("gpt-neo-local", window_size=64)).probe.mode == "chain"


def test_a_window_that_is_forgotten_in_the_mask_would_be_found(monkeypatch):
    monkeypatch.setattr(AttentionKinds, "of", classmethod(lambda cls, config: cls({"full_attention": None})))
    found = CausalLM(build_model("mistral-sliding")).probe
    assert "tree" in found.rejected


def test_a_mode_can_be_given_instead_of_probing():
    target = CausalLM(build_model(), mode="chain")
    assert target.probe.mode == "chain"
    with pytest.raises(ConfigError, match=r"mode='trees'.*chain"):
        CausalLM(build_model(), mode="trees")


def test_what_is_not_a_causal_model_is_refused():
    with pytest.raises(ModelError, match="not a causal language model"):
        CausalLM(build_model().model)


def test_a_model_whose_trees_give_nan_is_not_given_trees():
    model = build_model()
    stock = model.forward

    def nan_for_forks(input_ids=None, attention_mask=None, **kwargs):
        output = stock(input_ids, attention_mask, **kwargs)
        if attention_mask is not None and output.logits.shape[1] == 6:
            output.logits[0, 4] = torch.nan
        return output

    nan_for_forks.__signature__ = inspect.signature(stock)
    model.forward = nan_for_forks
    found = CausalLM(model).probe
    assert found.mode == "chain"
    assert "nan" in found.rejected["tree"]
