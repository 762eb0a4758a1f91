"""MDLM (arXiv 2406.07524) and BD3-LM (2503.09573): a small diffusion transformer, run as a stock model is.

Its layers are modulated by an embedding of the noise level. The published checkpoints were trained without
one (``time_conditioning`` is off): the level is always 0, so that the modulation is a constant. BD3-LM sees
in blocks what MDLM sees at once. Not known: checkpoints with time conditioning, causal ones, Mamba backbones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Tokenizer, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from hasten.diffusion.denoisers.foreign import (
    Config,
    Family,
    declared_dtype,
    need,
    read_weights,
    refuse_other,
)
from hasten.diffusion.denoisers.masked_lm import MaskedLM

TOKENIZER = "openai-community/gpt2"
"""of the published checkpoints, which come without one"""
_READ = {"time_conditioning": False, "causal": False}
_COMPUTED = ("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max")
_ROTARY_BASE = 10_000.0
_LEVEL_CHANNELS = 256
_MLP_RATIO = 4


class DiffusionTransformer(nn.Module):
    """The module; parameters are called as in the files. ``config`` has the names that hasten asks for.

    Args:
        config: with vocab_size, hidden_size, num_hidden_layers, num_attention_heads and condition_size, which
            is None for layers without modulation.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        width, condition = config.hidden_size, config.condition_size
        self.vocab_embed = _Embedding(config.vocab_size, width)
        if condition is not None:
            self.sigma_map = _LevelEmbedding(condition)
        self.blocks = nn.ModuleList(
            _Layer(width, config.num_attention_heads, condition, index)
            for index in range(config.num_hidden_layers)
        )
        self.output_layer = _Head(width, config.vocab_size, condition)

    @property
    def dtype(self) -> torch.dtype:
        return self.vocab_embed.embedding.dtype

    def get_input_embeddings(self) -> _Embedding:
        return self.vocab_embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.output_layer.linear

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Logits [batch, tokens, vocab].

        Args:
            input_ids: [batch, tokens]; position_ids: the same, None for 0, 1, ...
            attention_mask: additive [batch, 1, tokens or 1, keys]; None where all is seen.
            past_key_values: a cache that takes keys and values and returns what is looked at.
            options: those of transformers models that mean nothing here.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.vocab_embed(input_ids)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        turn = _turns(position_ids, head_size, hidden.dtype)
        level = self.sigma_map() if self.config.condition_size is not None else None
        for block in self.blocks:
            hidden = block(hidden, turn, level, attention_mask, past_key_values)
        return CausalLMOutput(logits=self.output_layer(hidden, level))


class _Embedding(nn.Module):
    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_tokens, width))

    @property
    def weight(self) -> nn.Parameter:
        return self.embedding

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding[token_ids]


