"""Random transformers models as denoisers: small, and with weights large enough that their texts wander."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from conftest import VOCAB, build_model
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.masked_lm import MaskedLM

MASK = VOCAB - 1
FULL = DenoiserSpec(mask_id=MASK)
BLOCK = 4
BLOCK_CAUSAL = DenoiserSpec(mask_id=MASK, attention="block-causal", block_size=BLOCK)

BIDIRECTIONAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral-sliding": {"sliding_window": None},
    "gemma2": {"layer_types": ["full_attention", "full_attention"]},
    "gemma3": {"layer_types": ["full_attention", "full_attention"]},
    "gpt2": {},
    "phi3": {},
    "olmo2": {},
}
"""architecture -> what its config needs to look ahead"""


@cache
def build_denoiser(
    name: str = "llama", spec: DenoiserSpec = FULL, dtype: torch.dtype = torch.float64, seed: int = 3
) -> MaskedLM:
    """A random denoiser; the same one for the same arguments."""
    return MaskedLM(build_model(name, dtype, seed, **BIDIRECTIONAL[name]), spec)


@cache
def build_blind() -> MaskedLM:
    """One whose attention adds nothing: its keys and values depend on one token only."""
    model = build_model(dtype=torch.float64)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return MaskedLM(model, FULL)
