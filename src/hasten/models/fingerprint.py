"""Which transformers model a file was trained for: heads, filters and samplers name theirs."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_SAMPLED_ROWS = 64


def model_fingerprint(model: Any) -> str:
    """Identifies a transformers model by its shape and by rows of its embeddings, whatever its dtype."""
    config = model.config.get_text_config(decoder=True)
    weight = model.get_input_embeddings().weight.detach()
    step = max(1, len(weight) // _SAMPLED_ROWS)
    rows = weight[::step].to("cpu", torch.bfloat16).view(torch.int16).numpy()
    shape = (config.model_type, getattr(config, "num_hidden_layers", 0), *weight.shape)
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(rows.tobytes())
    return digest.hexdigest()[:16]
