"""From predictions to candidates: greedy, or with noise that belongs to a position.

A candidate is the arg-max of the warped logits plus Gumbel noise that depends on (seed, sample, position)
alone, as in the autoregressive loop. So a position's candidate changes between forward passes only as far as
its logits do, and the same seed writes the same text whatever is drafted or batched beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hasten.core import SamplingParams
from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction
from hasten.errors import ConfigError
from hasten.noise import recent_gumbel_noise
from hasten.sampling import keyed_generator, warp

NoiseSource = Callable[[Ids, int], Ids]
"""(positions, number of the forward pass) -> what they hold while they are open"""
NOISE_STREAM = 1
"""of the keyed generator"""


class Drawing:
    """Draws the candidates of one canvas.

    Args:
        params: temperature, top-k, top-p, min-p and typical-p; raises ConfigError for logits processors,
            penalties and other things that need the text before a position.
        seed, sample: key of the noise, as in ``sampling.Sampler``; not used when greedy.
    """

    def __init__(self, params: SamplingParams, seed: int = 0, sample: int = 0) -> None:
        if params.logits_processors:
            raise ConfigError(
                "logits_processors cannot work on a canvas, whose text is not written from left to right; "
                "use a constraint, or a transform"
            )
        if params.changes_logits or params.logprobs is not None:
            raise ConfigError(
                "logit_bias, min_tokens, penalties and logprobs are for texts written from left to right, "
                "which a canvas is not; leave them out"
            )
        self.params = params
        self.seed = seed
        self.sample = sample
        self._noise: dict[int, torch.Tensor] = {}

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature == 0

    def __call__(self, prediction: Prediction) -> Prediction:
        """The prediction with its candidates."""
        if self.is_greedy:
            return prediction
        scores = warp(prediction.logits, self.params) + self._noise_at(prediction)
        return prediction.with_tokens(scores.argmax(-1).cpu().numpy())

    def law(self, logits: torch.Tensor) -> torch.Tensor:
        """float64 [rows, vocab]: what candidates are drawn from; greedy: one 1 a row."""
        if self.is_greedy:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, best, 1.0)
        return torch.softmax(warp(logits, self.params).double(), -1)

    def generator(self, position: int, stream: int) -> np.random.Generator:
        """Random numbers of a position, independent of other streams' and of its candidates' noise."""
        return keyed_generator(self.seed, self.sample, position, stream)

    def _noise_at(self, prediction: Prediction) -> torch.Tensor:
        vocab_size = prediction.logits.shape[-1]
        places = prediction.positions.tolist()
        for place in places:
            if place not in self._noise:
                noise = torch.from_numpy(recent_gumbel_noise(self.seed, self.sample, place, vocab_size))
                self._noise[place] = noise.to(prediction.logits.device)
        return torch.stack([self._noise[place] for place in places])


def noise_source(spec: DenoiserSpec, vocab_size: int, seed: int, sample: int) -> NoiseSource:
    """What open positions hold: the mask token, or tokens drawn evenly, others for every forward pass."""
    if spec.mask_id is not None:
        mask_id = spec.mask_id
        return lambda positions, forward: np.full(len(positions), mask_id, dtype=np.int64)

    def uniform(positions: Ids, forward: int) -> Ids:
        drawn = keyed_generator(seed, sample, forward, stream=NOISE_STREAM).integers(
            0, vocab_size, 1 + max(positions, default=0)
        )
        return np.asarray(drawn[positions], dtype=np.int64)

    return uniform
