"""What a denoiser without a mask token minimises: SUNDAE (arXiv 2112.06749), and UT5 (arXiv 2311.08552).

It reads a canvas in which a random part was replaced by random tokens and predicts the clean one; then it
reads what it drew from its own prediction, as it will when it writes, and predicts the clean one again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hasten.errors import ConfigError
from hasten.training.diffusion_rows import Rows


def corrupted(rows: Rows, vocab_size: int, random: np.random.Generator) -> Tensor:
    """int64 [rows, length]: each row's canvas with its own chance, 0 to 1, that a token becomes any other."""
    shape = tuple(rows.token_ids.shape)
    chances = torch.from_numpy(random.random((shape[0], 1)))
    is_replaced = rows.is_canvas & (torch.from_numpy(random.random(shape)) < chances)
    noise = torch.from_numpy(random.integers(0, vocab_size, shape))
    return torch.where(is_replaced, noise, rows.token_ids)


def unrolled_loss(
    model: PreTrainedModel, rows: Rows, random: np.random.Generator, *, num_unrolls: int = 2
) -> Tensor:
    """Mean cross-entropy of the clean canvas over all unrolls, nats a token.

    Every unroll after the first reads tokens that were drawn from the logits of the one before, through which
    no gradient flows. Raises ConfigError for less than one unroll.
    """
    if num_unrolls < 1:
        raise ConfigError(f"num_unrolls={num_unrolls} cannot work; at least one prediction is learned from")
    clean, is_canvas = rows.token_ids.to(model.device), rows.is_canvas.to(model.device)
    present = corrupted(rows, model.config.vocab_size, random).to(model.device)
    losses = []
    for _ in range(num_unrolls):
        logits: Tensor = model(input_ids=present, use_cache=False).logits[is_canvas].float()
        losses.append(functional.cross_entropy(logits, clean[is_canvas]))
        present = present.masked_scatter(is_canvas, _drawn(logits.detach(), random))
    return torch.stack(losses).mean()


def _drawn(logits: Tensor, random: np.random.Generator) -> Tensor:
    """int64 [rows]: one token from each row's law, by Gumbel noise of ``random``."""
    noise = torch.from_numpy(random.gumbel(size=tuple(logits.shape)).astype(np.float32))
    return (logits + noise.to(logits.device)).argmax(-1)
