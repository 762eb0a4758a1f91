"""An encoder-decoder target: T5, BART, Marian, Whisper and their like, one beam.

The loop and the sessions are those of causal models: the decoder's text is the sequence, what the encoder
reads is a property of the batch. Blockwise ("generalized aggressive") decoding of arXiv 2205.10350 is
therefore nothing of its own here: it is any drafter on such a model, and its tolerant variant is
``verify="tolerant"``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np
import torch

from hasten.core import LogitsProcessor, Sequence
from hasten.errors import ModelError, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.models.encoder_decoder.forward import Seq2SeqForward, Source
from hasten.models.forwards.forward import Forward
from hasten.models.probe import SESSIONS, Mode, ProbeResult, probe
from hasten.models.sessions.session import Session
from hasten.models.target import check_token_ids

_READABLE = ("input_ids", "input_features")


def target_of(model: Any, forward: Forward | None = None) -> CausalLM:
    """The target for a transformers model: its config says which kind it is. Raises ModelError.

    ``forward`` runs the passes of a causal model, where it is not the model itself.
    """
    is_seq2seq = getattr(model.config, "is_encoder_decoder", False)
    return Seq2SeqLM(model) if is_seq2seq else CausalLM(model, forward=forward)


class Seq2SeqLM(CausalLM):
    """A target that reads a source and writes a text about it.

    Args:
        model: a transformers encoder-decoder model that reads token ids, or mel features as Whisper does.
        mode: as for CausalLM.
    """

    forward: Seq2SeqForward
    reads_source = True

    def __init__(self, model: Any, mode: Mode | str = "auto") -> None:
        super().__init__(model, mode, shared_prefix="off")

    def _forward_of(self, model: Any) -> Forward:
        if not getattr(model.config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
            raise ModelError(
                f"{type(model).__name__} is not an encoder-decoder model of transformers that writes"
            )
        name, config = model.main_input_name, model.config
        shaped = hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions")
        if name not in _READABLE or (name == "input_features" and not shaped):
            raise ModelError(
                f"{type(model).__name__} reads {name}; hasten knows encoders of token ids, and of mel "
                "features of one size (Whisper)"
            )
        return Seq2SeqForward(model)

    def _probe(self) -> ProbeResult:
        """As for causal models, on two rows of which the first has the shorter source."""
        return probe(self.forward.bind([self._example(9), self._example(14)]), num_rows=2)

    def example_passes(self) -> Forward:
        """See CausalLM: about a source of any tokens or sound."""
        return self.forward.bind([self._example(9)])

    def _example(self, length: int) -> Source:
        rng = np.random.default_rng(length)
        if self.reads_features:
            return torch.from_numpy(rng.standard_normal(self._feature_shape))
        return [int(token_id) for token_id in rng.integers(0, self.source_vocab_size, length)]

    @property
    def reads_features(self) -> bool:
        return bool(self.forward.model.main_input_name == "input_features")

    @property
    def source_vocab_size(self) -> int:
        """Token ids the encoder knows; Marian models may have another vocabulary than their decoder."""
        model = self.forward.model
        reader = model.get_encoder()
        reader = reader if hasattr(reader, "get_input_embeddings") else model
        return int(reader.get_input_embeddings().weight.shape[0])

    @property
    def max_length(self) -> int | None:
        """Positions of the decoder, or None where its config names no limit (T5's relative positions)."""
        return _limit(
            self.forward.text_config,
            "max_target_positions",
            "max_decoder_position_embeddings",
            "max_position_embeddings",
        )

    @property
    def max_source_length(self) -> int | None:
        """Token ids the encoder takes, or None where its config names no limit."""
        config = self.forward.config.get_text_config(encoder=True)
        return _limit(config, "max_encoder_position_embeddings", "max_position_embeddings")

    def open(self, sequences: AbstractSequence[Sequence] = ()) -> Session:
        """A session for one batch, its sources encoded; without sequences, one row with any source."""
        sources = [_source(sequence) for sequence in sequences] or [self._example(9)]
        return SESSIONS[self.probe.mode](self.forward.bind(sources))

    def check_prompt(self, token_ids: list[int]) -> None:
        check_token_ids(token_ids, self.source_vocab_size)
        limit = self.max_source_length
        if limit is not None and len(token_ids) > limit:
            raise PromptError(
                f"the source has {len(token_ids)} tokens, the encoder reads {limit}; shorten the source"
            )

    def check_features(self, features: Any) -> torch.Tensor:
        """Mel features as a tensor. Raises PromptError for anything else, or for another shape."""
        shape = self._feature_shape
        wanted = (
            f"give one recording's mel features, a float array {list(shape)}, as its processor makes them"
        )
        if isinstance(features, np.ndarray):
            features = torch.from_numpy(features)
        if not isinstance(features, torch.Tensor) or not features.is_floating_point():
            raise PromptError(f"{type(self.forward.model).__name__} reads sound, not text: {wanted}")
        if tuple(features.shape) != shape:
            raise PromptError(f"features of shape {list(features.shape)} do not fit: {wanted}")
        return features

    def start(self, prompt: list[int] | None) -> list[int]:
        """What the decoder begins with: its start token, and then the prompt given for it, if any.

        As in transformers, a prompt that begins with the start token, or that of a speech model, is used as
        it is. Raises PromptError, or ModelError for a model without a start token.
        """
        if prompt is not None:
            check_token_ids(prompt, self.vocab_size)
            limit = self.max_length
            if limit is not None and len(prompt) >= limit:
                raise PromptError(
                    f"the decoder's prompt has {len(prompt)} tokens, its context holds {limit}; shorten it"
                )
            if self.reads_features:
                return prompt
        start = self._start_token_id()
        return [start] if not prompt else prompt if prompt[0] == start else [start, *prompt]

    def _start_token_id(self) -> int:
        for config in (self.forward.model.generation_config, self.forward.config):
            for name in ("decoder_start_token_id", "bos_token_id"):
                found = getattr(config, name, None)
                if found is not None:
                    return int(found)
        raise ModelError("the model has no decoder_start_token_id: set it in its generation_config")

    def logits_processors(
        self,
        prompt_length: int,
        max_length: int,
        source_ids: AbstractSequence[int],
        given: AbstractSequence[LogitsProcessor] = (),
    ) -> list[LogitsProcessor]:
        """What `generate` of transformers applies with this model's generation settings.

        Forced, suppressed and unrepeated tokens, minimum lengths, penalties: summarising models (BART) are
        tuned with them.

        Args:
            max_length: where a forced end of text stands, prompt included.
            given: the caller's own; they come last, and replace the model's of the same type.
        """
        model = self.forward.model
        settings = copy.deepcopy(model.generation_config)
        settings.max_length, settings.do_sample = max_length, False
        model._prepare_special_tokens(settings, True, device=self.device)
        encoder_ids = torch.tensor([source_ids], device=self.device) if len(source_ids) else None
        processors = model._get_logits_processor(
            settings, prompt_length, encoder_input_ids=encoder_ids, device=self.device
        )
        replaced = {type(process) for process in given}
        return [*(process for process in processors if type(process) not in replaced), *given]

    @property
    def _feature_shape(self) -> tuple[int, int]:
        """Mel bins and frames; Whisper's second convolution takes every other frame."""
        config = self.forward.config
        return config.num_mel_bins, 2 * config.max_source_positions


def _source(sequence: Sequence) -> Source:
    features = sequence.source_features
    return sequence.source_ids if features is None else features


def _limit(config: Any, *names: str) -> int | None:
    found = next((value for name in names if (value := getattr(config, name, None))), None)
    return None if found is None else int(found)
