"""Several drafts of a continuation for one pass a token: a pass reads a mixture of the drafts' last tokens.

Source: Superposed Decoding (arXiv 2405.18400). The embeddings of the drafts' last tokens are summed, weighted
by how likely each draft is, and one pass over the sum, behind one cache, gives one law that all drafts go on
with; n-gram counts, where there are any, tell them apart. The mixtures stay in the cache, so drafts drift
away from what the model would write: good for about 10 to 20 tokens, and never exact. The low temperature and
the interpolation's constants are the paper's, tuned for models of 7 billion parameters and tables of 100,000
documents. Knows models and token ids; knows nothing of trees and tokenizers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from hasten.core import Guarantee
from hasten.errors import ConfigError, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.forward import PREFILL_CHUNK
from hasten.values import at_least_one

TEMPERATURE = 0.06
NUM_KEPT = 9
ALPHA = 0.54
ORDER_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
"""Of the laws after the last 1 to 5 tokens."""
PENALTY = 200.0
"""Taken from the log-score of a token that no n-gram supports."""

_TOTAL = -1


class NgramTables:
    """How often which token followed 1 to 5 tokens.

    Args:
        max_contexts: beyond this many, the contexts seen first are forgotten.

    Raises ConfigError for a value that cannot work.
    """

    def __init__(self, max_contexts: int = 1_000_000) -> None:
        if max_contexts < 1:
            raise ConfigError(f"max_contexts={max_contexts} cannot work; it must be at least 1")
        self._max_contexts = max_contexts
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def learn(self, token_ids: list[int], start: int = 0) -> None:
        """Count what the tokens from ``start`` on follow."""
        for end in range(start, len(token_ids)):
            for order in range(1, min(len(ORDER_WEIGHTS), end) + 1):
                counts = self._counts.setdefault(tuple(token_ids[end - order : end]), {_TOTAL: 0})
                counts[_TOTAL] += 1
                counts[token_ids[end]] = counts.get(token_ids[end], 0) + 1
                if len(self._counts) > self._max_contexts:
                    del self._counts[next(iter(self._counts))]

    def probs(self, context: list[int], token_ids: list[int]) -> NDArray[np.float64]:
        """float64 [tokens]: the weighted sum of the laws after the context's last 1 to 5 tokens.

        An order that never saw its context adds nothing, so the sum over all tokens is at most 0.5.
        """
        found = np.zeros(len(token_ids))
        for order, weight in enumerate(ORDER_WEIGHTS[: len(context)], start=1):
            counts = self._counts.get(tuple(context[-order:]))
            if counts is not None:
                found += [weight * counts.get(token_id, 0) / counts[_TOTAL] for token_id in token_ids]
        return found


def interpolated(
    log_probs: NDArray[np.float64], ngram_probs: NDArray[np.float64], alpha: float
) -> NDArray[np.float64]:
    """Log-scores [tokens] of the model's law and that of n-grams; a token without support is penalised."""
    scores = (1 - alpha) * log_probs
    supported = ngram_probs > 0
    scores[supported] += alpha * np.log(ngram_probs[supported])
    scores[~supported] -= PENALTY
    return scores


