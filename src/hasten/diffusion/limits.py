"""A constraint at work on one canvas: it masks predictions, and admits commits one after the other."""

from __future__ import annotations

import numpy as np
import torch

from hasten.canvas import Canvas, DenoiserSpec, Prediction
from hasten.diffusion.base import Selection
from hasten.diffusion.constraints.base import Constraint


class Limits:
    """Keeps one canvas in the constraint's language.

    Raises ConfigError where nothing of the canvas's length is in the language.
    """

    def __init__(self, constraint: Constraint, canvas: Canvas, spec: DenoiserSpec, vocab_size: int) -> None:
        start = int((~canvas.is_given).argmax())
        self._run = constraint.start((start, len(canvas)), spec.eos_ids, vocab_size)

    def masked(self, canvas: Canvas, prediction: Prediction) -> Prediction:
        """-inf for every token after which no completion would be left."""
        allowed = self._run.allowed(canvas.token_ids, canvas.is_open)
        banned = np.zeros(prediction.logits.shape, dtype=bool)
        for row in np.flatnonzero(canvas.is_open[prediction.positions]).tolist():
            banned[row] = ~allowed.at(int(prediction.positions[row]))
        mask = torch.from_numpy(banned).to(prediction.logits.device)
        return prediction.with_logits(prediction.logits.masked_fill(mask, -torch.inf))

    def admitted(self, canvas: Canvas, prediction: Prediction, selection: Selection) -> Selection:
        """The commits that leave a completion, each judged with the surer ones before it.

        The surest is always among them, because its token was left by ``masked``.
        """
        sureness = prediction.at(selection.positions).with_tokens(selection.token_ids).confidence
        ids, is_open, kept = canvas.token_ids.copy(), canvas.is_open.copy(), []
        for row in np.argsort(-sureness, kind="stable"):
            position, token_id = int(selection.positions[row]), int(selection.token_ids[row])
            if self._run.admit(ids, is_open, position, token_id):
                ids[position], is_open[position] = token_id, False
                kept.append(int(row))
        kept.sort()
        return Selection(selection.positions[kept], selection.token_ids[kept])
