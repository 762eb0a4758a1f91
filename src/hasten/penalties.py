"""What SamplingParams do to logits before anything is drawn: bias, penalties, ends that come too early.

Functions of the text before a position, so they are as exact under speculation as the text is. Where
transformers has a processor it is used, so that the numbers are those of its ``generate``, and a checkpoint's
own setting of the same kind is replaced as it is there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from hasten.params import LogitsProcessor, SamplingParams


class CountPenalties:
    """Frequency and presence penalties (OpenAI): what was written, and how often; the prompt does not count.

    A token that was written c > 0 times loses c * frequency + presence.
    """

    def __init__(self, frequency: float, presence: float, prompt_length: int) -> None:
        self._frequency = frequency
        self._presence = presence
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [1, tokens], scores [1, vocab] -> scores [1, vocab]."""
        written, counts = torch.unique(input_ids[0, self._prompt_length :], return_counts=True)
        scores = scores.clone()
        scores[0, written] -= self._frequency * counts + self._presence
        return scores


def asked_processors(
    params: SamplingParams, prompt_length: int, stop_token_ids: Iterable[int], device: torch.device
) -> list[LogitsProcessor]:
    """Those of one text, in the order in which they apply; none where nothing is asked.

    Args:
        stop_token_ids: all tokens that end the text, and cannot before ``min_tokens``.
    """
    asked: list[LogitsProcessor] = []
    if params.logit_bias:
        asked.append(SequenceBiasLogitsProcessor([[[key], each] for key, each in params.logit_bias.items()]))
    if params.repetition_penalty != 1:
        asked.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.frequency_penalty or params.presence_penalty:
        asked.append(CountPenalties(params.frequency_penalty, params.presence_penalty, prompt_length))
    ends = sorted(stop_token_ids)
    if params.min_tokens and ends:
        asked.append(MinNewTokensLengthLogitsProcessor(prompt_length, params.min_tokens, ends, str(device)))
    return asked


def in_order(
    asked: list[LogitsProcessor], demanded: list[LogitsProcessor], given: list[LogitsProcessor]
) -> list[LogitsProcessor]:
    """All of a text's: asked for by params, demanded by the checkpoint, given by the caller.

    A checkpoint's bias comes first, as in transformers, and what it forces comes after the penalties.
    """
    biases = [each for each in demanded if isinstance(each, SequenceBiasLogitsProcessor)]
    return [*biases, *asked, *(each for each in demanded if each not in biases), *given]