class _LevelEmbedding(nn.Module):
    """The embedding of noise level 0: an MLP of its cosines, all 1, and its sines, all 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_LEVEL_CHANNELS, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self) -> torch.Tensor:
        waves = torch.zeros_like(next(self.parameters())[0])
        waves[: _LEVEL_CHANNELS // 2] = 1.0
        return functional.silu(self.mlp(waves))


class _Norm(nn.Module):
    """A layer norm that only scales; it is computed in float32 at least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        exact = hidden if hidden.dtype == torch.float64 else hidden.float()
        return functional.layer_norm(exact, self.weight.shape).to(hidden.dtype) * self.weight


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, condition: int | None, index: int) -> None:
        super().__init__()
        self.index, self.num_heads, self.head_size = index, num_heads, width // num_heads
        self.norm1 = _Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = _Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, _MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(_MLP_RATIO * width, width),
        )
        if condition is not None:
            self.adaLN_modulation = nn.Linear(condition, 6 * width)

    def forward(
        self,
        hidden: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        level: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache: Any,
    ) -> torch.Tensor:
        if level is None:
            hidden = hidden + self._attend(self.norm1(hidden), turn, mask, cache)
            plain: torch.Tensor = hidden + self.mlp(self.norm2(hidden))
            return plain
        changes: tuple[torch.Tensor, ...] = self.adaLN_modulation(level).chunk(6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = changes
        looked = self._attend(self.norm1(hidden) * (1 + scale) + shift, turn, mask, cache)
        hidden = hidden + gate * looked
        mixed: torch.Tensor = self.mlp(self.norm2(hidden) * (1 + scale_mlp) + shift_mlp)
        return hidden + gate_mlp * mixed

    def _attend(
        self,
        hidden: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Any,
    ) -> torch.Tensor:
        parts = self.attn_qkv(hidden).unflatten(-1, (3, self.num_heads, self.head_size))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        queries, keys = _turned(queries, turn), _turned(keys, turn)
        if cache is not None:
            keys, values = cache.update(keys, values, self.index)
        looked = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed: torch.Tensor = self.attn_out(looked.transpose(1, 2).flatten(-2))
        return mixed


class _Head(nn.Module):
    def __init__(self, width: int, num_tokens: int, condition: int | None) -> None:
        super().__init__()
        self.norm_final = _Norm(width)
        self.linear = nn.Linear(width, num_tokens)
        if condition is not None:
            self.adaLN_modulation = nn.Linear(condition, 2 * width)

    def forward(self, hidden: torch.Tensor, level: torch.Tensor | None) -> torch.Tensor:
        hidden = self.norm_final(hidden)
        if level is not None:
            shift, scale = self.adaLN_modulation(level).chunk(2)
            hidden = hidden * (1 + scale) + shift
        logits: torch.Tensor = self.linear(hidden)
        return logits


def _turns(positions: torch.Tensor, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [batch, 1, tokens, size / 2] of the rotary embedding."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    powers = torch.arange(0, size, 2, device=positions.device, dtype=exact) / size
    angles = positions[:, None, :, None].to(exact) / _ROTARY_BASE**powers
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _turned(heads: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Each channel of the first half of a head with its fellow of the second half."""
    (first, second), (cos, sin) = heads.chunk(2, -1), turn
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _rename(theirs: str) -> str | None:
    name = theirs.removeprefix("backbone.")
    return None if name in _COMPUTED else name


def _config(config: Config) -> Any:
    refuse_other(config, _READ)
    made: Any = PreTrainedConfig  # takes any field
    return made(
        vocab_size=need(config, "vocab_size"),
        hidden_size=need(config, "hidden_dim"),
        num_hidden_layers=need(config, "n_blocks"),
        num_attention_heads=need(config, "n_heads"),
        max_position_embeddings=need(config, "model_length"),
        condition_size=need(config, "cond_dim") if config.get("adaln", True) else None,
    )


def _build(folder: Path, config: Config, dtype: torch.dtype | str) -> DiffusionTransformer:
    with torch.device("meta"):
        model = DiffusionTransformer(_config(config))
    weights = read_weights(model, folder, _rename)
    if dtype == "auto":
        name = declared_dtype(config)
        dtype = getattr(torch, name) if name else next(iter(weights.values())).dtype
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return model.eval()


def _spec_values(config: Config) -> dict[str, Any]:
    """The mask is the token after the tokenizer's."""
    values = {"mask_id": config.get("mask_token_id", need(config, "vocab_size") - 1)}
    if config.get("model_type") == "bd3lm" and config.get("cross_attn", True):
        values |= {"attention": "block-causal", "block_size": need(config, "block_size")}
    return values


def _tokenizer(folder: Path) -> Any:
    has_own = (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()
    return GPT2Tokenizer.from_pretrained(folder if has_own else TOKENIZER)


MDLM = Family(
    name="MDLM",
    model_types=("mdlm",),
    architectures=("MDLM",),
    spec_values=_spec_values,
    build=_build,
    wrap=MaskedLM,
    tokenizer=_tokenizer,
)
BD3LM = Family(
    name="BD3-LM",
    model_types=("bd3lm",),
    architectures=("BD3LM",),
    spec_values=_spec_values,
    build=_build,
    wrap=MaskedLM,
    tokenizer=_tokenizer,
)
