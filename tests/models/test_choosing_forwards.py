"""Which way a model's passes are run: as asked, by what was measured, or not, with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compiled_models import (
    COMPILED_ARCHITECTURES,
    DTYPES,
    REFUSED,
    assert_close,
    decoder,
    needs_mkldnn,
    stock_logits,
    text_of,
)
from conftest import ARCHITECTURES, build_model
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards import choose as forwards
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.compiled.blueprint import read_blueprint
from hasten.models.forwards.compiled.tiles import TiledLinear
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.packed import OneDnnLinear, PackedLinear
from hasten.models.forwards.reference import Reference
from hasten.models.forwards.stand_in import StandIn
from hasten.text.engine import LanguageModel

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture
def measured(monkeypatch):
    """measured(stock, packed, compiled): pretend that passes take this long."""

    def pretend(stock, packed, compiled):
        def milliseconds(model, forward):
            is_packed = any(isinstance(module, OneDnnLinear) for module in model.modules())
            return compiled if forward is not None else packed if is_packed else stock

        compare = Reference.compare
        monkeypatch.setattr(Reference, "compare", lambda *given: (compare(*given)[0], stock / compiled))
        monkeypatch.setattr(forwards, "packed_ratio", lambda linear: packed / stock)
        monkeypatch.setattr(forwards, "_milliseconds", milliseconds)

    return pretend


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(COMPILED_ARCHITECTURES)))
def test_other_architectures_are_refused_and_run_as_before(name, measured):
    measured(2.0, 1.0, 1.0)
    model = build_model(name)
    expected = LanguageModel(CausalLM(build_model(name)), drafter="off").generate([5, 6, 7], GREEDY)
    with pytest.raises(ConfigError, match=r"'compiled' cannot run this model: .+; use forward='auto'"):
        prepare(model, "compiled")
    prepared = prepare(model, "auto")
    assert prepared.name in ("stock", "packed")
    assert "not compiled: " in prepared.reason
    assert prepared.forward is None
    found = LanguageModel(CausalLM(model), drafter="off").generate([5, 6, 7], GREEDY)
    assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_is_refused_with_a_reason(name, measured):
    measured(1.0, 2.0, 0.1)
    model = decoder(name)
    text = text_of(Forward(model), 12)
    expected = stock_logits(model, text)
    prepared = prepare(model, "auto")
    assert (prepared.name, prepared.forward) == ("stock", None)
    assert REFUSED[name][2] in prepared.reason
    assert torch.equal(stock_logits(model, text), expected)
    with pytest.raises(ConfigError, match=REFUSED[name][2]):
        prepare(decoder(name), "compiled")


class _Shifted(nn.Embedding):
    def forward(self, token_ids):
        return super().forward(token_ids) + 1


ODD = {
    "max_norm": (lambda model: vars(model.model.embed_tokens).update(max_norm=1.0), "look rows up"),
    "subclass": (
        lambda model: model.set_input_embeddings(_Shifted(32, 64)),
        "_Shifted does more than look rows up",
    ),
    "hook": (
        lambda model: model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *given: None),
        "Linear of it has hooks",
    ),
    "forward": (
        lambda model: vars(model.model.norm).update(forward=lambda states: states),
        "a forward of its own",
    ),
    "shared": (
        lambda model: setattr(
            model.model.layers[1].mlp.up_proj, "weight", model.model.layers[0].mlp.up_proj.weight
        ),
        "share weights",
    ),
    "head": (
        lambda model: model.set_output_embeddings(type("Head", (nn.Linear,), {})(64, 32, bias=False)),
        "its head is a Head",
    ),
}


@pytest.mark.parametrize("part", ODD)
def test_modules_that_would_not_be_reproduced_are_refused(part):
    model = decoder("llama")
    change, reason = ODD[part]
    change(model)
    with pytest.raises(ConfigError, match=reason):
        prepare(model, "compiled")
    assert not any(isinstance(module, StandIn) for module in model.modules())


def test_unknown_ways_are_refused():
    with pytest.raises(ConfigError, match=r"forward='fast'.*auto, stock, packed, compiled"):
        prepare(build_model(), "fast")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_stay_as_they_are(dtype):
    model = build_model(dtype=dtype)
    prepared = prepare(model, "auto")
    assert (prepared.name, prepared.forward) == ("stock", None)
    assert "need float32, or bfloat16" in prepared.reason
    with pytest.raises(ConfigError, match=f"it is in {str(dtype)[6:]} on cpu"):
        prepare(model, "compiled")


def test_stock_changes_nothing():
    model = build_model()
    prepared = prepare(model, "stock")
    assert (prepared.name, prepared.reason, prepared.forward) == ("stock", "as asked", None)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@needs_mkldnn
@pytest.mark.parametrize(
    ("times", "expected", "kind"),
    [
        ((1.5, 1.3, 1.0), "compiled", TiledLinear),
        ((1.5, 1.0, 1.3), "packed", OneDnnLinear),
        ((1.0, 2.0, 3.0), "stock", nn.Linear),
        ((1.0, 0.99, 0.98), "stock", nn.Linear),
    ],
)
def test_auto_takes_what_was_measured_to_be_fastest(times, expected, kind, measured):
    measured(*times)
    model = decoder("llama-biases-tied")
    text = text_of(Forward(model), 20)
    logits = stock_logits(model, text)
    prepared = prepare(model, "auto")
    assert prepared.name == expected
    for way, spent in zip(("stock", "packed", "compiled"), times, strict=True):
        assert f"{way} {spent:.1f}" in prepared.reason
    assert (prepared.forward is not None) == (expected == "compiled")
    assert {type(m) for m in model.modules() if isinstance(m, PackedLinear | nn.Linear)} == {kind}
    assert_close(stock_logits(model, text), logits)


def test_what_is_clearly_faster_is_not_measured_on(measured, monkeypatch):
    measured(3.0, 0.1, 1.0)
    monkeypatch.setattr(forwards, "_milliseconds", None)
    prepared = prepare(decoder("llama"), "auto")
    assert (prepared.name, prepared.reason) == (
        "compiled",
        "measured when loading: 3.0 times as fast as stock passes",
    )


def test_auto_measures_by_itself():
    assert "measured when loading" in prepare(build_model(), "auto").reason


WRONG = {
    "score_scale": 0.5,
    "residual_scale": 0.9,
    "eps": 0.3,
    "activation": 1,
    "embedding_scale": 2.0,
    "logit_scale": 0.7,
}


@pytest.mark.parametrize("field", WRONG)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pass_that_computes_something_else_is_refused(field, dtype, monkeypatch, measured):
    measured(1.0, 2.0, 0.1)

    def misread(model):
        blueprint = read_blueprint(model)
        return replace(blueprint, sizes={**blueprint.sizes, field: WRONG[field]})

    monkeypatch.setattr(forwards, "read_blueprint", misread)
    with pytest.raises(ConfigError, match="logits differ by"):
        prepare(decoder("llama", dtype), "compiled")
    model = decoder("llama", dtype)
    text = text_of(Forward(model), 20)
    expected = stock_logits(model, text)
    prepared = prepare(model, "auto")
    assert (prepared.name, prepared.forward) == ("stock", None)
    assert "logits differ by" in prepared.reason
    assert torch.equal(stock_logits(model, text), expected)


def test_a_window_that_the_modules_do_not_heed_is_not_compiled():
    """It is longer than the text that is compared; the config of this Llama has one, its masks do not."""
    with pytest.raises(ConfigError, match="logits differ by"):
        prepare(build_model("llama", sliding_window=100), "compiled")
