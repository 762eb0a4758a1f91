"""A small model embedded in a bigger shape writes the small model's logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from hasten.bench.shapes import SHAPES, ShapeConfig, _require_fit, _sizes_of, embed_in_shape
from hasten.errors import ConfigError
from hasten.models.bundled_models import bundled_path

TINY_SHAPE = ShapeConfig(
    hidden_size=72, num_layers=5, num_heads=9, num_kv_heads=3, head_dim=8, intermediate_size=80
)


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY_SHAPE)


def small_llama(
    dtype: torch.dtype, num_heads: int = 4, num_kv_heads: int = 2, *, tied: bool = True, **changes: object
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=8,
        rms_norm_eps=0.01,  # large, so that a forgotten epsilon shows
        tie_word_embeddings=tied,
        initializer_range=0.3,
        **changes,
    )
    torch.manual_seed(num_heads * 10 + num_kv_heads)
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)
    return model


def logits_of(model: LlamaForCausalLM) -> Tensor:
    token_ids = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def largest_difference(model: LlamaForCausalLM, embedded: LlamaForCausalLM) -> float:
    return float((logits_of(model) - logits_of(embedded)).abs().max())


GROUPINGS = [(4, 2), (2, 2), (6, 2), (3, 3), (4, 1), (8, 1), (1, 1)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), GROUPINGS)
def test_float32_logits_are_those_of_the_small_model(num_heads: int, num_kv_heads: int, tied: bool) -> None:
    model = small_llama(torch.float32, num_heads, num_kv_heads, tied=tied)
    embedded = embed_in_shape(model, "tiny")
    assert logits_of(model).std() > 0.5
    assert largest_difference(model, embedded) < 1e-4
    assert (embedded.lm_head.weight is embedded.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), GROUPINGS)
def test_float64_logits_are_those_of_the_small_model(
    num_heads: int, num_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def norm_in_float64(self: modeling_llama.LlamaRMSNorm, hidden_states: Tensor) -> Tensor:
        mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)

    # transformers' own norm always rounds to float32, which would hide errors below 1e-6.
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm_in_float64)
    model = small_llama(torch.float64, num_heads, num_kv_heads, tied=False)
    assert largest_difference(model, embed_in_shape(model, "tiny")) < 1e-11


def break_norms(embedded: LlamaForCausalLM) -> None:
    embedded.model.norm.weight.mul_(1.01)


def break_epsilon(embedded: LlamaForCausalLM) -> None:
    for layer in embedded.model.layers:
        layer.input_layernorm.variance_epsilon = 0.01


def break_dummy_heads(embedded: LlamaForCausalLM) -> None:
    embedded.model.layers[0].self_attn.o_proj.weight[:24, -8:] = 0.02


def break_padding(embedded: LlamaForCausalLM) -> None:
    embedded.model.layers[0].mlp.down_proj.weight[-1, :40] = 0.1


def break_extra_layer(embedded: LlamaForCausalLM) -> None:
    embedded.model.layers[4].mlp.down_proj.weight.normal_(0, 0.02)


def break_grouping(embedded: LlamaForCausalLM) -> None:
    query = embedded.model.layers[0].self_attn.q_proj.weight
    query[16:24], query[24:32] = query[24:32].clone(), query[16:24].clone()


@pytest.mark.parametrize(
    "break_it",
    [break_norms, break_epsilon, break_dummy_heads, break_padding, break_extra_layer, break_grouping],
)
def test_a_broken_embedding_is_seen(break_it) -> None:  # type: ignore[no-untyped-def]
    model = small_llama(torch.float32)
    embedded = embed_in_shape(model, "tiny")
    with torch.no_grad():
        break_it(embedded)
    assert largest_difference(model, embedded) > 1e-3


def test_added_weights_are_ordinary_numbers_and_follow_the_seed() -> None:
    model = small_llama(torch.float32)
    first, same, other = (embed_in_shape(model, "tiny", seed=seed) for seed in (3, 3, 4))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name)), name
        assert not (parameter.isnan() | ((parameter != 0) & (parameter.abs() < 1e-30))).any(), name
    added_layer = first.model.layers[4]
    assert added_layer.mlp.up_proj.weight.detach().std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(added_layer.mlp.up_proj.weight, other.model.layers[4].mlp.up_proj.weight)
    assert (first.model.layers[0].self_attn.q_proj.weight != 0).all()


def test_dtype_attention_and_memory_are_the_models_own() -> None:
    model = small_llama(torch.bfloat16, attn_implementation="eager")
    embedded = embed_in_shape(model, "tiny")
    assert {parameter.dtype for parameter in embedded.parameters()} == {torch.bfloat16}
    assert embedded.config._attn_implementation == "eager"
    before = logits_of(embedded)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert torch.equal(logits_of(embedded), before)


def test_embedded_model_generates_the_same_greedy_text() -> None:
    model = small_llama(torch.float32)
    embedded = embed_in_shape(model, "tiny")
    prompt = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(model.generate(prompt, **options), embedded.generate(prompt, **options))


def test_demo_at_135m_writes_what_the_demo_writes() -> None:
    folder = bundled_path("demo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    embedded = embed_in_shape(model, "135m")
    assert sum(parameter.numel() for parameter in embedded.parameters()) > 100e6
    prompt = AutoTokenizer.from_pretrained(folder)("User: I want a coffee.\nAssistant:", return_tensors="pt")
    with torch.no_grad():
        expected, logits = model(**prompt).logits, embedded(**prompt).logits
    assert (expected - logits).abs().max() < 1e-3
    assert torch.equal(expected.argmax(-1), logits.argmax(-1))


def test_demo_fits_every_shape() -> None:
    config = AutoModelForCausalLM.from_pretrained(bundled_path("demo")).config
    for name, sizes in SHAPES.items():
        if name != "tiny":
            assert sizes.num_heads % sizes.num_kv_heads == 0
            _require_fit(_sizes_of(config), sizes, name)


def test_unknown_shape_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'3b'.*135m, 360m, 1b, 7b"):
        embed_in_shape(small_llama(torch.float32), "3b")


def test_other_head_dim_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim is 8, that of shape '135m' is 64"):
        embed_in_shape(small_llama(torch.float32), "135m")


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 16), ("num_layers", 2), ("intermediate_size", 32), ("num_kv_heads", 1)],
)
def test_too_small_a_shape_is_refused(field: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: getattr(TINY_SHAPE, name) for name in TINY_SHAPE.__slots__}
    monkeypatch.setitem(SHAPES, "tiny", ShapeConfig(**{**sizes, field: value}))
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        embed_in_shape(small_llama(torch.float32), "tiny")


def test_other_modules_are_refused() -> None:
    class OtherLlama(LlamaForCausalLM):
        pass

    config = small_llama(torch.float32).config
    with pytest.raises(ConfigError, match=r"OtherLlama.*only LlamaForCausalLM"):
        embed_in_shape(OtherLlama(config), "tiny")
    with pytest.raises(ConfigError, match="attention_bias"):
        embed_in_shape(small_llama(torch.float32, attention_bias=True), "tiny")
