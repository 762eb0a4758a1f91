"""The compiled pass computes what the modules of transformers compute, or says that it will not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compiled_models import (
    ALL,
    COMPILED,
    COMPILED_ARCHITECTURES,
    REFUSED,
    all_logits,
    compiled,
    decoder,
    last_logits,
    text_of,
)
from conftest import ARCHITECTURES, build_model
from hasten.core import SamplingParams
from hasten.engine import LanguageModel
from hasten.errors import ConfigError
from hasten.models import forwards
from hasten.models.causal_lm import CausalLM
from hasten.models.compiled import blueprint, tiles
from hasten.models.compiled.blueprint import Unsupported, read_blueprint
from hasten.models.compiled.executor import CompiledForward
from hasten.models.compiled.tiles import TiledEmbedding, TiledLinear
from hasten.models.forward import Forward
from hasten.models.forwards import prepare
from hasten.models.packed import OneDnnLinear, PackedLinear, can_pack, largest_linear
from hasten.models.reference import Reference
from hasten.models.slot_cache import SlotCache
from hasten.models.stand_in import StandIn, restore

DTYPES = [torch.float32, torch.bfloat16]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@torch.inference_mode()
def stock_logits(model, text):
    return model(torch.tensor([text])).logits[0].float()


def assert_close(found, expected, tolerance=1e-4):
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


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


def test_these_architectures_are_compiled():
    """The set must not shrink unnoticed."""
    found = set()
    for name in ARCHITECTURES:
        with suppress(Unsupported):
            read_blueprint(build_model(name))
            found.add(name)
    assert found == set(COMPILED_ARCHITECTURES)
    assert len({config for config, _ in COMPILED.values()} | found) >= 20


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_of_the_modules(name):
    model = decoder(name)
    text = text_of(Forward(model), 60)
    expected = stock_logits(model, text)
    forward = prepare(model, "compiled").forward
    assert isinstance(forward, CompiledForward)
    for cached in (0, 30, 50):
        assert_close(all_logits(forward, text, cached), expected[cached:])


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_rounds_no_more_than_the_modules(name):
    precise, rounded = decoder(name), decoder(name, torch.bfloat16)
    precise.load_state_dict(rounded.state_dict())
    text = text_of(Forward(precise), 50)
    expected = stock_logits(precise, text)
    noise = (stock_logits(rounded, text) - expected)[20:].square().mean().sqrt()
    found = all_logits(prepare(rounded, "compiled").forward, text, 20)
    assert (found - expected[20:]).square().mean().sqrt() <= 1.1 * noise


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_the_probe_finds_the_compiled_pass_fit_for_trees(name, dtype):
    assert CausalLM(decoder(name), forward=compiled(name, dtype)).probe.mode == "tree"


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


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3", "qwen2-sliding-layers"])
def test_layers_of_one_model_attend_differently(name, monkeypatch):
    """With one mask for all layers, logits beyond the window would differ."""
    forward = compiled(name)
    text = text_of(forward, 40)
    expected = last_logits(forward, text)
    for chosen in (0, 1):
        mask = forward.mask
        with monkeypatch.context() as patch:
            patch.setattr(
                forward,
                "mask",
                lambda v, mask=mask, chosen=chosen: mask(dict.fromkeys(v, [*v.values()][chosen])),
            )
            with pytest.raises(AssertionError):
                assert_close(last_logits(forward, text), expected, 1e-2)


@pytest.mark.parametrize(
    "name", ["gemma2", "gpt-neox", "phi3", "llama-biases-tied", "phi", "llama-many-tiles"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_read_the_same_weights(name, dtype):
    """Whatever the compiled pass cannot do, the transformers model still does."""
    stock, model = decoder(name, dtype), decoder(name, dtype)
    names = [layer for layer, module in stock.named_modules() if type(module) is nn.Linear]
    expected_bytes = CausalLM(stock).num_bytes()
    forward = prepare(model, "compiled").forward
    for layer in names:
        tiled = model.get_submodule(layer)
        assert type(tiled) is TiledLinear
        assert torch.equal(tiled.weight, stock.get_submodule(layer).weight)
    assert CausalLM(model, forward=forward).num_bytes() == expected_bytes
    assert torch.equal(model.get_input_embeddings().weight, stock.get_input_embeddings().weight)

    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    plain, text = Forward(stock), text_of(forward, 20)
    tokens, positions = np.array([text]), np.arange(20)[None]
    assert_close(
        forward(tokens, positions, None, None).float(),
        plain(tokens, positions, None, None).float(),
        tolerance,
    )
    embedded = forward.embed(text)
    assert torch.equal(embedded, plain.embed(text))
    found, expected = (
        one.from_embeddings(embedded[None], positions, None).float() for one in (forward, plain)
    )
    assert_close(found, expected, tolerance)
    with torch.inference_mode():
        hidden = [
            one(torch.tensor([text]), output_hidden_states=True).hidden_states for one in (model, stock)
        ]
    for found, expected in zip(*hidden, strict=True):
        assert_close(found.float(), expected.float(), tolerance)


def test_attention_weights_and_hidden_states_are_those_of_the_modules():
    forward, plain = compiled("llama"), Forward(decoder("llama"))
    tokens, positions = np.array([text_of(forward, 9)]), np.arange(9)[None]
    visible = {"full_attention": np.tri(9, dtype=np.bool_)[None]}
    mask = plain.mask(visible)
    found, expected = (
        one.attention_weights(tokens, positions, mask, SlotCache()) for one in (forward, plain)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


SCALED = ["gemma", "gemma2", "gemma3", "qwen3-tied"]
"""What tied embeddings make of a row: three multiply it, the last does not."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt-neox", "phi3", "llama-biases-tied", *SCALED])
@pytest.mark.parametrize("way", ["compiled", pytest.param("packed", marks=needs_mkldnn)])
def test_a_restored_model_is_the_very_model_it_was(name, dtype, way):
    stock, model = tied(decoder(name, dtype), name), tied(decoder(name, dtype), name)
    if way == "packed" and not can_pack(largest_linear(model)):
        pytest.skip(f"this CPU does not compute in {dtype}")
    text = text_of(Forward(stock), 20)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    prepare(model, way)
    assert any(isinstance(module, StandIn) for module in model.modules())
    assert_same(model.state_dict(), stock.state_dict())
    restore(model)
    assert {key: id(value) for key, value in model.named_modules()} == {
        key: id(value) for key, value in modules.items()
    }
    assert {key: id(value) for key, value in model.named_parameters()} == {
        key: id(value) for key, value in parameters.items()
    }
    assert_same(model.state_dict(), stock.state_dict())
    assert torch.equal(stock_logits(model, text), stock_logits(stock, text))
    model.train()
    model(torch.tensor([text]), labels=torch.tensor([text])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def tied(model, name):
    if name in SCALED:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCALED)
