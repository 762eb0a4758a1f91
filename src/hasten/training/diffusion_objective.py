"""What a masked-diffusion model minimises: the loss of hidden tokens, given those that are not hidden.

LLaDA (arXiv 2502.09992): each row hides each position of its canvas with its own chance t. With a block size,
one block a row is hidden that way, those before it stay clean and those after it are absent, as in BD3-LM
(arXiv 2503.09573); attention is block-causal, so that what a cached prefix holds is what training saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.diffusion_rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """Which tokens of some rows are hidden, and how much each counts."""

    is_masked: Tensor  # bool [rows, length]
    weights: Tensor  # [rows, length]
    attention_mask: Tensor | None  # bool [rows, 1, length, length]; None: every position sees every other


def hide(rows: Rows, config: DiffusionConfig, random: np.random.Generator) -> Hidden:
    """Draws a chance t for each row, spread evenly over the batch, and masks the canvas with it."""
    num_rows, length = rows.token_ids.shape
    spread = (random.permutation(num_rows) + random.random()) / num_rows
    chances = torch.from_numpy(config.min_noise + (1 - config.min_noise) * spread)[:, None].float()
    draws = torch.from_numpy(random.random((num_rows, length), dtype=np.float32))
    can_hide, attention_mask = rows.is_canvas, None
    if config.block_size is not None:
        blocks = torch.arange(length) // config.block_size
        drawn = torch.from_numpy(random.random(num_rows))
        can_hide, attention_mask = _one_block(rows.is_canvas, blocks, drawn)
    is_masked = can_hide & (draws < chances)
    if config.weighting == "likelihood":
        weights = 1 / (chances * can_hide.sum(1, keepdim=True) * num_rows)
    else:
        weights = 1 / is_masked.sum().clamp(min=1)
    return Hidden(is_masked, weights.expand(num_rows, length), attention_mask)


def block_causal(blocks: Tensor) -> Tensor:
    """bool [length, length]: whether a position (row) sees another (column), by their blocks [length]."""
    return blocks[None, :] <= blocks[:, None]


def _one_block(is_canvas: Tensor, blocks: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas of the block that `drawn`, 0 to 1, picks in each row; attention without later blocks."""
    first = blocks[(~is_canvas).sum(1)]
    picked = first + (drawn * (blocks[-1] - first + 1)).long()
    is_present = blocks <= picked[:, None]
    attention = block_causal(blocks) & is_present[:, None, :]
    return is_canvas & (blocks == picked[:, None]), attention[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class Denoising:
    """A model with what its spec says of it."""

    model: PreTrainedModel
    mask_id: int
    logits_shift: int = 0

    def logits(self, token_ids: Tensor, wanted: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[wanted, vocab] float32: the predictions for the wanted positions; the mask itself has -inf."""
        hidden_states = self.model.model(
            input_ids=token_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        if self.logits_shift:
            hidden_states = torch.cat([hidden_states[:, :1], hidden_states[:, :-1]], 1)
        logits: Tensor = self.model.lm_head(hidden_states[wanted]).float()
        return logits.index_fill(-1, torch.tensor([self.mask_id], device=logits.device), -torch.inf)

    def hidden_logits(
        self, token_ids: Tensor, is_masked: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The logits of the masked positions, of clean tokens [rows, length]."""
        masked = token_ids.masked_fill(is_masked, self.mask_id)
        return self.logits(masked, is_masked, attention_mask)

    def loss(self, rows: Rows, hidden: Hidden) -> Tensor:
        """Weighted sum of the hidden tokens' cross-entropies, nats."""
        device = self.model.device
        is_masked = hidden.is_masked.to(device)
        attention_mask = None if hidden.attention_mask is None else hidden.attention_mask.to(device)
        token_ids = rows.token_ids.to(device)
        logits = self.hidden_logits(token_ids, is_masked, attention_mask)
        losses = functional.cross_entropy(logits, token_ids[is_masked], reduction="none")
        return (losses * hidden.weights.to(device)[is_masked]).sum()
