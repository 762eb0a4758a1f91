"""FreeDave: the text of the same policies without it, in fewer forward passes (arXiv 2510.00294).

The last prediction foresees what the selector would write in the next steps; those canvases are predicted in
one forward pass, and each that does come up needs no pass of its own. It is lossless whatever the other
policies are, as long as a prediction depends on nothing but its canvas.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core import Guarantee, System
from hasten.diffusion.base import Speculator, Strategy
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="freedave",
    title="Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language "
    "Models",
    arxiv="2510.00294",
    kind="diffusion speculator",
    guarantee="exact",
    module="hasten.diffusion.speculators.freedave",
    summary="predicts the canvases that the last prediction foresees, in one forward pass",
)


@dataclass(frozen=True)
class FreeDave(Speculator):
    """At most ``depth`` canvases in one forward pass, the present one included."""

    name: ClassVar[str] = "freedave"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    guarantee: ClassVar[Guarantee] = "exact"
    depth: int = 4

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"freedave:{self.depth} cannot work; the present canvas alone is 1")

    def drafts(self, step: DenoisingStep, guesses: Iterator[Canvas], state: Any) -> list[Canvas]:
        return list(itertools.islice(guesses, self.depth - 1))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_lookahead(strategy)


def refuses_lookahead(strategy: Strategy) -> str | None:
    """Why predictions made ahead would not be those of the canvases that come up."""
    if not strategy.cache.is_constant_in_block:
        return (
            f"with cache {strategy.cache.name!r} a prediction depends on when it is made; choose none, "
            "prefix, dual or blocks"
        )
    if strategy.revisers:
        names = ", ".join(one.name for one in strategy.revisers)
        return f"{names} takes tokens back, which cannot be foreseen; leave it out"
    return None
