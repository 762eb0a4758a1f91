"""The target: a transformers causal LM, what it was found to be able to do, and what a pass costs."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal

import torch

from hasten.core import LogitsProcessor, Sequence
from hasten.errors import ConfigError, ModelError
from hasten.models.forwards.forward import Forward, vocab_size_of
from hasten.models.forwards.packed import PackedLinear
from hasten.models.forwards.stand_in import Arrangement, StandIn
from hasten.models.generation_settings import demanded_processors, warn_of_suggestions
from hasten.models.probe import SESSIONS, Mode, ProbeResult, probe
from hasten.models.sessions.session import Session
from hasten.models.sessions.shared_prefix import SharedPrefixSession, can_share_prefixes
from hasten.models.target import Target
from hasten.values import known_ids


class CausalLM(Target):
    """A target model.

    Args:
        model: a transformers causal LM; it is used as it is.
        mode: "auto" probes the model at first use; a mode's name skips the probe.
        shared_prefix: "auto" caches what all prompts of a batch begin with once, where trying shows that the
            model can; "off" never does.
        forward: what runs its passes, as forwards.py prepared it; by default the model itself.
    """

    def __init__(
        self,
        model: Any,
        mode: Mode | str = "auto",
        shared_prefix: Literal["auto", "off"] = "auto",
        forward: Forward | None = None,
    ) -> None:
        if mode not in ("auto", *SESSIONS):
            raise ConfigError(f"mode={mode!r} is unknown; choose auto, {', '.join(SESSIONS)}")
        if shared_prefix not in ("auto", "off"):
            raise ConfigError(f"shared_prefix={shared_prefix!r} is unknown; choose auto, off")
        self.forward = forward or self._forward_of(model.eval())
        is_laid_out = any(isinstance(module, StandIn) for module in model.modules())
        self._arrangement = Arrangement(model) if is_laid_out else None
        self._mode = mode
        self._shared_prefix = shared_prefix
        self._has_warned = False

    def _forward_of(self, model: Any) -> Forward:
        if getattr(model.config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
            raise ModelError(f"{type(model).__name__} is not a causal language model of transformers")
        return Forward(model)

    def undisturbed(self) -> AbstractContextManager[None]:
        return self.forward.undisturbed()

    @cached_property
    def probe(self) -> ProbeResult:
        """Runs once, a dozen passes over a few dozen tokens.

        Raises ModelError for a model that gives a text other logits when more of it is read in one pass, or
        that cannot read one.
        """
        if self._mode != "auto":
            return ProbeResult(self._mode, 0.0, {})  # type: ignore[arg-type]
        try:
            found = self._probe()
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as problem:
            raise ModelError(
                f"{type(self.forward.model).__name__} cannot run a pass over a few dozen tokens "
                f"({type(problem).__name__}: {problem}); use its own generate"
            ) from problem
        if "recompute" in found.rejected:
            raise ModelError(
                f"{type(self.forward.model).__name__} gives other logits for a text in one pass than token "
                f"by token ({found.rejected['recompute']}), as those that depend on what else is in the pass "
                "do (activations quantised by one scale for all rows): drafts cannot be verified; use its "
                "own generate, which hasten.restore(model) gives back after hasten.accelerate"
            )
        return found

    def _probe(self) -> ProbeResult:
        return probe(self.forward)

    def example_passes(self) -> Forward:
        """Passes that may be run without texts to write."""
        return self.forward

    @cached_property
    def can_share_prefixes(self) -> bool:
        """Runs once, when the first batch with a common beginning comes: another dozen passes."""
        return can_share_prefixes(self.forward)

    @property
    def architecture(self) -> str:
        return type(self.forward.model).__name__

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
        limit = getattr(self.forward.text_config, "max_position_embeddings", None) or -1
        limits = [size for size in (limit, self.rotation_limit) if size and size > 0]  # XLNet says -1
        return min(limits, default=None)

    @property
    def rotation_limit(self) -> int | None:
        """Positions after which every key would have to be rotated anew, as Phi-3's two sets of factors want.

        Which set a pass uses depends on its last position, so neither chunks nor drafts nor rows of a batch
        would agree beyond it.
        """
        config = self.forward.text_config
        rotations = getattr(config, "rope_parameters", None) or {}
        kinds = [rotations, *(kind for kind in rotations.values() if isinstance(kind, dict))]
        sizes = [
            kind.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            for kind in kinds
            if kind.get("rope_type") == "longrope"
        ]
        return min((int(size) for size in sizes if size), default=None)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        for config in (self.forward.model.generation_config, self.forward.text_config):
            found = getattr(config, "eos_token_id", None)
            if found is not None:
                return frozenset(known_ids(found, "eos_token_id"))
        return frozenset()

    @property
    def is_current(self) -> bool:
        """Whether the model is still what was prepared."""
        model = self.forward.model
        if self._arrangement is not None and not self._arrangement.is_of(model):
            return False
        return self.vocab_size == vocab_size_of(model)

    def open(self, sequences: AbstractSequence[Sequence] = ()) -> Session:
        """A session for one batch; what a causal model needs of the sequences comes with ``prefill``.

        Raises ModelError if the model was changed since it was prepared.
        """
        if not self.is_current:
            raise ModelError(
                f"the modules or weights of {self.architecture} were changed after it was prepared; call "
                "hasten.load or hasten.accelerate after all changes"
            )
        if self.probe.mode == "tree" and self._shared_prefix == "auto":
            return SharedPrefixSession(self.forward, lambda: self.can_share_prefixes)
        return SESSIONS[self.probe.mode](self.forward)

    def logits_processors(
        self,
        prompt_length: int,
        max_length: int,
        source_ids: AbstractSequence[int],
        given: AbstractSequence[LogitsProcessor] = (),
    ) -> list[LogitsProcessor]:
        """See Target."""
        model = self.forward.model
        if not self._has_warned:
            self._has_warned = True
            warn_of_suggestions(model)
        replaced = {type(process) for process in given}
        own = demanded_processors(model, prompt_length, max_length, self.device)
        return [*(process for process in own if type(process) not in replaced), *given]

    @property
    def keeps_prefixes(self) -> Literal["exactly", "rounded", "never"]:
        """See Target."""
        if self.reads_source or self.probe.mode != "tree":
            return "never"
        is_fine = self.dtype in (torch.float32, torch.float64)
        return "exactly" if is_fine or self.forward.rows_are_exact else "rounded"

    @property
    def pass_kind(self) -> str:
        is_packed = any(isinstance(module, PackedLinear) for module in self.forward.model.modules())
        kind = type(self.forward).__name__
        return f"{kind}, packed layers" if is_packed else kind

    def num_bytes(self) -> int:
        """Memory of the weights, packed ones included."""
        packed = [module for module in self.forward.model.modules() if isinstance(module, PackedLinear)]
        return int(
            sum(p.numel() * p.element_size() for p in self.forward.model.parameters())
            + sum(layer.in_features * layer.out_features * self.dtype.itemsize for layer in packed)
        )


def require_torch(target: Target, what: str) -> CausalLM:
    """The target as a model of transformers. Raises ConfigError for one that another library computes."""
    if not isinstance(target, CausalLM):
        raise ConfigError(
            f"{what} looks into the layers of a transformers model, and a GGUF file is run by llama.cpp; "
            "choose something else, or load the transformers checkpoint"
        )
    return target
