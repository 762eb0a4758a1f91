"""Classifier-free guidance: away from what the model would write without the prompt (arXiv 2207.12598).

LLaDA (arXiv 2502.09992) masks the prompt for the second prediction, which costs a second canvas in every
forward pass. It belongs to the question rather than to the way it is answered: the reference is guided too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hasten.core import Guarantee, System
from hasten.diffusion.base import Helpers, Strategy, Transform
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction, Query
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="guidance",
    title="Classifier-Free Diffusion Guidance",
    arxiv="2207.12598",
    kind="diffusion transform",
    guarantee="exact",
    module="hasten.diffusion.transforms.cfg",
    summary="strengthens what the prompt adds, by a second prediction with the prompt masked (cfg)",
)


@dataclass(frozen=True)
class Guidance(Transform):
    """Logits become ``without + (scale + 1) * (with - without)``; 0 leaves them as they are.

    The second prediction computes every row, whatever the cache, because no stored row was seen without the
    prompt.
    """

    name: ClassVar[str] = "cfg"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    guarantee: ClassVar[Guarantee] = "exact"
    scale: float = 1.0
    spec: DenoiserSpec | None = None
    """names the mask token; the text form takes it from the denoiser"""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ConfigError(f"cfg:{self.scale} cannot work; the scale is 0 (none) or more, and finite")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Guidance:
        return cls(spec=helpers.spec, **values)

    def extra_queries(self, query: Query, canvas: Canvas) -> list[Query]:
        assert self.spec is not None
        assert self.spec.mask_id is not None
        token_ids = query.token_ids.copy()
        token_ids[canvas.is_given] = self.spec.mask_id
        return [replace(query, token_ids=token_ids, computed=None, stores=False, wants_hidden=False)]

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Any) -> Prediction:
        guided, free = step.prediction.logits, extras[0].logits
        mixed = (1 + self.scale) * guided - self.scale * free
        return step.prediction.with_logits(torch.where(torch.isfinite(free), mixed, guided))

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if self.spec is None:
            return "it does not know the mask token; give it spec="
        if spec.mask_id is None:
            return "this denoiser has no mask token, which would have to hide the prompt; leave it out"
        return None
