"""The compiled pass computes what the modules of transformers compute, or says that it will not."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from compiled_models import (
    ALL,
    COMPILED,
    COMPILED_ARCHITECTURES,
    DTYPES,
    all_logits,
    assert_close,
    compiled,
    decoder,
    last_logits,
    needs_mkldnn,
    stock_logits,
    text_of,
)
from conftest import ARCHITECTURES, build_model
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.compiled import blueprint, tiles
from hasten.models.forwards.compiled.blueprint import Unsupported, read_blueprint
from hasten.models.forwards.compiled.executor import CompiledForward
from hasten.models.forwards.compiled.tiles import TiledEmbedding, TiledLinear
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.packed import can_pack, largest_linear
from hasten.models.forwards.stand_in import StandIn, restore
from hasten.models.sessions.attention import AttentionKinds, additive_mask
from hasten.models.sessions.slot_cache import SlotCache


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


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3", "qwen2-sliding-layers"])
def test_layers_of_one_model_attend_differently(name, monkeypatch):
    """With one mask for all layers, logits beyond the window would differ."""
    forward = compiled(name)
    text = text_of(forward, 40)
    expected = last_logits(forward, text)
    first_positions = AttentionKinds.first_positions
    for chosen in (0, 1):

        def alike(kinds, positions, chosen=chosen):
            found = first_positions(kinds, positions)
            return np.broadcast_to(found[chosen], found.shape).copy()

        with monkeypatch.context() as patch:
            patch.setattr(AttentionKinds, "first_positions", alike)
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
    mask = additive_mask(np.tri(9, dtype=np.bool_)[None], plain.dtype, plain.device)
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


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_what_is_not_a_number_stays_none(name):
    """Gemma 2 caps scores and logits by tanh."""
    model = decoder(name)
    forward = prepare(model, "compiled").forward
    with torch.no_grad():
        tiles_of_head = model.get_output_embeddings()._tiles
        tiles_of_head.tensor[0] = torch.nan  # of the first layer's queries
    assert last_logits(forward, text_of(forward, 9)).isnan().all()
