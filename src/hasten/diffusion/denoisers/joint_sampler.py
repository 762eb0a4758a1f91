"""One layer on top of a masked-diffusion model, which goes on predicting while tokens are written.

ADJUST (arXiv 2509.22738): the layer reads the tokens of the canvas as it has become and the hidden states of
the last prediction, and gives new hidden states; the model's own output layer, unchanged, makes logits of
them. So the tokens that follow the first of a forward pass are drawn given those before them, at the price of
a layer each.

The layer is a stock Llama layer of the base's shape that attends in both directions. Untrained, it returns
the hidden states that it was given, so that it changes nothing. Knows modules; not how it is trained or
stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from hasten.diffusion.canvas import DenoiserSpec, Ids
from hasten.errors import ModelError

_SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads")
_OPTIONAL = ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_parameters")


class JointSampler(nn.Module):
    """For one base model, whose embeddings and output layer it uses and does not change.

    Args:
        base: a transformers model with input and output embeddings.
        spec: of the same model.

    Raises ModelError for a model whose shape cannot be read.
    """

    def __init__(self, base: Any, spec: DenoiserSpec) -> None:
        super().__init__()
        config = _layer_config(base.config.get_text_config())
        width = config.hidden_size
        self.join = nn.Linear(2 * width, width, bias=False)
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self.layer.self_attn.is_causal = False
        self._rotary = LlamaRotaryEmbedding(config)
        # In a tuple the base's parameters are not this module's.
        self._base = (base.get_input_embeddings(), base.get_output_embeddings())
        self._spec = spec
        self._start_unchanged(width)
        weight = self._base[0].weight
        self.to(weight.device)
        self.join.to(weight.dtype)
        self.layer.to(weight.dtype)  # the angles stay in float32

    def _start_unchanged(self, width: int) -> None:
        with torch.no_grad():
            self.join.weight[:, :width] = 0  # tokens
            self.join.weight[:, width:] = torch.eye(width)  # hidden states
            self.layer.self_attn.o_proj.weight.zero_()
            self.layer.mlp.down_proj.weight.zero_()

    def forward(self, token_ids: Tensor, hidden: Tensor, is_real: Tensor | None = None) -> Tensor:
        """New hidden states [canvases, length, width] of ``token_ids`` int64 [canvases, length].

        ``hidden`` are those of the last prediction; positions that are not real are attended to by none.
        """
        tokens = self._base[0](token_ids).to(hidden)
        states: Tensor = self.join(torch.cat([tokens, hidden], -1))
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        angles = self._rotary(states, positions)
        mask = None if is_real is None else is_real[:, None, None, :]
        made: Tensor = self.layer(
            states, attention_mask=mask, position_ids=positions, position_embeddings=angles
        )
        return made

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """[positions, vocab] of some positions, from a canvas's hidden states [length, width]."""
        rows = (positions - self._spec.logits_shift).clamp(min=0)
        head = self._base[1]
        logits: Tensor = head(hidden[rows].to(head.weight.dtype))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self._spec.mask_id is not None:
            logits = logits.index_fill(
                -1, torch.tensor([self._spec.mask_id], device=logits.device), -torch.inf
            )
        return logits

    @torch.no_grad()
    def reveal(self, token_ids: Ids, positions: Ids, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [positions, vocab], and hidden states [length, width] for the next call.

        Args:
            token_ids: the canvas as it has become, int64 [length].
            positions: int64, whose logits are wanted.
            hidden: [length, width] of the last prediction, by the base model or by this one.
        """
        assert hidden is not None
        weight = self.join.weight
        ids = torch.from_numpy(token_ids).to(weight.device)
        states = self(ids[None], hidden.to(weight)[None])[0]
        return self.logits(
            states, torch.from_numpy(np.ascontiguousarray(positions)).to(weight.device)
        ), states


def _layer_config(base: Any) -> LlamaConfig:
    missing = [name for name in _SHAPE if getattr(base, name, None) is None]
    if missing:
        raise ModelError(
            f"a joint sampler is a layer of the model's shape, but its config ({base.model_type}) has no "
            f"{', '.join(missing)}"
        )
    given = {name: getattr(base, name) for name in _OPTIONAL if getattr(base, name, None) is not None}
    config = LlamaConfig(**{name: getattr(base, name) for name in _SHAPE}, **given, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    return config
