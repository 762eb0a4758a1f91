"""Guided diffusion (FlashDLM, arXiv 2505.21467): a small autoregressive model says how much to write at once.

The denoiser proposes a token for every open position of the block; the guide reads the block filled with
them. From the left, proposals are written up to the first that the guide would not have written, that one
included. So every token is the denoiser's, at least one is written, and the text is neither model's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.diffusion.base import Helpers, Selector
from hasten.diffusion.canvas import Canvas, Ids
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError

SYSTEM = System(
    name="guided",
    title="FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided "
    "Diffusion",
    arxiv="2505.21467",
    kind="diffusion selector",
    guarantee="approximate",
    module="hasten.diffusion.selectors.guided",
    summary="writes from the left while an autoregressive model agrees (policy guided, --guide)",
)


class Guide(Protocol):
    """An autoregressive model with the tokens of the denoiser."""

    def ranks(self, token_ids: Ids, start: int = 0) -> Ids:
        """int64 [len(token_ids) - start]: how many tokens it holds likelier than each from ``start`` on.

        token_ids: int64 [length], a text from its beginning, without open positions. Each token is judged by
        those before it; the first one of a text, which has none, has rank 0.
        """
        ...


@dataclass(frozen=True)
class Guided(Selector):
    """Commits from the left while a proposal is among the guide's ``top_k`` tokens, and one more.

    Behind an end-of-text token there is nothing left to judge. The guide reads the canvas up to its last
    proposal once in each step; that pass is not counted as one of the denoiser.
    """

    name: ClassVar[str] = "guided"
    systems: ClassVar[tuple[System, ...]] = (SYSTEM,)
    top_k: int = 1
    guide: Guide = field(kw_only=True)
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"guided:{self.top_k} cannot work; the guide's likeliest token alone is 1")

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Guided:
        if helpers.guide is None:
            raise ConfigError(
                "guided needs an autoregressive model with the tokenizer of the denoiser: give --guide MODEL"
            )
        eos_ids = () if helpers.spec is None else helpers.spec.eos_ids
        return cls(**values, guide=helpers.guide, eos_ids=eos_ids)

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        proposed = step.open
        first, last = int(proposed.positions[0]), int(proposed.positions[-1])
        # Blocks begin at or before the first open position, so that nothing the guide reads is open.
        filled = step.canvas.token_ids[: last + 1].copy()
        filled[proposed.positions] = proposed.token_ids
        ranks = self.guide.ranks(filled, first)[proposed.positions - first]
        agrees = (ranks < self.top_k) | self._is_past_end(step.canvas, filled)[proposed.positions]
        count = len(agrees) if agrees.all() else int(agrees.argmin()) + 1
        return Selection.of(proposed, slice(count))

    def _is_past_end(self, canvas: Canvas, filled: Ids) -> NDArray[np.bool_]:
        """bool [len(filled)]: whether a token of the new text before each ends it."""
        ends = np.isin(filled, self.eos_ids) & ~canvas.is_given[: len(filled)]
        is_past: NDArray[np.bool_] = np.cumsum(ends) > ends
        return is_past
