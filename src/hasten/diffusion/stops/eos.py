"""A written end of text ends the canvas once nothing before it is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core import Guarantee
from hasten.diffusion.base import Helpers, StopPolicy, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.steps import DenoisingStep, Finish


@dataclass(frozen=True)
class EndIsWritten(StopPolicy):
    """Cuts behind the first written end of text as soon as every position before it is written.

    The text up to there is finished, because written tokens stay as they are, so it is the text without
    this. Revisers, which change written tokens, are no part of that promise; they are approximate
    themselves.
    """

    name: ClassVar[str] = "eos"
    guarantee: ClassVar[Guarantee] = "exact"
    cuts_the_end: ClassVar[bool] = True
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> EndIsWritten:
        return cls(eos_ids=() if helpers.spec is None else helpers.spec.eos_ids, **values)

    def after_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        canvas = step.canvas
        is_end = np.isin(canvas.token_ids, self.eos_ids) & ~canvas.is_open & ~canvas.is_given
        ends = np.flatnonzero(is_end)
        if not len(ends) or canvas.is_open[: ends[0]].any():
            return None
        return Finish(length=int(ends[0]) + 1)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if not self.eos_ids:
            return "this denoiser names no end-of-text token; add eos_ids to its spec"
        return None
