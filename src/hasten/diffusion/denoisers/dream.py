"""Dream (arXiv 2508.15487) and models of its layout (DiffuCoder): a Qwen2 that attends both ways.

It was warmed up from a causal model and keeps its shift: the logits of position i - 1 predict position i.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from hasten.diffusion.denoisers.foreign import (
    Config,
    Family,
    build_stock,
    refuse_other,
    same_names,
    stock_config,
)
from hasten.diffusion.denoisers.masked_lm import MaskedLM

_READ = {"use_mrope": False, "use_sliding_window": False, "hidden_act": "silu"}


def _build(folder: Path, config: Config, dtype: torch.dtype | str) -> Any:
    refuse_other(config, _READ)
    return build_stock(Qwen2ForCausalLM, stock_config(Qwen2Config, config), folder, dtype, same_names)


def _spec_values(config: Config) -> dict[str, Any]:
    return {"logits_shift": 1}


DREAM = Family(
    name="Dream",
    model_types=("Dream", "dream"),
    architectures=("DreamModel",),
    spec_values=_spec_values,
    build=_build,
    wrap=MaskedLM,
    tokenizer=Qwen2Tokenizer.from_pretrained,
    end_tokens=("<|im_end|>",),
)
