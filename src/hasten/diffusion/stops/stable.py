"""The end of DiffusionGemma's denoising: best guesses that stay the same, and are sure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hasten.diffusion.base import StopPolicy, Strategy
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Ids
from hasten.diffusion.steps import DenoisingStep, Finish
from hasten.diffusion.stops.fixed_point import refuses_masks
from hasten.errors import ConfigError


@dataclass
class _Seen:
    guesses: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    since: int = 0
    """passes since the guesses last changed"""


@dataclass(frozen=True)
class Stable(StopPolicy):
    """Ends a block when its candidates were the same for ``patience`` more passes and are sure on average.

    Sure is a mean entropy below ``entropy`` nats. After ``steps`` passes it ends at the latest. The
    defaults are DiffusionGemma's, which compares and keeps arg-max tokens; here it is the candidates, so
    that a text can be sampled.
    """

    name: ClassVar[str] = "stable"
    ends_open: ClassVar[bool] = True
    patience: int = 1
    entropy: float = 0.005
    steps: int = 48

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(
                f"stable:{self.patience} cannot work; guesses are the same for at least one pass"
            )
        if self.steps < 1:
            raise ConfigError(f"stable: steps={self.steps} cannot work; it takes at least one pass")

    def start(self, canvas: Canvas) -> _Seen:
        return _Seen()

    def before_commit(self, step: DenoisingStep, state: _Seen) -> Finish | None:
        prediction = step.open
        if not len(prediction.positions):
            return None
        is_same = step.forward_in_block > 0 and np.array_equal(prediction.token_ids, state.guesses)
        state.since = state.since + 1 if is_same else 0
        state.guesses = prediction.token_ids
        is_done = state.since >= self.patience and prediction.entropy.mean() < self.entropy
        return Finish(fills=True) if is_done or step.forward_in_block + 1 >= self.steps else None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_masks(spec)
