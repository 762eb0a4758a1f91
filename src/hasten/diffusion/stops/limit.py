"""A bound on forward passes: what is left is written at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import StopPolicy, Strategy, Wants
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Finish
from hasten.errors import ConfigError


@dataclass(frozen=True)
class Limit(StopPolicy):
    """From pass number ``passes`` on, every prediction is written as far as it reaches.

    A pass that was made ahead counts like any other, so that the text does not depend on it. Where a
    prediction does not reach the end, as with a cache or a block-causal denoiser, one pass a block follows.
    """

    name: ClassVar[str] = "limit"
    wants: ClassVar[Wants] = "canvas"
    ends_open: ClassVar[bool] = True
    passes: int = 64

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ConfigError(f"limit:{self.passes} cannot work; at least one pass is made")

    def before_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        return Finish(fills=True) if step.forward + 1 >= self.passes else None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.attention == "encoder-decoder":
            return "this denoiser predicts no later block before it comes; choose 'stable:steps=64'"
        return None
