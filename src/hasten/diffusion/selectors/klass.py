"""Tokens that are sure and whose law has stopped moving: KLASS (arXiv 2511.05664)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Canvas, Ids, Prediction
from hasten.diffusion.selectors.threshold import is_sure
from hasten.diffusion.steps import NONE, DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="klass",
    title="KLASS: KL-Guided Fast Inference in Masked Diffusion Models",
    arxiv="2511.05664",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.klass",
    summary="sure tokens whose law hardly changed in the last forward passes (klass)",
)


@dataclass(eq=False)
class _Past:
    """What the last forward pass of the block predicted."""

    quiet: Ids
    """int64 [length]: forward passes in a row that hardly changed the law of a position"""
    positions: Ids
    probs: torch.Tensor | None = None
    """[rows, vocab] at ``positions``"""


@dataclass(frozen=True)
class Klass(Selector):
    """Commits candidates of at least ``tau`` where the last ``history`` changes were below ``kl`` nats each.

    A change is the Kullback-Leibler divergence of a position's law from that of the forward pass before it.
    Where no position qualifies, the surest is written.
    """

    name: ClassVar[str] = "klass"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    tau: float = 0.9
    kl: float = 0.01
    history: int = 2

    def __post_init__(self) -> None:
        if not (self.tau >= 0 and self.kl > 0):
            raise ConfigError(
                f"klass:tau={self.tau},kl={self.kl} cannot work; tau is a probability, kl is above 0"
            )
        if self.history < 1:
            raise ConfigError(f"history={self.history} cannot work; at least one change is looked at")

    def start(self, canvas: Canvas) -> _Past:
        return _Past(np.zeros(len(canvas), dtype=np.int64), NONE)

    def select(self, step: DenoisingStep, state: _Past) -> Selection:
        prediction = step.open
        self._observe(prediction, state, is_first=step.forward_in_block == 0)
        is_quiet = state.quiet[prediction.positions] >= self.history
        chosen = is_sure(prediction.confidence, self.tau) & is_quiet
        if not chosen.any():
            chosen[prediction.confidence.argmax()] = True
        return Selection.of(prediction, chosen)

    def _observe(self, prediction: Prediction, state: _Past, *, is_first: bool) -> None:
        positions = prediction.positions
        is_still = np.zeros(len(positions), dtype=bool)
        if state.probs is not None and not is_first:
            is_known = np.isin(positions, state.positions)
            before = torch.from_numpy(np.searchsorted(state.positions, positions[is_known]))
            now = prediction.probs[torch.from_numpy(is_known).to(prediction.probs.device)]
            is_still[is_known] = _divergence(now, state.probs[before.to(now.device)]) < self.kl
        state.quiet[positions] = np.where(is_still, state.quiet[positions] + 1, 0)
        state.positions, state.probs = positions, prediction.probs


def _divergence(law: torch.Tensor, before: torch.Tensor) -> NDArray[np.float64]:
    """float64 [rows]: nats; infinite where a token became possible."""
    law, before = law.double(), before.double()
    change = torch.special.xlogy(law, law) - torch.special.xlogy(law, before)
    return np.asarray(change.sum(-1).cpu().numpy())
