"""The decoding method handed to `generate`: takes what `generate` prepared and writes the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence as AbstractSequence
from functools import partial
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hasten.core import DecodeStats, Drafting, Sequence
from hasten.drafters import Drafter
from hasten.dropin.arguments import (
    config_value,
    padding_of,
    refuse_model_inputs,
    refuse_options,
)
from hasten.dropin.rows import Prepared, Row
from hasten.errors import ConfigError, PromptError
from hasten.models.causal_lm import require_torch
from hasten.text.drafting import Method
from hasten.text.engine import LanguageModel

DrafterChoice = str | Drafter | AbstractSequence[str | Drafter] | None


class Decoding:
    """One call's decoding method, in the form `generate(custom_generate=...)` takes.

    Args:
        drafter: for all rows, or one a row; None is the model's default.
        num_draft_tokens: a fixed tree size; None lets the cost policy choose.
        streamer: gets the tokens; `generate` itself gave it the prompt.
        stop_strings: watched with the tokenizer, where `generate` was kept from seeing them.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        drafter: DrafterChoice,
        num_draft_tokens: int | None,
        *,
        streamer: Any = None,
        stop_strings: Any = None,
        tokenizer: Any = None,
    ) -> None:
        self._language_model = language_model
        self._drafter = drafter
        self._num_draft_tokens = num_draft_tokens
        self._streamer = streamer
        self._stop_strings = stop_strings
        self._tokenizer = tokenizer
        self.stats: list[DecodeStats] | None = None
        """one a row; None as long as `generate` did not come here"""

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | torch.Tensor:
        refuse_options(partial(config_value, generation_config))
        refuse_model_inputs(model_kwargs)
        prepared = Prepared(
            input_ids=input_ids,
            padding=padding_of(
                input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
            ),
            processors=logits_processor,
            criteria=self._with_stop_strings(stopping_criteria),
            config=generation_config,
            seed=int(torch.randint(2**63 - 1, (1,))) if generation_config.do_sample else None,
        )
        pad_token_id = _pad_token_id(prepared)
        rows = [Row(prepared, row) for row in range(prepared.batch_size)]
        sequences = [self._sequence(prepared, row) for row in rows]
        self.stats = [sequence.stats for sequence in sequences]
        self._write(sequences, pad_token_id)
        return _result(prepared, rows, sequences, pad_token_id)

    def _with_stop_strings(self, criteria: StoppingCriteriaList) -> StoppingCriteriaList:
        if self._stop_strings is None or any(type(c) is StopStringCriteria for c in criteria):
            return criteria
        return StoppingCriteriaList([*criteria, StopStringCriteria(self._tokenizer, self._stop_strings)])

    def _sequence(self, prepared: Prepared, row: Row) -> Sequence:
        """Beyond the positions the model was built for nothing is drafted; writing goes on."""
        prompt = prepared.input_ids[row.index, prepared.padding[row.index] :].tolist()
        vocab_size = self._language_model.target.vocab_size
        for token_id in prompt:
            if not 0 <= token_id < vocab_size:
                raise PromptError(f"token id {token_id} is outside the vocabulary of {vocab_size} tokens")
        limit = prepared.criteria.max_length
        room = prepared.input_ids.shape[1] + 2**30 if limit is None else limit
        rotation_limit = require_torch(self._language_model.target, "the drop-in").rotation_limit
        if rotation_limit is not None and room - prepared.padding[row.index] > rotation_limit:
            raise ConfigError(
                f"max_length={limit} passes position {rotation_limit}, where this model's rotary embedding "
                "changes for the whole text (longrope); write less, or hasten.restore it"
            )
        return Sequence(
            token_ids=prompt,
            prompt_length=len(prompt),
            max_length=min(
                room - prepared.padding[row.index], self._language_model.target.max_length or room
            ),
            sampler=row,
            stop_rule=row,
        )

    def _write(self, sequences: list[Sequence], pad_token_id: int | None) -> None:
        entries = list(zip(sequences, self._methods(len(sequences)), strict=True))
        shown = 0
        steps = self._language_model.decode_sequences(entries, len(entries))
        with contextlib.closing(steps):
            for _ in steps:
                if self._streamer is not None:
                    for tokens in _columns(sequences, shown, pad_token_id):
                        self._streamer.put(tokens)
                        shown += 1
        if self._streamer is not None:
            self._streamer.end()

    def _methods(self, num_rows: int) -> list[Method]:
        """How each row is drafted."""
        chosen = self._drafter
        is_one = chosen is None or isinstance(chosen, str) or not isinstance(chosen, AbstractSequence)
        names: list[Any] = [chosen] if is_one else list(cast("AbstractSequence[Any]", chosen))
        copies, left_over = divmod(num_rows, len(names) or 1)
        if not names or left_over:
            raise ConfigError(
                f"drafter={chosen!r} names {len(names)} drafters for {num_rows} rows; "
                "give one a row, or a single one for all"
            )
        found: dict[Any, Method] = {}
        for name in names:
            if name not in found:
                drafting = Drafting(drafter=name, num_draft_tokens=self._num_draft_tokens)
                found[name] = self._language_model.method(drafting)
        return [found[name] for name in names for _ in range(copies)]


def _pad_token_id(prepared: Prepared) -> int | None:
    """ConfigError where rows may end apart and nothing could fill the shorter ones."""
    pad = prepared.config._pad_token_tensor
    if pad is not None:
        return int(pad)
    if prepared.batch_size > 1 and any(type(one) is not MaxLengthCriteria for one in prepared.criteria):
        raise ConfigError(
            "pad_token_id=None cannot fill rows that end before others; set pad_token_id, "
            "such as to the tokenizer's pad or eos token"
        )
    return None


def _columns(sequences: list[Sequence], shown: int, pad_token_id: int | None) -> Iterator[torch.Tensor]:
    """int64 [batch] for every position from ``shown`` on that every row has reached or ended before."""
    while any(sequence.prompt_length + shown < len(sequence.token_ids) for sequence in sequences):
        column = []
        for sequence in sequences:
            position = sequence.prompt_length + shown
            if position < len(sequence.token_ids):
                column.append(sequence.token_ids[position])
            elif sequence.finish_reason:
                column.append(cast(int, pad_token_id))
            else:
                return
        yield torch.tensor(column)
        shown += 1


def _result(
    prepared: Prepared, rows: list[Row], sequences: list[Sequence], pad_token_id: int | None
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    written = list(_columns(sequences, 0, pad_token_id))
    new_tokens = torch.stack(written, dim=1).to(prepared.input_ids.device)
    whole = torch.cat((prepared.input_ids, new_tokens), dim=1)
    if not prepared.config.return_dict_in_generate:
        return whole
    return GenerateDecoderOnlyOutput(
        sequences=whole,  # type: ignore[arg-type]
        scores=_join([row.scores for row in rows], pad_token_id) if prepared.keeps_scores else None,
        logits=_join([row.logits for row in rows], pad_token_id) if prepared.keeps_logits else None,
    )


def _join(kept: list[list[torch.Tensor]], pad_token_id: int | None) -> tuple[Any, ...]:
    """A tensor [batch, vocab] for every written position; ended rows are certain of the pad token."""
    padding = torch.full_like(kept[0][0], -torch.inf)
    if pad_token_id is not None and 0 <= pad_token_id < padding.shape[1]:
        padding[0, pad_token_id] = 0
    longest = max(map(len, kept))
    return tuple(
        torch.cat([row[position] if position < len(row) else padding for row in kept])
        for position in range(longest)
    )
