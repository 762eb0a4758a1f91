"""Predictions of a small sampler between two forward passes: what "joint" and "adjust" share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch

from hasten.diffusion.base import Helpers, Strategy
from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError


class Revealing(Protocol):
    """Predicts anew after tokens were written, without the model: see ``models.joint_sampler``."""

    def reveal(
        self, token_ids: Ids, positions: Ids, hidden: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [positions, vocab] on this canvas, and hidden states [length, width] for the next call.

        ``hidden`` are those of the last prediction.
        """
        ...


def given_sampler(helpers: Helpers, name: str) -> Any:
    """The sampler that a caller gave. Raises ConfigError where none is."""
    if helpers.sampler is None:
        raise ConfigError(
            f"{name} needs a sampler that was trained for the model: give --joint-sampler FILE, made with "
            "`hasten train joint`"
        )
    return helpers.sampler


def revealed(sampler: Revealing, step: DenoisingStep, positions: Ids) -> DenoisingStep:
    """The step with what the sampler expects at some of the predicted positions, given the step's canvas.

    What the last prediction ruled out, such as the mask token and banned ones, stays ruled out.
    """
    before = step.prediction.at(positions)
    hidden = None if before.hidden is None else before.hidden[: len(step.canvas)]
    logits, hidden = sampler.reveal(step.canvas.token_ids, positions, hidden)
    logits = logits.masked_fill(before.logits.isneginf(), -torch.inf)
    return replace(step, prediction=step.draw(Prediction(positions, logits, hidden)))


def refuses_sampler(strategy: Strategy, spec: DenoiserSpec) -> str | None:
    """Why a sampler's predictions would not be those of the model, or could not be made."""
    if strategy.cache.keeps_rows:
        return (
            "its sampler reads the hidden states of the whole canvas, and with a cache only some are "
            f"computed; leave /{strategy.cache.name} out"
        )
    if spec.attention != "full" or spec.noise != "absorbing":
        return "its sampler is made for full attention and a mask token"
    return None
