"""Puts a small Llama inside a bigger one that computes the same function at the bigger one's cost.

So a speed-up can be measured at the cost of a real model with no download: the small model supplies the text
and its agreement with a drafter, the shape supplies the time. Knows nothing about decoding.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hasten.errors import ConfigError

FILLER_STD = 0.02
"""Spread of the weights that are there only for their cost; ordinary, so that no product is denormal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeConfig:
    """The sizes of a published model; the vocabulary stays the small model's."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int

    @property
    def group_size(self) -> int:
        """Query heads per key-value head."""
        return self.num_heads // self.num_kv_heads


SHAPES: dict[str, ShapeConfig] = {
    # SmolLM-135M
    "135m": ShapeConfig(
        hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, intermediate_size=1536
    ),
    # SmolLM-360M
    "360m": ShapeConfig(
        hidden_size=960, num_layers=32, num_heads=15, num_kv_heads=5, head_dim=64, intermediate_size=2560
    ),
    # Llama-3.2-1B
    "1b": ShapeConfig(
        hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, intermediate_size=8192
    ),
    # Llama-2-7B, its 32 heads of 128 as 64 heads of 64: the same matrices and the same cache
    "7b": ShapeConfig(
        hidden_size=4096, num_layers=32, num_heads=64, num_kv_heads=64, head_dim=64, intermediate_size=11008
    ),
}


@torch.no_grad()
def embed_in_shape(model: PreTrainedModel, shape: str, seed: int = 0) -> LlamaForCausalLM:
    """A model of the given shape whose logits are those of `model`, up to rounding in its dtype.

    The small residual stream fills the first dimensions and the others stay zero, which shrinks the mean
    square from x to x * d / D; so RMSNorm weights are multiplied by sqrt(d / D) and its epsilon by d / D.
    Added heads, FFN columns and layers have random weights but write nothing back. Dtype and device are the
    small model's, and the two share no memory.

    Raises ConfigError for an unknown shape, a model that is not a plain Llama, or one that does not fit.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
    small = _require_plain_llama(model)
    sizes = SHAPES[shape]
    _require_fit(_sizes_of(small.config), sizes, shape)
    big = _allocate(small, sizes)
    generator = torch.Generator(device=small.device).manual_seed(seed)
    _fill(big, generator)
    _copy_weights(small, big)
    big.train(small.training)
    return big


def _require_plain_llama(model: PreTrainedModel) -> LlamaForCausalLM:
    # A subclass may compute something else with the same weights, so the exact type is asked for.
    if type(model) is not LlamaForCausalLM:
        raise ConfigError(f"{type(model).__name__} cannot be embedded; only LlamaForCausalLM is supported")
    if model.config.attention_bias or model.config.mlp_bias:
        raise ConfigError(
            "a Llama with attention_bias or mlp_bias cannot be embedded; use one without biases"
        )
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        raise ConfigError(
            f"weights of {sorted(map(str, dtypes))} cannot be embedded; load in one float dtype"
        )
    return model


def _sizes_of(config: LlamaConfig) -> ShapeConfig:
    assert config.num_key_value_heads is not None
    assert config.head_dim is not None
    return ShapeConfig(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
    )


def _require_fit(small: ShapeConfig, sizes: ShapeConfig, shape: str) -> None:
    if small.head_dim != sizes.head_dim:
        raise ConfigError(
            f"the model's head_dim is {small.head_dim}, that of shape {shape!r} is {sizes.head_dim}; they"
            " must be equal, so train or choose a model with the shape's head_dim"
        )
    needed = {
        "hidden_size": (small.hidden_size, sizes.hidden_size),
        "num_layers": (small.num_layers, sizes.num_layers),
        "intermediate_size": (small.intermediate_size, sizes.intermediate_size),
        "num_kv_heads": (small.num_kv_heads * _copies_per_kv_head(small, sizes), sizes.num_kv_heads),
    }
    for name, (needed_size, size) in needed.items():
        if needed_size > size:
            raise ConfigError(
                f"shape {shape!r} has {name}={size}, the model needs {needed_size}; choose a bigger shape of"
                f" {', '.join(SHAPES)}"
            )