def test_tied_embeddings_look_up_what_they_did(name, dtype):
    stock, model = decoder(name, dtype), decoder(name, dtype)
    for one in (stock, model):
        tied(one, name)
    forward = prepare(model, "compiled").forward
    assert isinstance(model.get_input_embeddings(), TiledEmbedding)
    everything = list(range(forward.vocab_size))
    assert torch.equal(forward.embed(everything), Forward(stock).embed(everything))


@pytest.mark.parametrize("dtype", DTYPES)
def test_this_must_fail_an_embedding_without_its_scale(dtype, monkeypatch):
    monkeypatch.setattr(tiles, "scaled", lambda rows, embedding: rows)
    with pytest.raises(ConfigError, match="logits of its modules over tiles differ by"):
        prepare(tied(decoder("gemma3", dtype), "gemma3"), "compiled")
    monkeypatch.setattr(blueprint, "scaled", lambda rows, embedding: rows)
    with pytest.raises(ConfigError, match="TextScaledWordEmbedding does more than look rows up"):
        prepare(tied(decoder("gemma3", dtype), "gemma3"), "compiled")


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


@pytest.mark.parametrize("way", ["compiled", pytest.param("packed", marks=needs_mkldnn)])
def test_what_cannot_be_done_meanwhile_says_so(way, tmp_path):
    stock, model = (tied(decoder("qwen3-tied"), "qwen3-tied") for _ in range(2))
    prepare(model, way)
    for wrong in (model.train, model.double, lambda: model.load_state_dict(stock.state_dict())):
        with pytest.raises(ConfigError, match=r"hasten.restore\(model\)"):
            wrong()
    model.eval().to("cpu").float()
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path).state_dict(), stock.state_dict())
    size = (tmp_path / "model.safetensors").stat().st_size
    stock.save_pretrained(tmp_path)
    assert size == (tmp_path / "model.safetensors").stat().st_size


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


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_not_a_number_stays_none(name):
    """Gemma 2 caps scores and logits by tanh."""
    model = decoder(name)
    forward = prepare(model, "compiled").forward
    with torch.no_grad():
        tiles_of_head = model.get_output_embeddings()._tiles
        tiles_of_head.tensor[0] = torch.nan  # of the first layer's queries
    assert last_logits(forward, text_of(forward, 9)).isnan().all()
