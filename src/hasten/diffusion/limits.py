"""A constraint at work on one canvas: it masks predictions, and admits commits one after the other."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

import numpy as np
import torch

from hasten.constraints.base import Constraint, ConstraintRun
from hasten.diffusion.canvas import Block, Canvas, Prediction
from hasten.diffusion.steps import Selection


class Limits:
    """Keeps each of some spans of a canvas in the constraint's language.

    Raises ConfigError where no text of a span's length is in the language.
    """

    def __init__(
        self,
        constraint: Constraint,
        spans: AbstractSequence[Block],
        eos_ids: AbstractSequence[int],
        vocab_size: int,
    ) -> None:
        self._runs = [(span, constraint.start(span, eos_ids, vocab_size)) for span in spans]

    def _run_at(self, position: int) -> ConstraintRun:
        return next(run for span, run in self._runs if span.start <= position < span.end)

    def masked(self, canvas: Canvas, prediction: Prediction) -> Prediction:
        """-inf for every token after which no completion would be left."""
        banned = np.zeros(prediction.logits.shape, dtype=bool)
        for span, run in self._runs:
            asked = prediction.positions
            is_inside = (asked >= span.start) & (asked < span.end) & canvas.is_open[asked]
            if is_inside.any():
                allowed = run.allowed(canvas.token_ids, canvas.is_open)
                for row in np.flatnonzero(is_inside).tolist():
                    banned[row] = ~allowed.at(int(asked[row]))
        mask = torch.from_numpy(banned).to(prediction.logits.device)
        return prediction.with_logits(prediction.logits.masked_fill(mask, -torch.inf))

    def admitted(self, canvas: Canvas, prediction: Prediction, selection: Selection) -> Selection:
        """The commits that leave a completion, each judged with the surer ones before it.

        The surest is always among them, because its token was left by ``masked``.
        """
        sureness = prediction.at(selection.positions).with_tokens(selection.token_ids).confidence
        ids, is_open, kept = canvas.token_ids.copy(), canvas.is_open.copy(), []
        for row in np.argsort(-sureness, kind="stable").tolist():
            position, token_id = int(selection.positions[row]), int(selection.token_ids[row])
            if self._run_at(position).admit(ids, is_open, position, token_id):
                ids[position], is_open[position] = token_id, False
                kept.append(row)
        kept.sort()
        return Selection(selection.positions[kept], selection.token_ids[kept])
