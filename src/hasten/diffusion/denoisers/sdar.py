"""Decoders that were trained on into denoisers and kept their layout: SDAR, Tiny-A2D.

SDAR (arXiv 2510.06303) is a Qwen3 that attends both ways inside blocks of 4 and back to earlier blocks.
Tiny-A2D are a Qwen3, Qwen2 or Llama that attend both ways; those trained in blocks say so only in their names
and need ``spec="attention=block-causal,block_size=32"``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hasten.diffusion.denoisers.foreign import (
    Config,
    Family,
    build_stock,
    refuse_other,
    same_names,
    stock_config,
)
from hasten.diffusion.denoisers.masked_lm import MaskedLM

_READ = {"use_sliding_window": False, "hidden_act": "silu"}
DEFAULT_BLOCK_SIZE = 4
"""of SDAR checkpoints whose config does not say it"""


def _builder(model_class: Any, config_class: Any) -> Callable[[Path, Config, torch.dtype | str], Any]:
    def build(folder: Path, config: Config, dtype: torch.dtype | str) -> Any:
        refuse_other(config, _READ)
        return build_stock(model_class, stock_config(config_class, config), folder, dtype, same_names)

    return build


def _in_blocks(config: Config) -> dict[str, Any]:
    return {"attention": "block-causal", "block_size": config.get("block_size") or DEFAULT_BLOCK_SIZE}


SDAR = Family(
    name="SDAR",
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    spec_values=_in_blocks,
    build=_builder(Qwen3ForCausalLM, Qwen3Config),
    wrap=MaskedLM,
    tokenizer=Qwen2Tokenizer.from_pretrained,
    end_tokens=("<|im_end|>",),
)
A2D = tuple(
    Family(
        name=f"Tiny-A2D {base}",
        model_types=(f"a2d-{base.lower()}",),
        architectures=(f"A2D{base}LMHeadModel",),
        build=_builder(model_class, config_class),
        wrap=MaskedLM,
        tokenizer=tokenizer_class.from_pretrained,
        end_tokens=("<|im_end|>",),
    )
    for base, model_class, config_class, tokenizer_class in (
        ("Llama", LlamaForCausalLM, LlamaConfig, PreTrainedTokenizerFast),
        ("Qwen2", Qwen2ForCausalLM, Qwen2Config, Qwen2Tokenizer),
        ("Qwen3", Qwen3ForCausalLM, Qwen3Config, Qwen2Tokenizer),
    )
)
