"""What a model's head reads: the last hidden states of a pass."""

from __future__ import annotations

import threading
from typing import Any

import torch

from hasten.models.forwards.forward import Forward


class HiddenTap:
    """Listens at the output embeddings of a transformers model, until closed; hears its own thread only.

    Attributes:
        newest: [batch, tokens, hidden] of the last pass, as the head was given them; None before a pass.
    """

    def __init__(self, model: Any) -> None:
        self.newest: torch.Tensor | None = None
        self._thread = threading.get_ident()  # a draft may read ahead with a model that is running elsewhere
        self._handle = model.get_output_embeddings().register_forward_pre_hook(self._listen)

    def _listen(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == self._thread:
            self.newest = inputs[0].detach()

    def close(self) -> None:
        self._handle.remove()


class HiddenForward(Forward):
    """A pass whose rows are logits and then the hidden states they were read from, [.., vocab + hidden].

    So whoever keeps a node's row keeps both.
    """

    @torch.inference_mode()
    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        tap = HiddenTap(self.model)
        try:
            logits = super().__call__(*arguments, **options)
        finally:
            tap.close()
        assert tap.newest is not None
        return torch.cat((logits, tap.newest.to(logits)), dim=-1)
