"""More denoisers without a model: arbitrary functions of the canvas, and a known law under uniform noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction, Query

Logits = NDArray[np.float64]


class FunctionDenoiser:
    """Logits of every position, float64 [length, words], from what the canvas holds.

    The mask token is the id after the words; without ``has_mask`` the noise is uniform.
    """

    def __init__(
        self,
        function: Callable[[Ids], Logits],
        num_words: int,
        *,
        eos_ids: tuple[int, ...] = (),
        has_mask: bool = True,
        length: int | None = None,
    ) -> None:
        self.function = function
        self.num_words = num_words
        self.length = length
        self.vocab_size = num_words + has_mask
        self.max_length = None
        self.spec = DenoiserSpec(
            mask_id=num_words if has_mask else None,
            eos_ids=eos_ids,
            noise="absorbing" if has_mask else "uniform",
        )
        self.queries: list[list[Query]] = []

    def open(self, lengths: Sequence[int], *, keeps_rows: bool) -> FunctionDenoiser:
        return self

    def forward(self, queries: Sequence[Query]) -> list[Prediction]:
        self.queries.append(list(queries))
        return [self._predict(query) for query in queries]

    def _predict(self, query: Query) -> Prediction:
        logits = np.full((len(query.wanted), self.vocab_size), -np.inf)
        logits[:, : self.num_words] = self.function(query.token_ids)[query.wanted]
        return Prediction(query.wanted, torch.from_numpy(logits))


def table_denoiser(
    seed: int, num_words: int = 4, length: int = 8, scale: float = 1.5, eos_ids: tuple[int, ...] = ()
) -> FunctionDenoiser:
    """Logits are sums of fixed random numbers, one for each token at each other position."""
    random = np.random.default_rng(seed)
    table = scale * random.standard_normal((length, length, num_words + 1, num_words))
    table[np.arange(length), np.arange(length)] = scale * random.standard_normal((length, 1, num_words))

    def logits(token_ids: Ids) -> Logits:
        cut = table[: len(token_ids), np.arange(len(token_ids)), token_ids]
        return np.asarray(cut.sum(1))

    return FunctionDenoiser(logits, num_words, eos_ids=eos_ids, length=length)


def uniform_oracle(
    seed: int,
    num_words: int = 3,
    length: int = 4,
    rate: float = 0.5,
    *,
    concentration: float = 0.05,
    probs: NDArray[np.float64] | None = None,
) -> FunctionDenoiser:
    """Knows the law of texts, and that each token was replaced by an even draw with probability ``rate``."""
    random = np.random.default_rng(seed)
    if probs is None:
        probs = random.dirichlet(np.full(num_words**length, concentration)) + 1e-9
    texts = np.array(list(itertools.product(range(num_words), repeat=length)))
    prior = probs.reshape(-1)

    def logits(token_ids: Ids) -> Logits:
        noisy = token_ids[-length:]
        seen = np.where(texts == noisy, 1 - rate + rate / num_words, rate / num_words)
        posterior = prior * seen.prod(1)
        law = np.zeros((len(token_ids), num_words))
        for place, token in itertools.product(range(length), range(num_words)):
            law[len(token_ids) - length + place, token] = posterior[texts[:, place] == token].sum()
        law[: len(token_ids) - length] = 1.0
        return np.log(law / law.sum(-1, keepdims=True) + 1e-300)

    return FunctionDenoiser(logits, num_words, has_mask=False, length=length)
