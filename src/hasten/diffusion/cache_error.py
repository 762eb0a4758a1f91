"""What a cache costs in accuracy, measured: every prediction of one text, with the cache and without.

The text is that of the reference, one token a forward pass and nothing cached, so that errors do not add up
and two caches are asked the same questions. Deterministic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from typing import Any

from hasten.core import SamplingParams
from hasten.diffusion.base import Strategy
from hasten.diffusion.caches.deviation import Deviation
from hasten.diffusion.canvas import Canvas, Denoiser, DenoiserSession, DenoiserSpec, Prediction, Query
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.loop import Writing, denoise


def measure_error(
    denoiser: Denoiser, canvas: Canvas, strategy: Strategy, num_passes: int | None = None
) -> Deviation:
    """What the cache of a strategy does along the reference's text of a canvas, which stays as it is.

    Two forward passes a token, at most ``num_passes`` pairs. The strategy must have been checked against
    the denoiser. Transforms and sampling are left out.
    """
    twin = _Twin(denoiser)
    plain = replace(reference_of(strategy), cache=strategy.cache, transforms=(), constraint=None)
    noise = noise_source(denoiser.spec, denoiser.vocab_size, 0, 0)
    writing = Writing(canvas.fork(), plain, Drawing(SamplingParams()), noise)
    for _ in itertools.islice(denoise(twin, [writing]), num_passes):
        pass
    return twin.deviation


class _Twin:
    """Answers without the cache, and compares with the answers that the cache gives."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.deviation = Deviation()

    @property
    def spec(self) -> DenoiserSpec:
        return self._denoiser.spec

    @property
    def model(self) -> Any:
        return self._denoiser.model

    @property
    def vocab_size(self) -> int:
        return self._denoiser.vocab_size

    @property
    def max_length(self) -> int | None:
        return self._denoiser.max_length

    def open(self, lengths: AbstractSequence[int], *, keeps_rows: bool) -> DenoiserSession:
        return _TwinSession(self._denoiser.open(lengths, keeps_rows=keeps_rows), self.deviation)


class _TwinSession:
    def __init__(self, session: DenoiserSession, deviation: Deviation) -> None:
        self._session, self._deviation = session, deviation

    def forward(self, queries: AbstractSequence[Query]) -> list[Prediction]:
        exact = self._session.forward([replace(query, computed=None, stores=False) for query in queries])
        for cached, one in zip(self._session.forward(queries), exact, strict=True):
            self._deviation.add(cached, one)
        return exact
