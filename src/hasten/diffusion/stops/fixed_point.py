"""The end of unrolled denoising: a canvas that predicts itself (SUNDAE, arXiv 2112.06749).

Without a mask token every position always holds a token, and is written again until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import StopPolicy, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Finish
from hasten.errors import ConfigError


@dataclass(frozen=True)
class FixedPoint(StopPolicy):
    """Ends a block when every candidate is the token that stands there, at the latest after ``steps`` passes.

    Candidates are coupled to their positions, so sampled texts come to rest as greedy ones do.
    """

    name: ClassVar[str] = "fixed-point"
    published_with: ClassVar[str | None] = "unroll"
    ends_open: ClassVar[bool] = True
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"fixed-point:{self.steps} cannot work; it takes at least one pass")

    def before_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        prediction = step.open
        is_same = bool((prediction.token_ids == step.canvas.token_ids[prediction.positions]).all())
        return Finish(fills=True) if is_same or step.forward_in_block + 1 >= self.steps else None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_masks(spec)


def refuses_masks(spec: DenoiserSpec) -> str | None:
    """Why open positions would hold no tokens to start from."""
    if spec.noise == "absorbing":
        return "open positions of this denoiser hold its mask token, not a text; it takes uniform noise"
    return None
