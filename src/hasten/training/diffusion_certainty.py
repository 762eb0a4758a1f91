"""Certainty-forcing distillation of a masked-diffusion model (dParallel, arXiv 2509.26488).

A teacher writes answers one token a forward pass; the student learns them together with being sure of what it
gets right, so that more positions pass an entropy threshold at once. Knows models and rows; knows no text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hasten.files import write_whole
from hasten.training.diffusion_objective import Denoising
from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.diffusion_rows import Rows, RowSource


@torch.inference_mode()
def write_greedily(denoising: Denoising, rows: Rows) -> Rows:
    """Fills the canvases: each forward pass commits, in every row, the position the model is surest of."""
    is_open = rows.is_canvas.clone()
    token_ids = rows.token_ids.masked_fill(is_open, denoising.mask_id)
    numbers = torch.arange(len(token_ids))
    while is_open.any():
        logits = denoising.logits(token_ids, torch.ones_like(is_open))
        confidences, tokens = logits.softmax(-1).max(-1)
        confidences = confidences.view(is_open.shape).masked_fill(~is_open, -1)
        best = confidences.argmax(1)
        chosen = tokens.view(is_open.shape)[numbers, best]
        token_ids[numbers, best] = torch.where(is_open[numbers, best], chosen, token_ids[numbers, best])
        is_open[numbers, best] = False
    return Rows(token_ids, rows.is_canvas)


class TaughtRows:
    """A teacher's answers to the prompts of another source, kept in a folder for a run that is resumed."""

    def __init__(self, teacher: Denoising, source: RowSource, config: DiffusionConfig, folder: Path) -> None:
        self._source = source
        self._config = config
        self._rows = _read_or_write(teacher, source, config, folder)
        digest = hashlib.blake2b(self._rows.token_ids.numpy().tobytes(), digest_size=12)
        self.fingerprint = f"{source.fingerprint} {digest.hexdigest()}"
        self.tokens_per_step = config.batch_size * self._rows.token_ids.shape[1]

    def batch(self, step: int) -> Rows:
        random = np.random.default_rng((self._config.seed, step, 4))
        chosen = torch.from_numpy(random.integers(0, len(self._rows.token_ids), self._config.batch_size))
        return Rows(self._rows.token_ids[chosen], self._rows.is_canvas[chosen])

    def prompts(self, num_rows: int) -> Rows:
        return self._source.prompts(num_rows)

    def held_out(self) -> list[Rows]:
        return self._source.held_out()


def _read_or_write(teacher: Denoising, source: RowSource, config: DiffusionConfig, folder: Path) -> Rows:
    wanted = f"{source.fingerprint} {config.teacher} {config.teacher_answers} {config.seed}"
    name = hashlib.blake2b(wanted.encode(), digest_size=12).hexdigest()
    path = folder / f"taught-{name}.safetensors"
    if not path.exists():
        asked = source.prompts(config.teacher_answers)
        parts = zip(
            torch.split(asked.token_ids, config.batch_size),
            torch.split(asked.is_canvas, config.batch_size),
            strict=True,
        )
        written = torch.cat([write_greedily(teacher, Rows(*part)).token_ids for part in parts])
        tensors = {"token_ids": written, "is_canvas": asked.is_canvas}
        write_whole(path, lambda temporary: save_file(tensors, temporary), "teacher's answers")
    stored = load_file(path)
    return Rows(stored["token_ids"], stored["is_canvas"])


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """One block of each row, in two halves; whatever the canvas holds after the block is always masked."""

    first: Tensor  # bool [rows, length]
    second: Tensor  # bool [rows, length]: the rest of the block
    after: Tensor  # bool [rows, length]


def halve(is_canvas: Tensor, block_size: int, random: np.random.Generator) -> Halves:
    """Draws a block of each row's canvas, counted from the start of the canvas, and halves it at random."""
    number = torch.cumsum(is_canvas, 1) - 1
    num_blocks = -(-is_canvas.sum(1) // block_size)
    chosen = (torch.from_numpy(random.random(len(is_canvas))) * num_blocks).long()
    block = torch.where(is_canvas, number // block_size, -1)
    is_inside = block == chosen[:, None]
    is_first = torch.from_numpy(random.random(tuple(is_canvas.shape)) < 0.5)
    return Halves(is_inside & is_first, is_inside & ~is_first, block > chosen[:, None])


def certainty_loss(
    denoising: Denoising, rows: Rows, halves: Halves, weight: float, temperature: float
) -> Tensor:
    """Cross-entropy of both halves, each seen with the other, and `weight` of their entropies."""
    total = torch.zeros((), device=rows.token_ids.device)
    for half in (halves.first, halves.second):
        is_masked = half | halves.after
        logits = denoising.hidden_logits(rows.token_ids, is_masked)[half[is_masked]]
        tokens = rows.token_ids[half]
        if len(tokens):
            entropy = entropy_where_right(logits, tokens, temperature)
            total = total + functional.cross_entropy(logits, tokens) + weight * entropy
    return total


def entropy_where_right(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Mean entropy, nats, of the positions [positions, vocab] whose most likely token is the right one.

    Zero, with no gradient, where none is.
    """
    is_right = logits.argmax(-1) == tokens
    # An infinite logit has no gradient; this one has probability 0 as well.
    log_probs = (logits.clamp(min=-1e4) / temperature).log_softmax(-1)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    return (entropies * is_right).sum() / is_right.sum().clamp(min=1)


def certainty_of_step(
    denoising: Denoising, source: TaughtRows, config: DiffusionConfig
) -> Callable[[int], Tensor]:
    """The loss of each step, a function of the step and the seed."""

    def loss(step: int) -> Tensor:
        rows = source.batch(step)
        random = np.random.default_rng((config.seed, step, 3))
        halves = halve(rows.is_canvas, config.certainty_block, random)
        device = denoising.model.device
        parts = (part.to(device) for part in (halves.first, halves.second, halves.after))
        return certainty_loss(
            denoising, rows.to(device), Halves(*parts), config.certainty_weight, config.certainty_temperature
        )

    return loss
