"""A small random DiffusionGemma of transformers, with a window that is shorter than the prompts of tests.

Its layers change little, so that rounding errors do not grow from pass to pass.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)

VOCAB, CANVAS, END = 97, 8, 1


def build_diffusion_gemma(seed: int = 0, **changes: Any) -> Any:
    """``changes`` go into the text config."""
    text = DiffusionGemmaTextConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 8,
            "max_position_embeddings": 256,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "pad_token_id": 0,
            "eos_token_id": END,
            **changes,
        }
    )
    vision = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=16,
    )
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=CANVAS,
        boi_token_id=94,
        eoi_token_id=95,
        image_token_id=96,
    )
    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6 if "embed_tokens" in name else 0.1)
    return model.eval()