@dataclass(frozen=True, slots=True)
class Draft:
    """One continuation; ``score`` is its cumulative log-score, comparable within one prompt only."""

    token_ids: tuple[int, ...] = ()
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One suggestion for how a text goes on; ``score`` ranks those of one prompt, higher is better."""

    text: str
    token_ids: list[int]
    score: float
    guarantee: Guarantee = "approximate"


def draft_weights(drafts: list[Draft]) -> NDArray[np.float64]:
    """float64 [drafts], summing to 1: the softmax of their scores."""
    scores = np.array([draft.score for draft in drafts])
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(), np.float64)


def why_not_mixed(model: CausalLM) -> str:
    """Why a model cannot read mixtures of tokens; empty if it can."""
    if getattr(model.forward.config, "is_encoder_decoder", False):
        return "an encoder-decoder model reads a source as well"
    if not model.forward.takes_embeddings:
        return f"{type(model.forward.model).__name__} does not take input embeddings"
    if model.probe.mode == "off":
        return "the model gives other logits for several tokens in a pass than one at a time"
    return ""


class MixedText:
    """A text in a cache of its own, and mixtures of tokens behind it."""

    def __init__(self, model: CausalLM) -> None:
        self._forward = model.forward
        self._mode = model.probe.mode
        self._is_recurrent = self._mode == "chain with snapshots"
        self._cache: Any = None
        if self._mode != "recompute":
            # As in a ChainSession: attention layers can be cropped only if they keep every key.
            self._cache = (
                DynamicCache(config=self._forward.text_config) if self._is_recurrent else DynamicCache()
            )
        self._read: torch.Tensor = self._forward.embed([])  # of a model without a cache, every embedding
        self._mixed: Any = None  # the state with mixtures, for what cannot be cropped
        self._num_read = 0
        self._num_mixed = 0
        self._logits: torch.Tensor | None = None

    def read(self, token_ids: list[int]) -> torch.Tensor:
        """Logits [vocab] after a text that begins with what was read before. Forgets the mixtures."""
        self._forget()
        new = token_ids[self._num_read :]
        # Recurrent layers may get a second piece of a long prompt wrong (see ChainSession).
        size = len(new) if self._cache is None or self._is_recurrent else PREFILL_CHUNK
        for start in range(0, len(new), max(size, 1)):
            piece = self._forward.embed(new[start : start + size])
            if self._cache is None:
                self._read = torch.cat((self._read, piece))
                piece = self._read
            self._logits = self._run(piece, self._cache, self._num_read)
            self._num_read += len(new[start : start + size])
        if self._logits is None:
            raise ConfigError("a text without tokens has no next token; give at least one")
        return self._logits

    def mix(self, token_ids: list[int], weights: NDArray[np.float64]) -> torch.Tensor:
        """Logits [vocab] after one more position: the weighted sum of these tokens' embeddings."""
        embeddings = self._forward.embed(token_ids)
        mixture = torch.from_numpy(weights).to(embeddings)[None] @ embeddings
        if self._is_recurrent and self._mixed is None:
            self._mixed = copy.deepcopy(self._cache)
        if self._cache is None:
            self._read = mixture = torch.cat((self._read, mixture))
        cache = self._mixed if self._is_recurrent else self._cache
        logits = self._run(mixture, cache, self._num_read + self._num_mixed)
        self._num_mixed += 1
        return logits

    def _run(self, embeddings: torch.Tensor, cache: Any, start: int) -> torch.Tensor:
        """Logits [vocab] after the last of these."""
        first = 0 if cache is None else start
        positions = np.arange(first, first + len(embeddings))[None]
        return self._forward.from_embeddings(embeddings[None], positions, cache)[0, -1]

    def _forget(self) -> None:
        if self._num_mixed and self._cache is None:
            self._read = self._read[: -self._num_mixed]
        elif self._num_mixed and not self._is_recurrent:
            self._cache.crop(-self._num_mixed)
        self._mixed, self._num_mixed = None, 0


