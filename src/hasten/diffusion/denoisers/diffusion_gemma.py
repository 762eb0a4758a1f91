"""DiffusionGemma: an encoder reads the text so far, a decoder denoises the next piece from random tokens.

The encoder is causal and its keys and values are kept, which is exact. The decoder sees them and, both ways,
a piece of ``canvas_length`` positions, and is told what it predicted last (self-conditioning). The module is
that of transformers; it is run for text only. Canvases of a batch are run one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion, DynamicCache

from hasten.diffusion.canvas import DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.denoisers.foreign import Config, Family, need
from hasten.errors import ConfigError, PromptError
from hasten.models.weights import load_weights


class DiffusionGemma:
    """See canvas.Denoiser.

    Args:
        model: a DiffusionGemmaForBlockDiffusion of transformers, in evaluation mode.
        spec: with "encoder-decoder" attention, uniform noise, and the canvas length as its block size.

    Raises ConfigError for another spec.
    """

    def __init__(self, model: Any, spec: DenoiserSpec) -> None:
        if (spec.attention, spec.noise, spec.mask_id) != ("encoder-decoder", "uniform", None):
            raise ConfigError(
                "DiffusionGemma has attention=encoder-decoder, noise=uniform and no mask token; leave those "
                "out of spec="
            )
        if spec.block_size is None or spec.block_size > model.config.canvas_length:
            raise ConfigError(
                f"block_size={spec.block_size} is more than the {model.config.canvas_length} positions that "
                "DiffusionGemma writes at a time"
            )
        self.model, self.spec, self.canvas_length = model, spec, spec.block_size
        self._text_config = model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        return int(self._text_config.vocab_size)

    @property
    def max_length(self) -> int | None:
        return int(self._text_config.max_position_embeddings)

    def open(self, lengths: AbstractSequence[int], *, keeps_rows: bool) -> DiffusionGemmaSession:
        """Raises ConfigError where a cache policy shall choose rows."""
        if keeps_rows:
            raise ConfigError("DiffusionGemma keeps what its encoder read by itself; choose the cache 'none'")
        return DiffusionGemmaSession(self.model, self.canvas_length, len(lengths))


@dataclass(slots=True, eq=False)
class _Read:
    """What the encoder has read of one canvas."""

    token_ids: Ids
    cache: Any


class DiffusionGemmaSession:
    """See canvas.DenoiserSession. What comes before the first wanted position is read by the encoder."""

    def __init__(self, model: Any, canvas_length: int, num_sequences: int) -> None:
        self._model, self._canvas_length = model, canvas_length
        self._read = [self._nothing() for _ in range(num_sequences)]

    def forward(self, queries: AbstractSequence[Query]) -> list[Prediction]:
        """Raises ConfigError for queries that it cannot answer, PromptError without a prompt."""
        for query in queries:
            self._check(query)
        return [self._predict(query) for query in queries]

    def _check(self, query: Query) -> None:
        wanted, size = query.wanted, self._canvas_length
        if query.chain is not None or query.computed is not None or query.stores or query.wants_hidden:
            raise ConfigError(
                "DiffusionGemma predicts whole blocks only, without hidden states, rows or chains"
            )
        if len(wanted) != wanted[-1] - wanted[0] + 1 or len(wanted) > size:
            raise ConfigError(
                f"DiffusionGemma writes one piece of at most {size} positions after the other, with nothing "
                f"given in between; choose 'blocks:{size}', and leave out gaps and parts that look further"
            )
        if wanted[0] == 0:
            raise PromptError(
                "DiffusionGemma needs a prompt of at least one token, such as the first of a text"
            )

    @torch.no_grad()
    def _predict(self, query: Query) -> Prediction:
        start, end = int(query.wanted[0]), int(query.wanted[-1]) + 1
        read = self._encoded(query.sequence, query.token_ids[:start])
        output = self._model(
            decoder_input_ids=self._tensor(query.token_ids[start:end]),
            past_key_values=read.cache,
            self_conditioning_logits=self._conditioning(query),
        )
        return Prediction(query.wanted, output.logits[0])

    def _conditioning(self, query: Query) -> torch.Tensor | None:
        """The last logits [1, positions, vocab], in the dtype of the embeddings."""
        if query.previous is None:
            return None
        return query.previous.at(query.wanted).logits[None].to(self._model.dtype)

    def _encoded(self, sequence: int, token_ids: Ids) -> _Read:
        """The encoder goes on where it stopped; a text that is not the canvas's is read for this once."""
        read = self._read[sequence]
        known = len(read.token_ids)
        if not np.array_equal(read.token_ids, token_ids[:known]):
            read, known = self._nothing(), 0
        if known < len(token_ids):
            self._model.model.encoder(input_ids=self._tensor(token_ids[known:]), past_key_values=read.cache)
            read.token_ids = token_ids.copy()
        return read

    def _nothing(self) -> _Read:
        cache = DynamicCache(config=self._model.config.get_text_config())
        return _Read(np.empty(0, dtype=np.int64), cache)

    def _tensor(self, token_ids: Ids) -> torch.Tensor:
        return torch.from_numpy(token_ids).to(self._model.device)[None]


def _build(folder: Path, config: Config, dtype: torch.dtype | str) -> Any:
    return load_weights(DiffusionGemmaForBlockDiffusion, str(folder), dtype=dtype)


def _spec_values(config: Config) -> dict[str, Any]:
    return {
        "attention": "encoder-decoder",
        "noise": "uniform",
        "block_size": need(config, "canvas_length"),
    }


DIFFUSION_GEMMA = Family(
    name="DiffusionGemma",
    model_types=("diffusion_gemma",),
    architectures=("DiffusionGemmaForBlockDiffusion",),
    spec_values=_spec_values,
    build=_build,
    wrap=DiffusionGemma,
    tokenizer=AutoTokenizer.from_pretrained,
    text_config=lambda config: need(config, "text_config"),
)
