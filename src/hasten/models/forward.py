"""One forward pass of a transformers causal LM: which arguments it takes, and its logits."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import TopCandidates

PREFILL_CHUNK = 512
"""Prompts are cached in pieces of this many tokens, so that masks and logits stay small."""


class Forward:
    """Calls the model with what its signature accepts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.text_config = model.config.get_text_config(decoder=True)
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.dtype: torch.dtype = model.dtype
        head = model.get_output_embeddings()
        self.vocab_size: int = getattr(head, "out_features", None) or head.weight.shape[0]
        parameters = inspect.signature(model.forward).parameters
        self._takes_position_ids = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"

    @torch.inference_mode()
    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
        cache: Any | None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        """Logits [batch, tokens, vocab]; of the last ``logits_to_keep`` tokens only, where that is not 0."""
        arguments: dict[str, Any] = {"attention_mask": attention_mask, "return_dict": True}
        if position_ids is not None and self._takes_position_ids:
            arguments["position_ids"] = torch.from_numpy(position_ids).to(self.device)
        if logits_to_keep and self._takes_logits_to_keep:
            arguments["logits_to_keep"] = logits_to_keep
        arguments["use_cache"] = cache is not None
        if cache is not None:
            arguments[self._cache_argument] = cache
        output = self.model(torch.from_numpy(token_ids).to(self.device), **arguments)
        logits: torch.Tensor = output.logits
        return logits


def join_candidates(pieces: list[TopCandidates]) -> TopCandidates | None:
    """Candidates of consecutive pieces of one prompt, as one."""
    if not pieces:
        return None
    return TopCandidates(
        np.concatenate([piece.token_ids for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
    )