class Superposition:
    """The drafts of one text, all grown by a token at a time.

    Args:
        text: what holds the text's cache.
        token_ids: the text.
        num_drafts: k.
        stop_token_ids: a draft that writes one is finished.
        ngrams: without any, or without a context in them, ``alpha`` is 0.
        alpha: weight of the n-grams' law, in [0, 1).
        num_kept: the likeliest tokens that are looked at, at least ``num_drafts``.
        first_token: names, from the logits [vocab] of a pass, a token to rank first; None: the likeliest.
    """

    def __init__(
        self,
        text: MixedText,
        token_ids: list[int],
        *,
        num_drafts: int = 3,
        stop_token_ids: frozenset[int] = frozenset(),
        ngrams: NgramTables | None = None,
        alpha: float = ALPHA,
        num_kept: int = NUM_KEPT,
        first_token: Callable[[torch.Tensor], int] | None = None,
    ) -> None:
        self._text = text
        self._token_ids = token_ids
        self._num_drafts = num_drafts
        self._stop_token_ids = stop_token_ids
        self._ngrams = ngrams
        self._alpha = alpha
        self._num_kept = max(num_kept, num_drafts)
        self._first_token = first_token
        self.alive = [Draft()]
        self.finished: list[Draft] = []
        self.logits: list[torch.Tensor] = []
        """[vocab] of every pass: those all drafts got their token of that depth from"""

    def grow(self) -> None:
        """One pass, and one more token for every draft. The first time, the drafts' tokens are distinct."""
        if self.logits:
            last_ids = [draft.token_ids[-1] for draft in self.alive]
            logits = self._text.mix(last_ids, draft_weights(self.alive))
        else:
            logits = self._text.read(self._token_ids)
        self.logits.append(logits)
        token_ids, log_probs = self._kept(logits)
        grown = [
            Draft((*draft.token_ids, token_id), draft.score + float(score))
            for draft in self.alive
            for token_id, score in zip(token_ids, self._scores(draft, token_ids, log_probs), strict=True)
        ]
        grown.sort(key=lambda draft: -draft.score)
        best = grown[: 2 * self._num_drafts]
        self.finished += [draft for draft in best if draft.token_ids[-1] in self._stop_token_ids]
        alive = [draft for draft in best if draft.token_ids[-1] not in self._stop_token_ids]
        self.alive = alive[: self._num_drafts]

    def _kept(self, logits: torch.Tensor) -> tuple[list[int], NDArray[np.float64]]:
        """The tokens that drafts may go on with, likeliest first, and the logarithm of their law."""
        best = torch.topk(logits.double(), min(self._num_kept, len(logits)))
        token_ids: list[int] = best.indices.tolist()
        log_probs = torch.log_softmax(best.values / TEMPERATURE, -1).cpu().numpy()
        first = None if self._first_token is None else self._first_token(logits)
        if first is not None and first != token_ids[0]:
            others = [token_id for token_id in token_ids if token_id != first]
            token_ids = [first, *others][: len(token_ids)]
            log_probs = np.append(0.0, log_probs[: len(token_ids) - 1])
        return token_ids, log_probs

    def _scores(
        self, draft: Draft, token_ids: list[int], log_probs: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """float64 [tokens]: what each token adds to the draft's score."""
        if not self._ngrams or not self._alpha:
            return log_probs
        context = [*self._token_ids[-len(ORDER_WEIGHTS) :], *draft.token_ids][-len(ORDER_WEIGHTS) :]
        return interpolated(log_probs, self._ngrams.probs(context, token_ids), self._alpha)

    @property
    def is_settled(self) -> bool:
        """Whether no draft that grows could still become one of the best: scores only fall."""
        finished = sorted((draft.score for draft in self.finished), reverse=True)[: self._num_drafts]
        full = len(finished) == self._num_drafts
        return not self.alive or (full and finished[-1] >= self.alive[0].score)

    def best(self) -> list[Draft]:
        """At most ``num_drafts`` of all, best first."""
        return sorted([*self.finished, *self.alive], key=lambda draft: -draft.score)[: self._num_drafts]


def complete(
    model: CausalLM,
    token_ids: list[int],
    *,
    k: int = 3,
    max_new_tokens: int = 10,
    ngrams: NgramTables | None = None,
    alpha: float = ALPHA,
    num_kept: int = NUM_KEPT,
) -> list[Draft]:
    """At most k continuations, best first, from ``max_new_tokens`` passes; a stop token is their last.

    Raises:
        ConfigError: for a value that cannot work.
        ModelError: for a model that cannot read mixtures of tokens.
    """
    sizes = {"k": k, "max_new_tokens": max_new_tokens, "num_kept": num_kept}
    k, max_new_tokens, num_kept = (at_least_one(value, name) for name, value in sizes.items())
    if not 0 <= alpha < 1:
        raise ConfigError(f"alpha={alpha} cannot work; it must be at least 0 and less than 1")
    problem = why_not_mixed(model)
    if problem:
        raise ModelError(f"no superposed drafts: {problem}; use generate with n={k} instead")
    superposition = Superposition(
        MixedText(model),
        token_ids,
        num_drafts=k,
        stop_token_ids=model.stop_token_ids,
        ngrams=ngrams,
        alpha=alpha,
        num_kept=num_kept,
    )
    room = (model.max_length or len(token_ids) + max_new_tokens) - len(token_ids)
    for _ in range(min(max_new_tokens, room)):
        superposition.grow()
        if superposition.is_settled:
            break
    return superposition.best()
