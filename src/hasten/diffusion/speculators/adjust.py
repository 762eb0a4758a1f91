"""FreeDave (arXiv 2510.00294) with ADJUST's sampler (arXiv 2509.22738) as the one that guesses.

FreeDave foresees the next canvases from the last prediction, which knows nothing of the tokens written since.
Here a sampler of one layer predicts each foreseen canvas anew. The combination is this project's own. The
sampler only chooses which canvases are predicted ahead, so the text is that of the same policies without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hasten.core import System
from hasten.diffusion.base import Helpers, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.revealing import Revealing, given_sampler, refuses_sampler, revealed
from hasten.diffusion.speculators.freedave import FreeDave
from hasten.diffusion.steps import DenoisingStep


@dataclass(frozen=True)
class Adjust(FreeDave):
    """At most ``depth`` canvases in one forward pass, the present one included."""

    name: ClassVar[str] = "adjust"
    systems: ClassVar[tuple[System, ...]] = ()
    wants_hidden: ClassVar[bool] = True
    sampler: Revealing = field(kw_only=True)

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Adjust:
        return cls(**values, sampler=given_sampler(helpers, cls.name))

    def imagined(self, step: DenoisingStep, state: Any) -> DenoisingStep:
        return revealed(self.sampler, step, step.prediction.positions)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return super().refuses(strategy, spec) or refuses_sampler(strategy, spec)
