"""Teaches a sigma-GPT (arXiv 2404.09562) to read texts in any order.

Each text is read in an order of its own: some of its positions from left to right, as decoding reads what is
known, then the others at random, as a burst's chain reveals them. Every token is predicted from those before
it. Knows token ids; where they come from is its caller's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hasten.diffusion.canvas import Ids
from hasten.diffusion.denoisers.sigma_gpt import PermutedRows, SigmaGPT
from hasten.errors import ConfigError, ModelError
from hasten.training.loop import Progress

_NOTHING: Ids = np.empty(0, dtype=np.int64)


def train_sigma_gpt(
    model: SigmaGPT,
    texts: Ids,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> float:
    """Trains in place and returns the mean loss of the last tenth of the steps, in nats a token.

    Args:
        texts: int64 [texts, length], of one length; without mask tokens.
        learning_rate: falls to 0 along half a cosine.

    Raises ConfigError for texts that do not fit, and ModelError when the loss is no number any more.
    """
    if texts.ndim != 2 or not 1 <= texts.shape[1] <= model.max_length or (texts == model.spec.mask_id).any():
        raise ConfigError(
            f"texts of shape {texts.shape} cannot be learnt; give whole texts of one length up to "
            f"{model.max_length}, without the mask token"
        )
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = texts[random.integers(0, len(texts), batch_size)]
        loss = order_loss(model, chosen, [reading_order(texts.shape[1], random) for _ in chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ModelError(f"loss is {losses[-1]} at step {step + 1}; lower learning_rate")
        if progress is not None:
            progress(step + 1, steps, {"loss": losses[-1], "gradient_norm": norm.item()})
    model.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def reading_order(length: int, random: np.random.Generator) -> Ids:
    """A permutation: the first few, any number of them, ascend."""
    order = random.permutation(length)
    known = int(random.integers(0, length + 1))
    order[:known].sort()
    return order


def order_loss(model: SigmaGPT, texts: Ids, orders: list[Ids]) -> Tensor:
    """Mean cross-entropy of the tokens of texts [texts, length], each read in its order."""
    begin_id = model.spec.mask_id
    assert begin_id is not None
    asked = [
        PermutedRows.chain(text, _NOTHING, order, begin_id) for text, order in zip(texts, orders, strict=True)
    ]
    logits = torch.cat(model(asked))
    labels = np.concatenate([text[order] for text, order in zip(texts, orders, strict=True)])
    return functional.cross_entropy(logits, torch.from_numpy(labels).to(logits.device))
