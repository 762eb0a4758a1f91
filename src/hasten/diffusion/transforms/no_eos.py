"""No end of text before the canvas is full, or only late: LLaDA's two options (arXiv 2502.09992).

Models trained on answers padded with end-of-text tokens are sure of these first, and end texts early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hasten.core import Guarantee
from hasten.diffusion.base import Helpers, Strategy, Transform
from hasten.diffusion.canvas import DenoiserSpec, Prediction
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError


@dataclass(frozen=True)
class NoEos(Transform):
    """Bans end-of-text tokens at the first ``positions`` new positions; 0: everywhere.

    It changes the question, so the reference does the same. The text form takes ``eos_ids`` from the
    denoiser.
    """

    name: ClassVar[str] = "no-eos"
    guarantee: ClassVar[Guarantee] = "exact"
    positions: int = 0
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.positions < 0:
            raise ConfigError(f"no-eos:{self.positions} cannot work; give 1 or more, or 0 for everywhere")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> NoEos:
        return cls(eos_ids=() if helpers.spec is None else helpers.spec.eos_ids, **values)

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Any) -> Prediction:
        prediction = step.prediction
        first_free = step.canvas.prompt_length + self.positions if self.positions else len(step.canvas)
        logits = prediction.logits.clone()
        rows = torch.from_numpy(prediction.positions < first_free).to(logits.device)
        for eos_id in self.eos_ids:
            logits[:, eos_id].masked_fill_(rows, -torch.inf)
        return prediction.with_logits(logits)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if not self.eos_ids:
            return "this denoiser names no end-of-text token; add eos_ids to its spec"
        if strategy.constraint is not None:
            return "a constraint may need an end of text where this bans it; let it tell the length"
        return None
