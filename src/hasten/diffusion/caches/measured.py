"""A cache that is used where its error was measured, on this very text, and is small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hasten.diffusion.base import CachePolicy, Strategy
from hasten.diffusion.caches.deviation import Deviation
from hasten.diffusion.caches.stored import StoredRows
from hasten.diffusion.caches.vicinity import Vicinity
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction
from hasten.diffusion.steps import Plan, Turn
from hasten.errors import ConfigError


@dataclass(slots=True)
class _Trial:
    rows: StoredRows
    deviation: Deviation = field(default_factory=Deviation)


@dataclass(frozen=True)
class Measured(CachePolicy):
    """The vicinity cache, if at most ``limit`` of its likeliest tokens are others than without it.

    The first ``probation`` predictions of a text are made both ways and the text follows those without the
    cache; what was found then decides for its rest. So a text depends on no other one.
    """

    name: ClassVar[str] = "measured"
    limit: float = 0.05
    probation: int = 128

    def __post_init__(self) -> None:
        if not (0 <= self.limit <= 1 and self.probation >= 1):
            raise ConfigError(
                f"measured:limit={self.limit},probation={self.probation} cannot work; limit is a share from "
                "0 to 1, probation at least 1 prediction"
            )

    def start(self, canvas: Canvas) -> _Trial:
        return _Trial(Vicinity().start(canvas))

    def plan(self, turn: Turn, state: _Trial) -> Plan:
        plan = Vicinity().plan(turn, state.rows)
        if plan.computed is None:
            return plan
        if state.deviation.num_predictions < self.probation:
            return Plan(compared=plan)
        return plan if state.deviation.disagreement <= self.limit else Plan()

    def compare(self, prediction: Prediction, compared: Prediction, state: _Trial) -> None:
        state.deviation.add(compared, prediction.at(compared.positions))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return Vicinity().refuses(strategy, spec)
