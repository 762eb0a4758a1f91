"""The limit of parallel decoding: writes every candidate that is right, given the right text.

"Extremely greedy parallel" of Learn2PD (arXiv 2509.25188), a measure and not a way to write: it needs to be
told the answer. What a learned selector can save at most is what this one saves, and its steps are what a
confidence filter learns from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.diffusion.base import Selector
from hasten.diffusion.canvas import Ids
from hasten.diffusion.steps import DenoisingStep, Selection


@dataclass(frozen=True, eq=False)
class Oracle(Selector):
    """Commits the candidates that equal ``answer``, int64 [length of the canvas].

    Where none does, the surest position gets its token of the answer, so the text always is the answer.
    """

    name: ClassVar[str] = "oracle"
    answer: Ids

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        prediction = step.open
        answer = self.answer[prediction.positions]
        chosen = prediction.token_ids == answer
        if not chosen.any():
            chosen[prediction.confidence.argmax()] = True
        return Selection(prediction.positions[chosen], answer[chosen])
