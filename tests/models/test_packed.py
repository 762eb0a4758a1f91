"""Packed linear layers compute what the stock ones compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compiled_models import needs_mkldnn
from conftest import VOCAB, build_model
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards import choose as forwards, packed
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.packed import OneDnnLinear, PackedLinear, can_pack, pack_linears, packed_ratio
from hasten.models.forwards.stand_in import restore
from hasten.text.engine import LanguageModel
from seq2seq_models import build_seq2seq


@needs_mkldnn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@torch.inference_mode()
def test_a_packed_layer_computes_the_same(bias, dtype, tolerance):
    linear = nn.Linear(48, 80, bias=bias).to(dtype)
    if not can_pack(linear):
        pytest.skip(f"this CPU does not compute in {dtype}")
    layer = OneDnnLinear(linear)
    assert isinstance(layer, PackedLinear)
    assert torch.equal(layer.weight, linear.weight)
    for rows in (1, 3, 40):
        states = torch.randn(2, rows, 48).to(dtype)
        torch.testing.assert_close(layer(states), linear(states), rtol=0.02, atol=tolerance)


@needs_mkldnn
def test_a_packed_model_writes_the_same_text():
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    stock = LanguageModel(CausalLM(build_model()), drafter="off").generate([5, 6, 7], params)
    model = build_model()
    pack_linears(model)
    assert not any(type(module) is nn.Linear for module in model.modules())
    target = CausalLM(model)
    assert target.probe.mode == "tree"
    assert target.num_bytes() == CausalLM(build_model()).num_bytes()
    assert LanguageModel(target, drafter="off").generate([5, 6, 7], params).token_ids == stock.token_ids


@needs_mkldnn
def test_the_ratio_compares_a_packed_layer_with_a_plain_one(monkeypatch):
    spent = {OneDnnLinear: 0.5, nn.Linear: 2.0}
    monkeypatch.setattr(packed, "_seconds", lambda layer, states: spent[type(layer)])
    assert packed_ratio(nn.Linear(16, 16)) == 0.25
    monkeypatch.undo()
    assert packed_ratio(nn.Linear(16, 16)) > 0


def test_a_cpu_without_bfloat16_packs_float32_only(monkeypatch):
    """oneDNN says by an error what it cannot do, and only when it is asked to."""

    def refuse(weight, rows):
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    packed._packs.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    assert not can_pack(nn.Linear(4, 4).to(torch.bfloat16))
    packed._packs.cache_clear()
    with pytest.raises(ConfigError, match="in bfloat16 that the CPU computes with"):
        pack_linears(build_model(dtype=torch.bfloat16))
    packed._packs.cache_clear()


def test_what_cannot_be_packed_is_refused():
    model = build_model(dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"forward='packed'.*float32"):
        pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert not can_pack(nn.Linear(4, 4).to(torch.float16))
    with pytest.raises(ConfigError, match="forward='packed'"):
        pack_linears(nn.Embedding(4, 4))


@needs_mkldnn
@pytest.mark.parametrize(
    ("name", "dtype"), [("gpt2", torch.float32), ("gpt2", torch.bfloat16), ("llama", torch.float32)]
)
def test_this_must_fail_packed_layers_that_compute_something_else(name, dtype, monkeypatch):
    """One layer of many, by a fifth; where packed layers would be the fastest."""
    if not packed._packs(dtype):
        pytest.skip(f"this CPU does not compute in {dtype}")
    right = OneDnnLinear.forward

    def wrong(self, states):
        return right(self, states) * (1.2 if self.out_features == VOCAB else 1.0)

    monkeypatch.setattr(OneDnnLinear, "forward", wrong)
    monkeypatch.setattr(forwards, "packed_ratio", lambda linear: 0.1)
    monkeypatch.setattr(forwards, "_CLEAR_GAIN", np.inf)  # the compiled pass is measured beside others
    model, text = build_model(name, dtype=dtype), torch.tensor([[5, 6, 7, 40]])
    modules = list(model.modules())
    with torch.inference_mode():
        expected = model(text).logits
    with pytest.raises(ConfigError, match=r"forward='packed' cannot run .* logits differ by .*'auto'"):
        prepare(model, "packed")
    prepared = prepare(model, "auto")
    assert prepared.name != "packed"
    assert "not packed: logits differ by" in prepared.reason
    restore(model)
    assert [id(one) for one in model.modules()] == [id(one) for one in modules]
    with torch.inference_mode():
        assert torch.equal(model(text).logits, expected)


@needs_mkldnn
@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_encoder_and_decoder_are_compared_too(name, monkeypatch):
    monkeypatch.setattr(forwards, "packed_ratio", lambda linear: 0.1)
    assert prepare(build_seq2seq(name), "auto").name == "packed"
    pack = forwards.pack_linears

    def pack_wrongly(model):
        pack(model)
        layer = next(one for one in model.get_encoder().modules() if isinstance(one, OneDnnLinear))
        right = layer.forward
        layer.forward = lambda states: 2 * right(states)

    monkeypatch.setattr(forwards, "pack_linears", pack_wrongly)
    assert "not packed: logits differ by" in prepare(build_seq2seq(name), "auto").reason
