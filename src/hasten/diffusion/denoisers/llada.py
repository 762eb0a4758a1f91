"""LLaDA (arXiv 2502.09992): 8B checkpoints and others of its layout, as a Llama that attends both ways.

Its blocks are those of Llama under OLMo's names, and its rotary embedding turns the halves of a head against
each other as Llama's does, so that queries and keys are taken over as they are. Not known: variants with
biases, other norms or activations, grouped blocks, scaled logits; the mixture-of-experts models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hasten.diffusion.denoisers.foreign import (
    Config,
    Family,
    build_stock,
    declared_dtype,
    need,
    refuse_other,
)
from hasten.diffusion.denoisers.masked_lm import MaskedLM

_READ = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "block_group_size": 1,
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight")
_IN_BLOCK = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_AROUND = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}


def _rename(theirs: str) -> str:
    block = _BLOCK.fullmatch(theirs)
    if block and block[2] in _IN_BLOCK:
        return f"model.layers.{block[1]}.{_IN_BLOCK[block[2]]}.weight"
    return _AROUND.get(theirs, theirs)


def _llama_config(config: Config) -> Any:
    refuse_other(config, _READ)
    width, heads = need(config, "d_model"), need(config, "n_heads")
    key_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
    made: Any = LlamaConfig  # its fields are not all in its signature
    return made(
        vocab_size=config.get("embedding_size") or need(config, "vocab_size"),
        hidden_size=width,
        intermediate_size=config.get("mlp_hidden_size") or width * need(config, "mlp_ratio"),
        num_hidden_layers=need(config, "n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=need(config, "max_sequence_length"),
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10_000.0))},
        tie_word_embeddings=bool(config.get("weight_tying")),
        bos_token_id=None,
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
        dtype=declared_dtype(config),
    )


def _build(folder: Path, config: Config, dtype: torch.dtype | str) -> Any:
    return build_stock(LlamaForCausalLM, _llama_config(config), folder, dtype, _rename)


def _text_config(config: Config) -> Config:
    """Some checkpoints have more rows than words; all of them are predicted."""
    return {**config, "vocab_size": config.get("embedding_size") or need(config, "vocab_size")}


LLADA = Family(
    name="LLaDA",
    model_types=("llada",),
    architectures=("LLaDAModelLM",),
    build=_build,
    wrap=MaskedLM,
    tokenizer=PreTrainedTokenizerFast.from_pretrained,
    text_config=_text_config,
    end_tokens=("<|eot_id|>",),
)
