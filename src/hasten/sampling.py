"""Logits to tokens: keyed noise, processors and warpers for one position at a time.

The token of a position is the arg-max of its warped log-probabilities plus Gumbel noise, and the noise is a
function of (seed, sample, position) alone. Whoever draws a position, in whatever order, with whatever drafts
around it, draws the same token: lossless sampling becomes an equality. Greedy is sampling without noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import LogitRows, LogitsProcessor, SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.logits import Draw, Logits, Tokens
from hasten.noise import NoiseKey, gumbel_noise_of, recent_gumbel_noise
from hasten.processors import own_processors

MOST_BEST = 256
"""Tokens that top_k may leave for them to be found in the pass; more are cut from the logits as a whole."""

_GUESS_STREAM = 3
"""of guesses whose position is veiled; rules use stream 1, draft models 2, and drafters those from 16 on"""


def keyed_generator(seed: int, sample: int, position: int, stream: int) -> np.random.Generator:
    """Random numbers of one position, from the counter-based generator Philox.

    The pair (seed, sample) is the key, the position the high half of the counter and the stream its second
    quarter, so that no two positions and no two streams of a position ever share a number.
    """
    bits = np.random.Philox(key=seed | sample << 64, counter=position << 128 | stream << 64)
    return np.random.Generator(bits)


def warp(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Temperature, top-k, top-p, min-p, typical-p in transformers' order; [..., vocab], excluded are -inf.

    Ties at the edge of a cut are kept, whatever their order.
    """
    scores = scores / params.temperature
    if params.top_k is not None and params.top_k < scores.shape[-1]:
        floor = torch.topk(scores, params.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    if params.top_p < 1:
        probs = torch.softmax(scores, -1)
        scores = scores.masked_fill(probs < _nucleus_floor(probs, params.top_p), -torch.inf)
    if params.min_p > 0:
        probs = torch.softmax(scores, -1)
        scores = scores.masked_fill(probs < params.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    if params.typical_p < 1:
        scores = scores.masked_fill(~_typical(scores, params.typical_p), -torch.inf)
    return scores


def _typical(scores: torch.Tensor, mass: float) -> torch.Tensor:
    """bool [..., vocab]: tokens whose information is closest to the entropy, until they hold ``mass``.

    Locally typical sampling, arXiv 2202.00666; of equally close ones at the edge, all are kept.
    """
    log_probs = torch.log_softmax(scores, -1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(-1, keepdim=True)
    distance = (-log_probs - entropy).abs()
    by_distance, order = distance.sort(-1)
    last = (probs.gather(-1, order).cumsum(-1) < mass).sum(-1, keepdim=True)
    return distance <= by_distance.gather(-1, last.clamp(max=scores.shape[-1] - 1))


def _nucleus_floor(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """[..., 1]: the smallest probability inside the nucleus, mostly a small one: look at few before all."""
    vocab_size = probs.shape[-1]
    size = min(64, vocab_size)
    while True:
        best = torch.topk(probs, size).values
        mass = best.cumsum(-1)
        if size == vocab_size or bool((mass[..., -1] >= top_p).all()):
            last = (mass < top_p).sum(-1, keepdim=True).clamp(max=size - 1)
            return best.gather(-1, last)
        size = min(size * 16, vocab_size)


class Sampler:
    """Draws one sequence's tokens.

    Args:
        params: how to draw.
        seed: key of the noise; not used when greedy.
        sample: which of the ``n`` samples of one prompt this is; the other half of the key.
        processors: this text's own, with what the params do to logits; by default the params' own
            logits processors, and then they may do nothing else.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int = 0,
        sample: int = 0,
        processors: list[LogitsProcessor] | None = None,
    ) -> None:
        self.params = params
        self.seed = seed
        self.sample = sample
        if processors is None:
            if replace(params, logits_processors=()).changes_logits:
                raise ConfigError("penalties count from the end of the prompt: give the text's processors")
            processors = own_processors(params.logits_processors)
        self.processors = processors
        self.guess_end: int | None = None
        """See VeiledSampler."""

    @property
    def is_greedy(self) -> bool:
        """See LawSampler."""
        return self.params.temperature == 0

    @property
    def temperature(self) -> float:
        """See NoisySampler."""
        return self.params.temperature

    def noise_words(self, position: int) -> NDArray[np.uint32]:
        """See NoisySampler."""
        return NoiseKey(self.seed, self.sample, position, self._guess_stream(position)).words()

    def _guess_stream(self, position: int) -> int:
        is_veiled = self.guess_end is not None and position >= self.guess_end
        return _GUESS_STREAM if is_veiled else 0

    def foresee(self, positions: NDArray[np.int64]) -> Draw | None:
        """See ForeseenSampler. Not with processors, which want the text, nor with a cut of all tokens."""
        params, num_best = self.params, None
        if self.processors:
            return None
        if not self.is_greedy:
            if params.top_k is not None and params.top_k <= MOST_BEST:
                num_best = params.top_k
            elif params.top_k is not None or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1:
                return None
        return Draw(positions, params.temperature, self.seed, self.sample, num_best)

    def draws(self, logits: LogitRows) -> Callable[[int, list[int]], int]:
        """See TokenSampler. Raises ModelError at the first row that holds NaN."""
        logits, draw = Logits.of(logits), self.foresee(np.empty(0, np.int64))
        if draw is None:
            return lambda row, token_ids: self._draw(logits[row], token_ids)
        if draw.is_noisy:
            return lambda row, token_ids: self._draw_with_noise(logits, row, len(token_ids))
        if draw.num_best is not None:
            best = logits.top(draw.num_best + 1)
            return partial(self._draw_among, draw.num_best, best, logits)
        token_ids, values = (each.tolist() for each in logits.best())
        return lambda row, text: _checked(token_ids[row], values[row], len(text))

    def _draw_with_noise(self, logits: Logits, row: int, position: int) -> int:
        key = NoiseKey(self.seed, self.sample, position)
        return _checked(*logits.drawn(row, key, self.params.temperature), position)

    def _draw_among(self, num_best: int, best: Tokens, logits: Logits, row: int, token_ids: list[int]) -> int:
        """Among the best tokens; one more is known of."""
        values = best.scores[row]
        edge = values[num_best - 1 :] / np.float32(self.params.temperature)
        if len(edge) > 1 and edge[1] == edge[0]:
            return self._draw(logits[row], token_ids)  # tokens that equal the last one are kept
        position, found = len(token_ids), best.token_ids[row, :num_best]
        noise = gumbel_noise_of(found, NoiseKey(self.seed, self.sample, position))
        scores = warp(torch.from_numpy(values[:num_best]), self.params).numpy() + noise
        place = int(scores.argmax())  # a NaN is the largest
        return _checked(int(found[place]), float(scores[place]), position)

    def _draw(self, logits: torch.Tensor, token_ids: list[int]) -> int:
        scores = self.scores(logits, token_ids)
        best = scores.max(-1)
        return _checked(int(best.indices), float(best.values), len(token_ids))

    def scores(self, logits: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
        """float32 [vocab], whose arg-max is the token written after ``token_ids``."""
        return self._noisy(self._processed(logits, token_ids), len(token_ids))

    def _processed(self, logits: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
        scores = logits.float()
        if self.processors:
            input_ids = torch.tensor([token_ids], device=logits.device)
            scores = scores.clone()[None]
            for process in self.processors:
                scores = process(input_ids, scores)
            scores = scores[0]
        return scores

    def law(self, logits: torch.Tensor, token_ids: list[int] | None = None) -> NDArray[np.float64]:
        """See LawSampler. Raises ModelError for a written position whose row holds NaN."""
        scores = logits.float() if token_ids is None else self._processed(logits, token_ids)
        best = scores.max(-1)
        if token_ids is not None:
            _checked(int(best.indices), float(best.values), len(token_ids))
        if self.params.temperature == 0:
            probs: NDArray[np.float64] = np.eye(1, scores.numel(), int(best.indices))[0]
        else:
            probs = torch.softmax(warp(scores, self.params).double(), -1).cpu().numpy()
        return probs

    def generator(self, position: int, stream: int) -> np.random.Generator:
        """See LawSampler."""
        return keyed_generator(self.seed, self.sample, position, stream)

    def fork(self, sample: int | None = None) -> Sampler:
        """See LawSampler. Itself where nothing would differ: only processors keep a state."""
        if not self.processors and sample in (None, self.sample):
            return self
        forked = copy.copy(self)
        forked.processors = own_processors(self.processors)
        forked.sample = self.sample if sample is None else sample
        return forked

    def guess(self, logits: torch.Tensor, position: int) -> int:
        """See TokenSampler."""
        return int(self.noisy(logits, position).argmax())

    def noisy(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """See TokenSampler."""
        return self._noisy(logits.float(), position, self._guess_stream(position))

    def _noisy(self, scores: torch.Tensor, position: int, stream: int = 0) -> torch.Tensor:
        if self.params.temperature == 0:
            return scores
        noise = recent_gumbel_noise(self.seed, self.sample, position, scores.numel(), stream)
        return warp(scores, self.params) + torch.from_numpy(noise).to(scores.device)


def _checked(token_id: int, score: float, position: int) -> int:
    require_finite(score, position)
    return token_id


def require_finite(best_score: float, position: int) -> None:
    """Raises ModelError for logits that hold NaN, or of which no token is left."""
    if not np.isfinite(best_score):
        raise ModelError(
            f"the best score at position {position} is {best_score}: the model gave no usable logits there; "
            "load it in float32 (dtype='float32'), or check its weights and the logits processors"
        )
