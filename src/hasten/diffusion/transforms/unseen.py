"""Written tokens judged as if they were not there: the check of WINO (arXiv 2507.18578).

A denoiser that sees a token mostly agrees with it. Here each written position of the block is predicted on
a canvas of its own where it is masked, in the same forward pass, so that revisers learn what the rest of
the text says about it. The authors get that from one block of extra masked rows with an attention mask of
its own; whole canvases cost more rows and run on any denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from hasten.core import System
from hasten.diffusion.base import Helpers, Strategy, Transform, Wants
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction, Query
from hasten.diffusion.steps import DenoisingStep
from hasten.errors import ConfigError

SYSTEM = System(
    name="wino",
    title="Wide-In, Narrow-Out: Revokable Decoding for Efficient and Effective DLLMs",
    arxiv="2507.18578",
    kind="diffusion transform",
    guarantee="approximate",
    module="hasten.diffusion.transforms.unseen",
    summary="writes boldly and takes back what the rest of the text does not support "
    "(threshold:0.6+unseen+remask:0.9)",
)


@dataclass(frozen=True)
class Unseen(Transform):
    """Predicts the ``tokens`` positions of the block that were written last without showing them."""

    name: ClassVar[str] = "unseen"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    wants: ClassVar[Wants] = "block"
    published_with: ClassVar[str | None] = "threshold"
    tokens: int = 32
    spec: DenoiserSpec | None = None
    """names the mask token; the text form takes it from the denoiser"""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"unseen:{self.tokens} cannot work; at least one position is predicted anew")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Unseen:
        return cls(spec=helpers.spec, **values)

    def extra_queries(self, query: Query, canvas: Canvas) -> list[Query]:
        written = query.wanted[~canvas.is_open[query.wanted] & ~canvas.is_given[query.wanted]]
        latest = written[np.argsort(-canvas.committed_at[written], kind="stable")][: self.tokens]
        return [self._without(query, position) for position in np.sort(latest)]

    def _without(self, query: Query, position: int) -> Query:
        assert self.spec is not None
        assert self.spec.mask_id is not None
        token_ids = query.token_ids.copy()
        token_ids[position] = self.spec.mask_id
        wanted = np.array([position])
        return replace(
            query, token_ids=token_ids, wanted=wanted, computed=None, stores=False, wants_hidden=False
        )

    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Any) -> Prediction:
        if not extras:
            return step.prediction
        rows = step.prediction.rows_of(np.concatenate([one.positions for one in extras]))
        logits = step.prediction.logits.clone()
        logits[torch.from_numpy(rows).to(logits.device)] = torch.cat([one.logits for one in extras])
        return step.prediction.with_logits(logits)

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        if self.spec is None:
            return "it does not know the mask token; give it spec="
        if spec.mask_id is None:
            return "this denoiser has no mask token, which would have to hide a written one; leave it out"
        if not any(one.wants == "block" for one in strategy.revisers):
            return "nothing here judges written tokens; add 'remask' or 'edit'"
        return None
