"""Credit for being the best guess again and again: CreditDecoding (arXiv 2510.06133).

A token that was a position's best guess in earlier forward passes is likely to be written there in the end,
even where each single prediction is too unsure. Only best guesses earn credit, so a few numbers a position
hold all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch

from hasten.core import System
from hasten.diffusion.base import Strategy, Transform
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="credit-decoding",
    title="CreditDecoding: Accelerating Parallel Decoding in Diffusion Large Language Models with Trace "
    "Credits",
    arxiv="2510.06133",
    kind="diffusion transform",
    guarantee="approximate",
    module="hasten.diffusion.transforms.credit",
    summary="raises tokens that were the best guess in earlier passes, so that they are sure sooner (credit)",
)

Credits = defaultdict[int, dict[int, float]]
"""position -> token -> credit"""


@dataclass(frozen=True)
class Credit(Transform):
    """Adds ``alpha * log(1 + credit)`` to the logits.

    In each forward pass of a block all credit shrinks to ``beta`` of itself, and the best guess of each
    open position earns its probability to the power ``gamma``. ``slots`` bounds how many tokens of a
    position keep credit, 0 for all. The defaults are the authors'; another published choice is alpha=0.7,
    gamma=0.5, beta=0.65 with slots=8.
    """

    name: ClassVar[str] = "credit"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    published_with: ClassVar[str | None] = "threshold"
    alpha: float = 0.7
    gamma: float = 0.2
    beta: float = 0.8
    slots: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"credit: alpha={self.alpha} cannot work; it must be 0 or more, and finite")
        if not 0 <= self.gamma < math.inf:
            raise ConfigError(f"credit: gamma={self.gamma} cannot work; it must be 0 or more, and finite")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"credit: beta={self.beta} cannot work; it must be between 0 and 1")
        if self.slots < 0:
            raise ConfigError(f"credit: slots={self.slots} cannot work; give 1 or more, or 0 for all tokens")

    def start(self, canvas: Canvas) -> Credits:
        return defaultdict(dict)

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Credits) -> Prediction:
        if step.forward_in_block == 0:
            state.clear()
        prediction = step.everywhere
        best, guesses = prediction.probs.max(-1)
        for position, token, prob in zip(
            prediction.positions.tolist(), guesses.tolist(), best.tolist(), strict=True
        ):
            state[position] = self._earned(state[position], token, prob**self.gamma)
        return step.prediction.with_logits(self._raised(step.prediction, state))

    def _earned(self, credits: dict[int, float], token: int, gain: float) -> dict[int, float]:
        shrunk = {other: self.beta * credit for other, credit in credits.items()}
        shrunk[token] = shrunk.get(token, 0.0) + gain
        if self.slots and len(shrunk) > self.slots:
            del shrunk[min(shrunk, key=lambda other: shrunk[other])]
        return shrunk

    def _raised(self, prediction: Prediction, credits: Credits) -> torch.Tensor:
        places = [
            (row, token, self.alpha * math.log1p(credit))
            for row, position in enumerate(prediction.positions.tolist())
            for token, credit in credits.get(position, {}).items()
        ]
        if not places:
            return prediction.logits
        rows, tokens, gains = zip(*places, strict=True)
        index = tuple(torch.tensor(one, device=prediction.logits.device) for one in (rows, tokens))
        return prediction.logits.index_put(index, prediction.logits.new_tensor(gains), accumulate=True)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.noise == "uniform":
            return "guesses of other noise earn no credit for this one; it takes a denoiser with a mask token"
        return None
