"""ADJUST (arXiv 2509.22738): several tokens a forward pass, each drawn given those before it.

After a forward pass a sampler of one layer predicts anew for every token that is written, see
``models.joint_sampler``. With a sampler that is always right the text has the law of writing one token a
forward pass; a trained one comes near to it, which drawing all tokens from one prediction does not.
Transforms change the prediction of the forward pass alone; tokens that they ban stay banned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from hasten.core import Guarantee, System
from hasten.diffusion.base import Helpers, Selector, Strategy
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.revealing import Revealing, given_sampler, refuses_sampler, revealed
from hasten.diffusion.selectors.static import Static
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="joint",
    title="Enabling Approximate Joint Sampling in Diffusion LMs",
    arxiv="2509.22738",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.joint",
    summary="one layer predicts anew for each further token (policy joint, hasten train joint)",
)


@dataclass(frozen=True)
class Joint(Selector):
    """``tokens`` positions a forward pass, those of least entropy first; the first needs no sampler.

    Raises ConfigError for less than one token.
    """

    name: ClassVar[str] = "joint"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants_hidden: ClassVar[bool] = True
    tokens: int = 4
    sampler: Revealing = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"joint:{self.tokens} cannot work; at least one token a forward is written")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Joint:
        return cls(**values, sampler=given_sampler(helpers, cls.name))

    @property
    def guarantee(self) -> Guarantee:
        return "exact" if self.tokens == 1 else "approximate"

    @property
    def reference(self) -> Selector:
        return Static(1, "entropy")

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        now, written = step, []
        for number in range(min(self.tokens, step.num_open)):
            if number:
                now = revealed(self.sampler, now, now.open.positions)
            row = now.open.entropy.argmin()
            canvas = now.canvas.fork()
            canvas.commit(now.open.positions[[row]], now.open.token_ids[[row]])
            written.append(int(now.open.positions[row]))
            now = replace(now, canvas=canvas)
        positions = np.array(sorted(written))
        return Selection(positions, now.canvas.token_ids[positions])

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        return refuses_sampler(strategy, spec)
