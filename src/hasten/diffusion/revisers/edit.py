"""Written tokens are replaced where the model is sure of others: LLaDA2.1's editing (arXiv 2602.08676).

Works best on denoisers trained to correct text; one that only learned to fill masks mostly agrees with what
it sees, see the transform "unseen".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core import System
from hasten.diffusion.base import Reviser, Strategy, Wants
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.revisers.remask import written_before
from hasten.diffusion.steps import DenoisingStep, Revision, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="token-editing",
    title="LLaDA2.1: Speeding Up Text Diffusion via Token Editing",
    arxiv="2602.08676",
    kind="diffusion reviser",
    guarantee="approximate",
    module="hasten.diffusion.revisers.edit",
    summary="replaces written tokens of the block where the model is sure of others (edit)",
)


@dataclass
class _Passes:
    num_after_end: int = 0
    """passes of this block since it is full"""


@dataclass(frozen=True)
class Edit(Reviser):
    """Replaces a token of the block by another whose probability is at least ``tau``.

    A block that is full is predicted again as long as that changes something, at most ``steps`` times.
    """

    name: ClassVar[str] = "edit"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants: ClassVar[Wants] = "block"
    published_with: ClassVar[str | None] = "threshold"
    tau: float = 0.9
    steps: int = 16

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"edit: steps={self.steps} cannot work; it must be 0 or more")

    def start(self, canvas: Canvas) -> _Passes:
        return _Passes()

    def revise(self, step: DenoisingStep, selection: Selection, state: _Passes) -> Revision:
        if step.forward_in_block == 0:
            state.num_after_end = 0
        present = written_before(step, selection)
        better = step.prediction.at(present.positions)
        is_other = better.token_ids != present.token_ids
        changed = np.flatnonzero(is_other & (better.confidence >= self.tau))
        is_full = not len(step.canvas.open_in(step.block))
        looks_again = (
            is_full and state.num_after_end < self.steps and len(changed) + len(selection.positions) > 0
        )
        state.num_after_end += looks_again
        return Revision(
            edited=present.positions[changed], token_ids=better.token_ids[changed], looks_again=looks_again
        )

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if spec.noise == "uniform":
            return "every position is written again anyway; choose 'renoise' or 'editable'"
        if strategy.constraint is not None:
            return "an edit may leave the constraint's language; choose 'remask'"
        return None
