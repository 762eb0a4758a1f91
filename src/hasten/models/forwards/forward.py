"""One forward pass of a transformers causal LM: which arguments it takes, and its logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as AbstractSequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import TopCandidates
from hasten.errors import ConfigError, ModelError
from hasten.logits import Draw, Logits, ask_all
from hasten.models.sessions.attention import AdditiveMask, TreeMask

PREFILL_CHUNK = 512
"""Prompts are cached in pieces of this many tokens, so that masks and logits stay small."""


Mask = TreeMask | AdditiveMask | None
Kept = int | NDArray[np.int64]
"""Whose logits a pass gives: of the last so many tokens of each row (0: of all), or of these columns."""


def columns_kept(kept: Kept, width: int) -> NDArray[np.int64]:
    """Which of ``width`` columns these are."""
    return np.arange(width)[-kept:] if isinstance(kept, int) else kept


class Asked(NamedTuple):
    """What is asked for of the logits of a pass."""

    tokens: list[slice]
    """of each row of the batch, those whose logits count"""
    draws: AbstractSequence[Draw | None]
    """how each row's tokens are drawn; None where that takes the logits as a whole"""
    top_k: int = 0
    """candidates"""
    hidden: AbstractSequence[int] = ()
    """layers whose hidden states are asked for; see Logits.hidden"""


class Forward:
    """Calls the model with what its signature accepts."""

    runs_modules = True
    """whether passes are computed by torch's operations"""
    rows_are_exact = False
    """whether the logits of a token have the same bits whatever else is in its pass"""
    pads_rows = True
    """whether every row of a pass costs as much as the widest one"""
    can_pack_prompts = True
    """whether several prompts may lie in one row of a pass"""
    _prefix = ""
    """what the names of the text's own arguments begin with"""
    _hidden_name = "hidden_states"
    """of the text, in what the model returns"""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.text_config = model.config.get_text_config(decoder=True)
        self.device: torch.device = device_of(model.get_input_embeddings())
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = vocab_size_of(model)
        parameters = inspect.signature(model.forward).parameters
        self._takes_position_ids = f"{self._prefix}position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self.takes_embeddings = not self._prefix and "inputs_embeds" in parameters
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"

    def undisturbed(self) -> AbstractContextManager[None]:
        """What to hold while decoding, so that nothing else takes the processor from the passes."""
        return nullcontext()

    @torch.inference_mode()
    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        logits_to_keep: Kept = 0,
    ) -> torch.Tensor:
        """Logits [batch, tokens, vocab]; of the tokens to keep only, where a model can leave others out.

        ``attention_mask`` is a TreeMask, or what the modules take, or None for a causal pass.
        """
        arguments = self._arguments(position_ids, attention_mask, cache)
        columns = (
            None if isinstance(logits_to_keep, int) else torch.from_numpy(logits_to_keep).to(self.device)
        )
        if self._takes_logits_to_keep and (columns is not None or logits_to_keep):
            arguments["logits_to_keep"] = logits_to_keep if columns is None else columns
        logits: torch.Tensor = self._run(torch.from_numpy(token_ids).to(self.device), arguments).logits
        if columns is not None and not self._takes_logits_to_keep:
            return logits[:, columns]
        return logits

    @torch.inference_mode()
    def with_hidden(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        layers: AbstractSequence[int],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits [batch, tokens, vocab], and the hidden states [batch, tokens, hidden] of these layers.

        By the modules, in any case. Raises ConfigError for layers that the model does not have, and
        ModelError for a model that does not tell its hidden states.
        """
        arguments = self._arguments(position_ids, attention_mask, cache) | {"output_hidden_states": True}
        output = self._run(torch.from_numpy(token_ids).to(self.device), arguments)
        states = getattr(output, self._hidden_name, None)
        if states is None:
            raise ModelError(f"{type(self.model).__name__} does not tell its hidden states")
        check_layers(layers, len(states))
        return output.logits, [states[layer] for layer in layers]

    def find(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        asked: Asked,
    ) -> list[Logits]:
        """As a call, and what is asked for of the logits of each row of the batch."""
        states: list[torch.Tensor] = []
        if asked.hidden:
            passed = (token_ids, position_ids, attention_mask, cache)
            logits, states = self.with_hidden(*passed, asked.hidden)
        else:
            logits = self(token_ids, position_ids, attention_mask, cache)
        found = [Logits(of_row[tokens]) for of_row, tokens in zip(logits, asked.tokens, strict=True)]
        for row, (one, tokens) in enumerate(zip(found, asked.tokens, strict=True)):
            of_row = [of_layer[row, tokens] for of_layer in states]
            one.hidden = dict(zip(asked.hidden, of_row, strict=True))
        if self.device.type != "cpu":
            ask_all(found, asked.draws, asked.top_k)
        return found

    def _expanded(self, mask: TreeMask) -> AdditiveMask:
        """Raises ModelError for attention that would read the numbers as something else, or crash."""
        if not takes_tree_masks(self.text_config):
            asked = self.text_config._attn_implementation
            raise ModelError(f"attn_implementation={asked!r} takes no tree mask; 'sdpa' and 'eager' do")
        return mask.additive(self.dtype, self.device)

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Input embeddings [tokens, hidden]."""
        found: torch.Tensor = self.model.get_input_embeddings()(
            torch.tensor(token_ids, dtype=torch.int64, device=self.device)
        )
        return found

    @torch.inference_mode()
    def from_embeddings(
        self, embeddings: torch.Tensor, position_ids: NDArray[np.int64], cache: Any | None
    ) -> torch.Tensor:
        """Logits [batch, tokens, vocab] of a causal pass over input embeddings [batch, tokens, hidden]."""
        arguments = self._arguments(position_ids, None, cache)
        logits: torch.Tensor = self.model(inputs_embeds=embeddings, **arguments).logits
        return logits

    @torch.inference_mode()
    def attention_weights(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64],
        attention_mask: torch.Tensor,
        cache: Any,
    ) -> list[torch.Tensor | None]:
        """What each layer attends to in a pass, [batch, heads, tokens, keys]; None where it does not say."""
        arguments = self._arguments(position_ids, attention_mask, cache) | {"output_attentions": True}
        original = self.config._attn_implementation
        self.config._attn_implementation = "eager"  # the other kernels never form the weights
        try:
            output = self._run(torch.from_numpy(token_ids).to(self.device), arguments)
        finally:
            self.config._attn_implementation = original
        return list(getattr(output, "attentions", None) or ())

    def _arguments(
        self,
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
    ) -> dict[str, Any]:
        if isinstance(attention_mask, TreeMask):
            attention_mask = self._expanded(attention_mask)
        arguments: dict[str, Any] = {f"{self._prefix}attention_mask": attention_mask, "return_dict": True}
        if position_ids is not None and self._takes_position_ids:
            arguments[f"{self._prefix}position_ids"] = torch.from_numpy(position_ids).to(self.device)
        arguments["use_cache"] = cache is not None
        if cache is not None:
            arguments[self._cache_argument] = cache
        return arguments

    def plain_passes(self) -> Any:
        """What computes plain passes over whole texts in the way of passes with a cache; called like this."""
        return self

    def select(self, rows: list[int]) -> Forward:
        """The same model for these rows of a batch; a causal model knows nothing of rows but their tokens."""
        return self

    def join(self, other: Forward) -> Forward:
        """The same model for the rows of this batch and of another one behind them."""
        return self

    def release(self, cache: Any) -> None:
        """A cache will not be used again: what was set aside for it is free."""

    def _run(self, token_ids: torch.Tensor, arguments: dict[str, Any]) -> Any:
        return self.model(token_ids, **arguments)


