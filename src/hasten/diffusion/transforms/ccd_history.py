"""Predictions averaged over the last forward passes: CCD (arXiv 2512.02044).

A position's law under several contexts, averaged, has a low entropy only where the position depends little on
what was written in between, so that choosing by its entropy prefers coherent positions. With "ccd-ds" as
selector it also writes several tokens at once. Every open row is remembered, [depth - 1, rows, vocab].
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hasten.core import System
from hasten.diffusion.base import Transform
from hasten.diffusion.canvas import Canvas, Ids, Prediction
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="ccd",
    title="Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
    arxiv="2512.02044",
    kind="diffusion transform",
    guarantee="approximate",
    module="hasten.diffusion.transforms.ccd_history",
    summary="chooses by the entropy of predictions averaged over the last forward passes (ccd)",
)


@dataclass(frozen=True, eq=False)
class _Law:
    positions: Ids
    probs: torch.Tensor
    """[rows, vocab]"""


Past = deque[_Law]


@dataclass(frozen=True)
class CcdHistory(Transform):
    """The mean law of the last ``depth`` forward passes of the block, the present one included."""

    name: ClassVar[str] = "ccd"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    published_with: ClassVar[str | None] = "static:order=entropy"
    depth: int = 2

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"ccd:{self.depth} cannot work; the present prediction alone is 1")

    def start(self, canvas: Canvas) -> Past:
        return deque(maxlen=self.depth - 1)

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Past) -> Prediction:
        if step.forward_in_block == 0:
            state.clear()
        present = step.everywhere
        averaged = _averaged(step.prediction, present.positions, state)
        state.append(_Law(present.positions, present.probs))
        return averaged


def _averaged(prediction: Prediction, still_open: Ids, past: Past) -> Prediction:
    """Each open position's mean over the passes that predicted it; others stay as they are."""
    total = prediction.probs.clone()
    counts = np.ones(len(prediction.positions))
    for law in past:
        rows = np.flatnonzero(np.isin(prediction.positions, np.intersect1d(still_open, law.positions)))
        before = np.searchsorted(law.positions, prediction.positions[rows])
        total[torch.from_numpy(rows).to(total.device)] += law.probs[torch.from_numpy(before).to(total.device)]
        counts[rows] += 1
    changed = torch.from_numpy(counts > 1).to(total.device)[:, None]
    mean = total / torch.from_numpy(counts).to(total)[:, None]
    return prediction.with_logits(torch.where(changed, mean.log(), prediction.logits))