def _copies_per_kv_head(small: ShapeConfig, sizes: ShapeConfig) -> int:
    """A group of query heads wider than a big group is cut up, each piece with its own keys and values."""
    return math.ceil(small.group_size / sizes.group_size)


def _allocate(small: LlamaForCausalLM, sizes: ShapeConfig) -> LlamaForCausalLM:
    config: LlamaConfig = copy.deepcopy(small.config)
    config.rms_norm_eps *= small.config.hidden_size / sizes.hidden_size
    config.hidden_size = sizes.hidden_size
    config.num_hidden_layers = sizes.num_layers
    config.num_attention_heads = sizes.num_heads
    config.num_key_value_heads = sizes.num_kv_heads
    config.intermediate_size = sizes.intermediate_size
    # On "meta" first, so that the big weights exist once and nobody spends minutes initialising them.
    with torch.device("meta"):
        big = LlamaForCausalLM(config)
    for parameter in big.parameters():
        parameter.data = parameter.data.to(small.dtype)
    big.to_empty(device=small.device)
    big.tie_weights()
    big.model.rotary_emb = copy.deepcopy(small.model.rotary_emb)
    big.model.rotary_emb.config = config
    big.generation_config = copy.deepcopy(small.generation_config)
    return big


def _fill(big: LlamaForCausalLM, generator: torch.Generator) -> None:
    for parameter in big.parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, FILLER_STD, generator=generator)
    for layer in big.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    big.model.embed_tokens.weight.zero_()
    big.lm_head.weight.zero_()


def _copy_weights(small: LlamaForCausalLM, big: LlamaForCausalLM) -> None:
    sizes, big_sizes = _sizes_of(small.config), _sizes_of(big.config)
    residual, columns = slice(sizes.hidden_size), slice(sizes.intermediate_size)
    places = _head_places(sizes, big_sizes)
    for source, layer in zip(small.model.layers, big.model.layers, strict=False):  # the rest is filler
        _copy_norm(source.input_layernorm, layer.input_layernorm)
        _copy_norm(source.post_attention_layernorm, layer.post_attention_layernorm)
        old, new = source.self_attn, layer.self_attn
        for query, big_query, key, big_key in places:
            new.q_proj.weight[big_query, residual] = old.q_proj.weight[query]
            new.k_proj.weight[big_key, residual] = old.k_proj.weight[key]
            new.v_proj.weight[big_key, residual] = old.v_proj.weight[key]
            new.o_proj.weight[residual, big_query] = old.o_proj.weight[:, query]
        layer.mlp.gate_proj.weight[columns, residual] = source.mlp.gate_proj.weight
        layer.mlp.up_proj.weight[columns, residual] = source.mlp.up_proj.weight
        layer.mlp.down_proj.weight[residual, columns] = source.mlp.down_proj.weight
    _copy_norm(small.model.norm, big.model.norm)
    big.model.embed_tokens.weight[:, residual] = small.model.embed_tokens.weight
    big.lm_head.weight[:, residual] = small.lm_head.weight


def _head_places(small: ShapeConfig, big: ShapeConfig) -> list[tuple[slice, slice, slice, slice]]:
    """Per small query head: its rows, their place, the rows of its key and value head, their place."""
    places = []
    for query in range(small.num_heads):
        key, member = divmod(query, small.group_size)
        piece, big_member = divmod(member, big.group_size)
        big_key = key * _copies_per_kv_head(small, big) + piece
        big_query = big_key * big.group_size + big_member
        rows = [
            slice(head * big.head_dim, (head + 1) * big.head_dim) for head in (query, big_query, key, big_key)
        ]
        places.append((rows[0], rows[1], rows[2], rows[3]))
    return places


def _copy_norm(source: nn.Module, target: nn.Module) -> None:
    old, new = source.weight, target.weight
    assert isinstance(old, Tensor)
    assert isinstance(new, Tensor)
    new[: len(old)] = old * math.sqrt(len(old) / len(new))
