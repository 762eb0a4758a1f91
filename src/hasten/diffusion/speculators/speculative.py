"""Speculative sampling on a canvas: fewer forward passes, and texts of the same law (arXiv 2211.17192).

The last prediction fills the next positions of a known order; the canvases this gives are predicted in one
forward pass. When a position comes up, its drafted token is weighed against its true law, and where it is
kept the canvas is one that was predicted. FreeDave asks that the same noise picks the same token from both
laws; weighing keeps a token as often as any coupling of the two laws can, and gives up the seed's own text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hasten.core import Guarantee, System
from hasten.diffusion.base import Speculator, Strategy
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.rejection import weighed
from hasten.diffusion.speculators.freedave import refuses_lookahead
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="speculative",
    title="Fast Inference from Transformers via Speculative Decoding",
    arxiv="2211.17192",
    kind="diffusion speculator",
    guarantee="distribution",
    module="hasten.diffusion.speculators.speculative",
    summary="drafts a canvas in a known order from its own last prediction, keeps tokens by min(1, p/q)",
)

STREAM = 5
"""of the random numbers that weigh a position's draft"""

Drafts = dict[int, tuple[int, torch.Tensor]]
"""position -> its drafted token, and the logits [vocab] that it was drawn from"""


@dataclass(frozen=True)
class Speculative(Speculator):
    """At most ``depth`` canvases in one forward pass, the present one included.

    The text of a seed is another than without it; its law is the same. Greedy, the text is the same. Why:
    how many positions are drafted depends on no token; a position's draft, which has the noise of its
    candidates, is looked at once, when it is weighed with random numbers of its own; and a position without a
    draft takes its candidate, whose noise is fresh.
    """

    name: ClassVar[str] = "speculative"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    guarantee: ClassVar[Guarantee] = "distribution"
    depth: int = 8

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"speculative:{self.depth} cannot work; the present canvas alone is 1")

    def start(self, canvas: Canvas) -> Drafts:
        return {}

    def drafts(self, step: DenoisingStep, guesses: Iterator[Canvas], state: Drafts) -> list[Canvas]:
        state.clear()  # drafts of an earlier pass end where one was not kept
        canvases = list(itertools.islice(guesses, self.depth - 1))
        if canvases:
            last = canvases[-1]
            positions = np.flatnonzero(step.canvas.is_open & ~last.is_open)
            rows = step.prediction.at(positions).logits
            for position, row in zip(positions.tolist(), rows, strict=True):
                state[position] = int(last.token_ids[position]), row
        return canvases

    def settle(self, step: DenoisingStep, selection: Selection, draw: Drawing, state: Drafts) -> Selection:
        token_ids = selection.token_ids.copy()
        for place, position in enumerate(selection.positions.tolist()):
            if position in state:
                token_id, drafted_from = state.pop(position)
                row = int(step.prediction.rows_of(selection.positions[place : place + 1])[0])
                drafted, law = (
                    draw.law(logits).cpu().numpy() for logits in (drafted_from, step.prediction.logits[row])
                )
                token_ids[place] = weighed(token_id, drafted, law, draw.generator(position, STREAM))
        return Selection(selection.positions, token_ids)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        selector = strategy.selector
        if not (selector.order_is_known and selector.guarantee == "exact"):
            return (
                "it drafts positions in an order known in advance, one a step, and selector "
                f"{selector.name!r} decides by what was predicted or writes several; choose "
                "'static:order=random' or 'static:order=left-to-right'"
            )
        return refuses_lookahead(strategy)
