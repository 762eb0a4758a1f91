"""One row of a batch: draws its tokens and says where it ends, with transformers' own objects.

Processors and criteria see what `generate` would show them for this row: its text with the padding on the
left. Objects of transformers that look at each row alone are called with a batch of one. Any other object may
keep something for each row of a batch, so it is called with the row's text in every row, and what it says
about this row counts; each row has its own copy of it, because rows gain tokens at different times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import logits_process as hf

from hasten.core import FinishReason, LogitRows
from hasten.errors import ModelError
from hasten.logits import Draw, Logits, Tokens
from hasten.noise import NoiseKey, gumbel_noise_of, recent_gumbel_noise
from hasten.processors import own_copy
from hasten.sampling import MOST_BEST

_WARPERS = (
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.TypicalLogitsWarper,
)
"""Look at the scores only."""

_CUTS = (hf.MinPLogitsWarper, hf.TopPLogitsWarper)
_AMONG_THE_BEST = (hf.TemperatureLogitsWarper, hf.TopKLogitsWarper, *_CUTS)
"""After top-k, these need to see no other tokens than those it leaves."""

_ROW_BY_ROW = (
    *_WARPERS,
    hf.ExponentialDecayLengthPenalty,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.InfNanRemoveLogitsProcessor,
    hf.LogitNormalization,
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.NoBadWordsLogitsProcessor,
    hf.NoRepeatNGramLogitsProcessor,
    hf.SequenceBiasLogitsProcessor,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.SuppressTokensLogitsProcessor,
    MaxTimeCriteria,
    StopStringCriteria,
)
"""Treat every row alone and remember nothing between calls: one object serves all rows."""

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `generate` prepared for one call.

    Attributes:
        input_ids: [batch, tokens], padded on the left.
        padding: tokens of padding, one number a row.
        seed: key of the noise; None is greedy.
    """

    input_ids: torch.Tensor
    padding: list[int]
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    seed: int | None

    @property
    def batch_size(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def keeps_scores(self) -> bool:
        return bool(self.config.return_dict_in_generate and self.config.output_scores)

    @property
    def keeps_logits(self) -> bool:
        return bool(self.config.return_dict_in_generate and self.config.output_logits)


class Row:
    """TokenSampler and StopRule of one row; the logits of one position are read once, in order."""

    def __init__(self, prepared: Prepared, row: int) -> None:
        self.index = row
        self._prepared = prepared
        self._text = prepared.input_ids[row : row + 1].clone()
        self._length = self._text.shape[1]
        self._processors = [_processor_of_row(p, row, prepared.batch_size) for p in prepared.processors]
        self._num_best = _num_best(self._processors)
        self._eos_token_ids: set[int] = set()
        self._limits: list[Any] = []
        self._criteria: list[Callable[..., bool]] = []
        for criterion in prepared.criteria:
            self._sort(criterion)
        self.scores: list[torch.Tensor] = []
        """float32 [1, vocab], one a written token, where the call asked for scores"""
        self.logits: list[torch.Tensor] = []
        """float32 [1, vocab], one a written token, where the call asked for logits"""

    def _sort(self, criterion: Any) -> None:
        if type(criterion) is EosTokenCriteria:
            self._eos_token_ids.update(criterion.eos_token_id.tolist())
        elif type(criterion) is MaxLengthCriteria:
            self._limits.append(criterion)
        else:
            self._criteria.append(_criterion_of_row(criterion, self.index, self._prepared.batch_size))

    def foresee(self, positions: NDArray[np.int64]) -> Draw | None:
        """See ForeseenSampler."""
        prepared = self._prepared
        if prepared.keeps_scores or prepared.keeps_logits:
            return None
        if prepared.seed is not None and self._num_best is not None:
            return Draw(positions, 1.0, prepared.seed, self.index, self._num_best)
        return None if self._processors or prepared.seed is not None else Draw(positions)

    @property
    def temperature(self) -> float:
        """See NoisySampler. What other warpers cut off is not known from it."""
        if self._prepared.seed is None:
            return 0.0
        warpers = (one for one in self._processors if isinstance(one, hf.TemperatureLogitsWarper))
        return math.prod(float(warper.temperature) for warper in warpers)

    def noise_words(self, position: int) -> NDArray[np.uint32]:
        """See NoisySampler."""
        assert self._prepared.seed is not None
        return NoiseKey(self._prepared.seed, self.index, position).words()

    def draws(self, logits: LogitRows) -> Callable[[int, list[int]], int]:
        """See TokenSampler. Raises ModelError where no token can be chosen."""
        logits, draw = Logits.of(logits), self.foresee(np.empty(0, np.int64))
        if draw is None:
            return lambda row, token_ids: self._draw(logits[row], len(token_ids))
        if draw.num_best is not None:
            best = logits.top(draw.num_best + 1)
            return lambda row, token_ids: self._draw_among(best, logits, row, len(token_ids))
        tokens, values = (each.tolist() for each in logits.best())
        return lambda row, token_ids: _checked(tokens[row], values[row], len(token_ids))

    def _draw_among(self, best: Tokens, logits: Logits, row: int, position: int) -> int:
        """Among the tokens that top-k leaves: warpers see these alone. One more is known of."""
        assert self._prepared.seed is not None
        scores, input_ids = torch.from_numpy(best.scores[row])[None], self._text[:, : self._length]
        for warper in self._processors:
            if type(warper) is hf.TopKLogitsWarper:
                kept = scores[:, : warper.top_k]
                if torch.equal(scores[:, warper.top_k :], kept[:, -1:]):
                    return self._draw(logits[row], position)  # tokens that equal the last one are kept
                scores = kept
            scores = warper(input_ids.cpu(), scores)
        token_ids = best.token_ids[row, : scores.shape[1]]
        key = NoiseKey(self._prepared.seed, self.index, position)
        largest = (scores[0] + torch.from_numpy(gumbel_noise_of(token_ids, key))).max(-1)
        value = float(largest.values)
        token_id = int(token_ids[int(largest.indices)])
        return _checked(token_id, value if value > -torch.inf else torch.nan, position)

    def _draw(self, logits: torch.Tensor, position: int) -> int:
        input_ids = self._text[:, : self._length]
        # A copy, because logits of an inference pass may not be changed in place, and processors do that.
        raw = logits[None].to(input_ids.device, torch.float32, copy=True)
        if self._prepared.keeps_logits:
            self.logits.append(raw.clone())
        scores = raw
        for process in self._processors:
            scores = process(input_ids, scores)
        if self._prepared.keeps_scores:
            self.scores.append(scores)
        seed = self._prepared.seed
        if seed is None:
            best = scores[0].max(-1)
            return _checked(int(best.indices), float(best.values), position)
        best = (scores[0] + self._noise(seed, position, scores)).max(-1)
        value = float(best.values)
        return _checked(int(best.indices), value if value > -torch.inf else torch.nan, position)

    def guess(self, logits: torch.Tensor, position: int) -> int:
        """See TokenSampler."""
        return int(self.noisy(logits, position).argmax())

    def noisy(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """See TokenSampler."""
        seed = self._prepared.seed
        if seed is None:
            return logits.float()
        scores = logits[None].to(self._text.device, torch.float32, copy=True)
        for process in self._processors:
            if type(process) in _WARPERS:
                scores = process(self._text[:, : self._length], scores)
        return scores[0] + self._noise(seed, position, scores)

    def _noise(self, seed: int, position: int, scores: torch.Tensor) -> torch.Tensor:
        noise = recent_gumbel_noise(seed, self.index, position, scores.shape[1])
        return torch.from_numpy(noise).to(scores.device)

    def after(self, token_id: int) -> FinishReason | None:
        """See StopRule."""
        if self._length == self._text.shape[1]:
            self._text = torch.cat((self._text, self._text.new_zeros(1, max(64, self._length))), dim=1)
        self._text[0, self._length] = token_id
        self._length += 1
        input_ids = self._text[:, : self._length]
        scores = tuple(self.scores) if self._criteria and self._prepared.keeps_scores else None
        # Every criterion is asked, as in generate, because it may be counting.
        stops = [criterion(input_ids, scores) for criterion in self._criteria]
        if token_id in self._eos_token_ids or any(stops):
            return "stop"
        return "length" if any(self._is_at(limit, input_ids) for limit in self._limits) else None

    def _is_at(self, limit: Any, input_ids: torch.Tensor) -> bool:
        window = getattr(limit, "max_position_embeddings", None)
        if window is not None and window < self._length < limit.max_length:
            limit(input_ids, None)  # it warns
        return bool(self._length >= limit.max_length)


def _checked(token_id: int, score: float, position: int) -> int:
    if math.isnan(score):
        raise ModelError(
            f"no token can be chosen at position {position}: the model gave NaN there, or the processors "
            "left nothing to sample from; load the model in float32, or check its weights and the processors"
        )
    return token_id


def _num_best(processors: list[Processor]) -> int | None:
    """How many tokens top-k leaves, if nothing else is done but to look at those."""
    if not all(type(one) in _AMONG_THE_BEST for one in processors):
        return None
    cuts = [type(one) is hf.TopKLogitsWarper for one in processors]
    if sum(cuts) != 1 or any(type(one) in _CUTS for one in processors[: cuts.index(True)]):
        return None
    num_best = int(processors[cuts.index(True)].top_k)  # type: ignore[attr-defined]
    return num_best if num_best <= MOST_BEST else None


def _processor_of_row(processor: Any, row: int, batch_size: int) -> Processor:
    """The processor as one row of a batch uses it; alone, it is the caller's own object."""
    if batch_size == 1 or type(processor) in _ROW_BY_ROW:
        own: Processor = processor
        return own
    if type(processor) is hf.PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return hf.PrefixConstrainedLogitsProcessor(lambda _, text: allowed(row, text), 1)
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor:
        penalty = copy.copy(processor)
        if isinstance(penalty.prompt_ignore_length, torch.Tensor):
            penalty.prompt_ignore_length = penalty.prompt_ignore_length[row : row + 1]
        return penalty
    return partial(_process_in_batch, own_copy(processor), row, batch_size)


def _process_in_batch(
    processor: Any, row: int, batch_size: int, input_ids: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    processed = processor(input_ids.repeat(batch_size, 1), scores.repeat(batch_size, 1))
    one: torch.Tensor = processed[row : row + 1]
    return one


def _criterion_of_row(criterion: Any, row: int, batch_size: int) -> Callable[..., bool]:
    if batch_size == 1 or type(criterion) in _ROW_BY_ROW:
        return partial(_ask_in_batch, criterion, 0, 1)
    return partial(_ask_in_batch, own_copy(criterion), row, batch_size)


def _ask_in_batch(
    criterion: Any,
    row: int,
    batch_size: int,
    input_ids: torch.Tensor,
    scores: tuple[torch.Tensor, ...] | None,
) -> bool:
    if batch_size > 1:
        input_ids = input_ids.repeat(batch_size, 1)
        scores = None if scores is None else tuple(one.expand(batch_size, -1) for one in scores)
    answer = criterion(input_ids, scores)
    if isinstance(answer, torch.Tensor) and answer.numel() > 1:
        answer = answer.reshape(-1)[row]
    return bool(answer)
