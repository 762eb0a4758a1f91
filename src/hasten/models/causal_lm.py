"""The target: a transformers causal LM, what it was found to be able to do, and what a pass costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence as AbstractSequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from hasten.core import Acceptance, Sequence
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.forward import Forward
from hasten.models.packed import PackedLinear
from hasten.models.probe import SESSIONS, Mode, ProbeResult, probe
from hasten.models.session import Session
from hasten.models.shared_prefix import SharedPrefixSession, can_share_prefixes
from hasten.tree import DraftTree


class CausalLM:
    """A target model.

    Args:
        model: a transformers causal LM; it is used as it is.
        mode: "auto" probes the model at first use; a mode's name skips the probe.
        shared_prefix: "auto" caches what all prompts of a batch begin with once, where trying shows that the
            model can; "off" never does.
    """

    def __init__(
        self, model: Any, mode: Mode | str = "auto", shared_prefix: Literal["auto", "off"] = "auto"
    ) -> None:
        if mode not in ("auto", *SESSIONS):
            raise ConfigError(f"mode={mode!r} is unknown; choose auto, {', '.join(SESSIONS)}")
        if shared_prefix not in ("auto", "off"):
            raise ConfigError(f"shared_prefix={shared_prefix!r} is unknown; choose auto, off")
        self.forward = self._forward_of(model.eval())
        self._mode = mode
        self._shared_prefix = shared_prefix

    def _forward_of(self, model: Any) -> Forward:
        if getattr(model.config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
            raise ModelError(f"{type(model).__name__} is not a causal language model of transformers")
        return Forward(model)

    @cached_property
    def probe(self) -> ProbeResult:
        """Runs once, a dozen passes over a few dozen tokens."""
        if self._mode != "auto":
            return ProbeResult(self._mode, 0.0, {})  # type: ignore[arg-type]
        return probe(self.forward)

    @cached_property
    def can_share_prefixes(self) -> bool:
        """Runs once, when the first batch with a common beginning comes: another dozen passes."""
        return can_share_prefixes(self.forward)

    @property
    def vocab_size(self) -> int:
        return self.forward.vocab_size

    @property
    def device(self) -> torch.device:
        return self.forward.device

    @property
    def dtype(self) -> torch.dtype:
        return self.forward.dtype

    @property
    def max_length(self) -> int | None:
        """Positions the model was built for, or None if its config does not say."""
        limit = getattr(self.forward.text_config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The model's own end-of-text tokens."""
        for config in (self.forward.model.generation_config, self.forward.text_config):
            found = getattr(config, "eos_token_id", None)
            if found is not None:
                return frozenset(found if isinstance(found, list) else [found])
        return frozenset()

    def check_prompt(self, token_ids: list[int]) -> None:
        """Raises PromptError for token ids outside the vocabulary, or more than leave room for a new one."""
        check_token_ids(token_ids, self.vocab_size)
        limit = self.max_length
        if limit is not None and len(token_ids) >= limit:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens, the context holds {limit}; shorten the prompt"
            )

    def open(self, sequences: AbstractSequence[Sequence] = ()) -> Session:
        """A session for one batch; what a causal model needs of the sequences comes with ``prefill``."""
        if self.probe.mode == "tree" and self._shared_prefix == "auto":
            return SharedPrefixSession(self.forward, lambda: self.can_share_prefixes)
        return SESSIONS[self.probe.mode](self.forward)

    def synchronize(self) -> None:
        """Wait for the device, so that clocks mean something."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def num_bytes(self) -> int:
        """Memory of the weights, packed ones included."""
        packed = [module for module in self.forward.model.modules() if isinstance(module, PackedLinear)]
        return int(
            sum(p.numel() * p.element_size() for p in self.forward.model.parameters())
            + sum(layer.in_features * layer.out_features * self.dtype.itemsize for layer in packed)
        )

    def measure_cost(
        self, rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64), context: int = 256, repeats: int = 5
    ) -> dict[int, float]:
        """Median milliseconds of one pass over 1 root and ``rows - 1`` draft nodes after a context."""
        context = min(context, (self.max_length or context + max(rows)) - max(rows) - 1)
        prompt = np.random.default_rng(0).integers(0, self.vocab_size, context).tolist()
        session = self.open()
        session.prefill([prompt])
        times: dict[int, list[float]] = {}
        for _ in range(repeats + 1):
            for count in rows:
                tree = session.fit(
                    DraftTree.chain([1 + node % (self.vocab_size - 1) for node in range(count - 1)])
                )
                start = time.perf_counter()
                session.forward([tree])
                self.synchronize()
                times.setdefault(len(tree) + 1, []).append(1000 * (time.perf_counter() - start))
                session.keep([Acceptance([], [prompt[-1]])])
        return {count: statistics.median(values[1:]) for count, values in times.items()}


def check_token_ids(token_ids: list[int], vocab_size: int) -> None:
    """Raises PromptError for the first one outside the vocabulary."""
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise PromptError(f"token id {wrong} is outside the vocabulary of {vocab_size} tokens")
