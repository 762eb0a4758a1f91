"""What comes in and what goes out: prompts become sequences, finished sequences become outputs.

Knows the tokenizer and what the target reads; knows nothing of drafters, policies or the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.calls import Asked, asked_texts, stop_token_ids
from hasten.core import DecodeStats, FinishReason, Guarantee, SamplingParams, Sequence, TokenLogprob
from hasten.detokenising import Detokeniser
from hasten.errors import ConfigError, PromptError
from hasten.logprobs import Logprobs
from hasten.models.encoder_decoder.target import Seq2SeqLM
from hasten.models.target import Target
from hasten.penalties import asked_processors, in_order
from hasten.processors import own_processors
from hasten.prompts import read_prompts, tokenised
from hasten.sampling import Sampler
from hasten.stopping import StopConditions, TextStream
from hasten.values import prompt_ids

Prompt = str | AbstractSequence[int] | NDArray[np.floating] | torch.Tensor
"""A text, token ids, or for a speech model the mel features of one recording [mel bins, frames]."""
Prompts = Prompt | Iterable[Prompt] | Mapping[str, object]
"""One or several, or what a tokenizer returns (``hasten.prompts.read_prompts``)."""


@dataclass(frozen=True, slots=True)
class Output:
    """One finished text. ``text`` is empty for a model loaded without a tokenizer.

    ``prompt_ids`` is what the text goes on from; for an encoder-decoder model, the decoder's beginning.
    ``guarantee``: "exact" is plain decoding's text, "distribution" one of its law, "approximate" neither.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: DecodeStats
    seed: int
    prompt_ids: list[int]
    guarantee: Guarantee = "exact"
    logprobs: list[TokenLogprob] | None = None
    """one for each of ``token_ids``, where ``SamplingParams.logprobs`` asks for them"""


@dataclass(frozen=True, slots=True)
class Piece:
    """One written token, as it is streamed.

    ``text`` may be empty while a character or a stop string is unfinished; ``source`` names who proposed the
    token, "target" for the model itself; ``output`` is set on the last piece.
    """

    text: str
    token_id: int
    source: str
    output: Output | None = None
    logprob: TokenLogprob | None = None
    """where ``SamplingParams.logprobs`` asks for it"""


@dataclass(frozen=True, slots=True)
class Job:
    """A sequence on its way to an Output."""

    sequence: Sequence
    seed: int
    stream: TextStream | None


@dataclass(frozen=True, slots=True)
class _Start:
    """What a text goes on from, and what an encoder reads."""

    token_ids: list[int]
    source_ids: AbstractSequence[int] = ()
    source_features: torch.Tensor | None = None


class Requests:
    """Reads prompts for one target and writes its texts."""

    def __init__(self, target: Target, tokenizer: Any) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.detokeniser = Detokeniser(tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked against vocabulary and context. Raises PromptError."""
        token_ids = self._token_ids(prompt)
        if not token_ids:
            raise PromptError("the prompt has no tokens; give at least one")
        self.target.check_prompt(token_ids)
        return token_ids

    def _token_ids(self, prompt: Prompt, **options: bool) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError(
                    "the prompt is empty; to start from nothing, give the token id of a start token"
                )
            return tokenised(prompt, self.tokenizer, **options)
        return prompt_ids(prompt, PromptError)

    def read(self, prompts: Any) -> tuple[list[Any], bool]:
        """See ``read_prompts``."""
        return read_prompts(prompts, getattr(self.tokenizer, "pad_token_id", None))

    def jobs(
        self,
        prompts: AbstractSequence[Prompt],
        params: SamplingParams | AbstractSequence[SamplingParams],
        decoder_prompt: str | AbstractSequence[int] | None = None,
    ) -> list[Job]:
        """The texts of a call, the samples of a prompt side by side.

        Of one SamplingParams for all prompts, each has a seed of its own; of a list, each its own.

        Raises PromptError, ConfigError.
        """
        texts = asked_texts(prompts, params)
        stops = {id(text.params): self._stops(text.params) for text in texts}
        starts = {id(prompt): self._start(prompt, decoder_prompt) for prompt in prompts}
        return [
            self._job(starts[id(text.prompt)], text, stops[id(text.params)], is_only=len(texts) == 1)
            for text in texts
        ]

    def _stops(self, params: SamplingParams) -> frozenset[int]:
        target = self.target
        return stop_token_ids(params, self.tokenizer, target.vocab_size, target.stop_token_ids)

    def _start(self, prompt: Prompt, decoder_prompt: str | AbstractSequence[int] | None) -> _Start:
        target = self.target
        if not isinstance(target, Seq2SeqLM):
            if decoder_prompt is not None:
                raise ConfigError("decoder_prompt= is for encoder-decoder models; put it into the prompt")
            return _Start(self.encode(prompt))
        if decoder_prompt is not None:
            decoder_prompt = self._token_ids(decoder_prompt, add_special_tokens=False)
        token_ids = target.start(decoder_prompt)
        if target.reads_features:
            return _Start(token_ids, source_features=target.check_features(prompt))
        return _Start(token_ids, self.encode(prompt))

    def _job(
        self,
        start: _Start,
        asked: Asked[Prompt],
        stops: frozenset[int],
        *,
        is_only: bool,
    ) -> Job:
        params = asked.params
        length = len(start.token_ids)
        room = (self.target.max_length or length + params.max_new_tokens) - length
        max_tokens = min(params.max_new_tokens, room)
        stream = self.text_stream(params) if params.stop_strings else None
        stop_rule = StopConditions(stops, max_tokens, stream)
        asked_for = asked_processors(params, length, stops, self.target.device)
        given = own_processors(params.logits_processors, is_only=is_only)
        processors = self.target.logits_processors(
            length, length + max_tokens, start.source_ids, [*asked_for, *given]
        )
        demanded = processors[: len(processors) - len(asked_for) - len(given)]
        sequence = Sequence(
            token_ids=list(start.token_ids),
            prompt_length=length,
            max_length=length + max_tokens,
            sampler=Sampler(params, asked.seed, asked.sample, in_order(asked_for, demanded, given)),
            stop_rule=stop_rule,
            source_ids=start.source_ids,
            source_features=start.source_features,
            logprobs=None if params.logprobs is None else Logprobs(params.logprobs),
        )
        return Job(sequence, asked.seed, stream)

    def text_stream(self, params: SamplingParams) -> TextStream:
        """What turns a text's tokens into text, up to its stop strings."""
        return TextStream(self.detokeniser, params.stop_strings, params.min_tokens)

    def output(self, job: Job) -> Output:
        sequence = job.sequence
        text = job.stream
        if text is None or sequence.finish_reason in (None, "interrupted"):  # a stream may be ahead of it
            text = TextStream(self.detokeniser)
            text.push(sequence.new_token_ids)
        text.finish()
        reason = sequence.finish_reason or "interrupted"
        prompt_ids = sequence.token_ids[: sequence.prompt_length]
        return Output(
            text.text,
            sequence.new_token_ids,
            reason,
            sequence.stats,
            job.seed,
            prompt_ids,
            sequence.guarantee,
            None if sequence.logprobs is None else sequence.logprobs.tokens[: len(sequence.new_token_ids)],
        )