def check_layers(layers: AbstractSequence[int], count: int) -> None:
    """Raises ConfigError for one that is not among 0 .. count - 1."""
    wrong = next((layer for layer in layers if not 0 <= layer < count), None)
    if wrong is not None:
        raise ConfigError(f"the model has hidden states 0 to {count - 1}, so not those of layer {wrong}")


def vocab_size_of(model: Any) -> int:
    head = model.get_output_embeddings()
    return int(getattr(head, "out_features", None) or head.weight.shape[0])


def takes_tree_masks(config: Any) -> bool:
    """Whether a model's attention reads a mask of numbers for each pair of tokens, as config says."""
    attention = str(config._attn_implementation)
    return "flex" not in attention and "flash" not in attention


def device_of(embedding: Any) -> torch.device:
    """Where token ids go: of a layer that accelerate offloads, the device that it is brought to for its pass.

    Raises ModelError for weights that are nowhere.
    """
    hook_device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if hook_device is not None:
        return torch.device(hook_device)
    device: torch.device = embedding.weight.device
    if device.type == "meta":
        raise ModelError(
            "the embedding's weights are on the meta device, so there is nothing to compute with; load the "
            "model's weights (from_pretrained), or let accelerate dispatch it (device_map)"
        )
    return device


def join_candidates(pieces: list[TopCandidates]) -> TopCandidates | None:
    """Candidates of consecutive pieces of one prompt, as one; their positions are those of the prompt."""
    if not pieces:
        return None
    positions = [piece.positions for piece in pieces if piece.positions is not None]
    return TopCandidates(
        np.concatenate([piece.token_ids for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
        np.concatenate(positions) if len(positions) == len(pieces) else None,
    )


def among(positions: NDArray[np.int64] | None, start: int, stop: int) -> NDArray[np.int64]:
    """Those of start .. stop - 1, counted from there; all of them for None."""
    if positions is None:
        return np.arange(stop - start)
    return positions[(positions >= start) & (positions < stop)] - start
