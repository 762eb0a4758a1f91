"""Denoisers whose predictions are exact, because their joint law is known: no model, milliseconds a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.canvas import Canvas, DenoiserSpec, Ids, Prediction, Query
from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers
from hasten.diffusion.drawing import Draw, noise_source
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.strategy import Strategy
from hasten.diffusion.trace import DiffusionStats, Record

GREEDY = SamplingParams()


class JointOracle:
    """Knows the probability of every text of a fixed length.

    ``probs``: [vocab] * length. The mask token is the id after the vocabulary. What positions before
    the last ``length`` hold (a prompt) does not matter.
    """

    def __init__(self, probs: NDArray[np.float64], eos_ids: tuple[int, ...] = ()) -> None:
        self.probs = probs / probs.sum()
        self.length, self.num_words = probs.ndim, probs.shape[0]
        self.spec = DenoiserSpec(mask_id=self.num_words, eos_ids=eos_ids)
        self.vocab_size = self.num_words + 1
        self.max_length = None
        self.queries: list[list[Query]] = []
        """of every forward pass"""

    def open(self, lengths: Sequence[int], *, keeps_rows: bool) -> JointOracle:
        return self

    def forward(self, queries: Sequence[Query]) -> list[Prediction]:
        self.queries.append(list(queries))
        return [self._predict(query) for query in queries]

    def _predict(self, query: Query) -> Prediction:
        first = len(query.token_ids) - self.length
        text = query.token_ids[first:]
        logits = np.full((len(query.wanted), self.vocab_size), -np.inf)
        for row, position in enumerate(query.wanted):
            with np.errstate(divide="ignore"):
                logits[row, : self.num_words] = np.log(self.law(text, int(position) - first))
        return Prediction(query.wanted, torch.from_numpy(logits))

    def law(self, text: Ids, place: int) -> NDArray[np.float64]:
        """[vocab]: of one place, given every other written token; even where that is impossible."""
        index = tuple(
            slice(None) if place == other or token == self.num_words else int(token)
            for other, token in enumerate(text)
        )
        rest = self.probs[index]
        kept = sum(isinstance(one, slice) for one in index[:place])
        law = rest.sum(tuple(axis for axis in range(rest.ndim) if axis != kept))
        total = law.sum()
        return np.full(self.num_words, 1 / self.num_words) if total == 0 else law / total


def random_joint(seed: int, num_words: int = 3, length: int = 5, concentration: float = 0.05) -> JointOracle:
    """A joint law that is mostly concentrated on a few texts."""
    random = np.random.default_rng(seed)
    return JointOracle(
        random.dirichlet(np.full(num_words**length, concentration)).reshape((num_words,) * length)
    )


@dataclass
class Written:
    """One text, and how it came about."""

    token_ids: list[int]
    """the canvas without its prompt"""
    stats: DiffusionStats
    records: list[Record] = field(repr=False)


def write(
    denoiser: object,
    strategy: str | Strategy,
    *,
    length: int | None = None,
    prompt: Sequence[int] = (),
    params: SamplingParams = GREEDY,
    seed: int = 0,
    helpers: Helpers = Helpers(),
) -> Written:
    """One canvas of ``length`` positions after a prompt, written by a strategy or its text."""
    spec, vocab_size = denoiser.spec, denoiser.vocab_size  # type: ignore[attr-defined]
    if isinstance(strategy, str):
        strategy = parse_strategy(strategy, spec, helpers)
    noise = noise_source(spec, vocab_size, seed, 0)
    num_open = length or denoiser.length  # type: ignore[attr-defined]
    canvas = Canvas.after(prompt, noise(np.arange(num_open), 0))
    strategy.check_canvas(canvas)
    writing = Writing(canvas, strategy, Draw(params, seed), noise)
    records = [record for step in denoise(denoiser, [writing]) for record in step]  # type: ignore[arg-type]
    return Written(canvas.token_ids[len(prompt) :].tolist(), writing.stats, records)
