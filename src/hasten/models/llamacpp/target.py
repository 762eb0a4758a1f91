"""A target in a GGUF file, run by llama.cpp: the second backend.

Only its passes are llama.cpp's; tokens are drawn from the logits as for any target, so drafters, verification
rules, seeds and processors are the same. What looks into layers (hidden states, partial caches, input
embeddings) needs a transformers model.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence as AbstractSequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Sequence
from hasten.errors import ConfigError, ModelError
from hasten.models.llamacpp.interface import PASS_TOKENS, LlamaContext, LlamaFile, bindings
from hasten.models.llamacpp.session import GgufSession, Lease
from hasten.models.llamacpp.tokenizer import GgufTokenizer
from hasten.models.probe import Mode, ProbeResult, probe
from hasten.models.sessions.session import Session
from hasten.models.target import Target

SUFFIX = ".gguf"
_MODES: Mapping[Mode, dict[str, Any]] = {"tree": {}, "chain": {"max_leaves": 1}, "off": {"drafts": False}}
"""mode -> what a session is told"""


def is_gguf(model: Any) -> bool:
    """Whether a model is named by the path of a GGUF file."""
    return isinstance(model, str | os.PathLike) and os.fspath(model).endswith(SUFFIX)


def load_gguf(path: str | os.PathLike[str], **options: Any) -> tuple[GgufLM, GgufTokenizer | None]:
    """The target in a GGUF file, and its tokenizer if the file has one.

    Args:
        options: what was chosen for loading; each has to be None or "auto", as the file decides.

    Raises:
        ConfigError: an option that llama.cpp does not hear.
        ModelError: no such file, or one that llama.cpp cannot load.
        MissingExtra: llama-cpp-python is not installed.
    """
    for name, value in options.items():
        if value not in (None, "auto"):
            raise ConfigError(
                f"{name}={value!r} does not go with a GGUF file, which has its own types and tokenizer and "
                "runs where llama.cpp was built for; leave it out"
            )
    target = GgufLM(path)
    return target, GgufTokenizer.of(target.file)


class GgufLM(Target):
    """A target that llama.cpp computes.

    Args:
        path: of a GGUF file.
        mode: "auto" probes the model at first use; "tree", "chain" or "off" skips the probe.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Mode | str = "auto") -> None:
        if mode not in ("auto", *_MODES):
            raise ConfigError(f"mode={mode!r} is unknown; choose auto, {', '.join(_MODES)}")
        self.file = LlamaFile(str(Path(path).expanduser()))
        self._mode = mode
        self._free: list[LlamaContext] = []

    @property
    def architecture(self) -> str:
        return f"{self.file.description}, run by llama.cpp"

    @property
    def vocab_size(self) -> int:
        return self.file.vocab_size

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return self.file.precision

    @property
    def max_length(self) -> int | None:
        return self.file.context_length or None

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        llama, vocabulary = bindings(), self.file.vocabulary
        named = (self._named("eos"), self._named("eot"))
        ends = {each for each in range(self.vocab_size) if llama.llama_vocab_is_eog(vocabulary, each)}
        return frozenset(ends | {each for each in named if each is not None})

    @property
    def mask_token_id(self) -> int | None:
        """A token that says nothing: mask, pad, unknown or end, the first the file names."""
        found = map(self._named, ("mask", "padding", "unknown", "eos"))
        return next((each for each in found if each is not None), None)

    def _named(self, role: str) -> int | None:
        value = self.file.text_of(f"tokenizer.ggml.{role}_token_id")
        return int(value) if value is not None and 0 <= int(value) < self.vocab_size else None

    @cached_property
    def probe(self) -> ProbeResult:
        """Runs once, a dozen passes over a few dozen tokens. Raises ModelError where no mode will do."""
        if self._mode != "auto":
            return ProbeResult(self._mode, 0.0, {})  # type: ignore[arg-type]
        starts: dict[Mode, Callable[[Any], Session]] = {
            mode: lambda _, options=options: self._session(None, options)  # type: ignore[misc]
            for mode, options in _MODES.items()
        }
        found = probe(_Passes(self), num_rows=1, sessions=starts)
        if found.mode not in _MODES:
            reasons = "; ".join(f"{mode}: {reason}" for mode, reason in found.rejected.items())
            raise ModelError(f"llama.cpp gives no two passes of this model the same logits ({reasons})")
        return found

    def open(self, sequences: AbstractSequence[Sequence] = ()) -> Session:
        """A session whose cache has room for these sequences at their longest, and for their trees."""
        lengths = [sequence.max_length for sequence in sequences] or None
        return self._session(lengths, _MODES[self.probe.mode])

    def _session(self, lengths: list[int] | None, options: dict[str, Any]) -> GgufSession:
        return GgufSession(self.open_context, lengths, **options)

    def open_context(self, num_tokens: int, num_sequences: int) -> Lease:
        """An empty context, used again when it is given back, or nobody holds the lease any more.

        A new one costs as much as many passes.
        """
        fits = (
            each
            for each in self._free
            if each.num_tokens >= num_tokens and each.num_sequences >= num_sequences
        )
        context = next(fits, None)
        if context is None:
            self._free.clear()
            context = LlamaContext(self.file, num_tokens, num_sequences)
        else:
            self._free.remove(context)
            context.clear()
        lease = Lease(context)
        lease.give_back = weakref.finalize(lease, self._free.append, context)
        return lease

    @property
    def pass_kind(self) -> str:
        return "llama.cpp"

    def num_bytes(self) -> int:
        return self.file.num_bytes


class _Passes:
    """See probe.PlainPasses: every call is a pass over one text that nothing is cached of."""

    def __init__(self, target: GgufLM) -> None:
        self._lease = target.open_context(PASS_TOKENS, 1)  # the probe's texts are shorter
        self.vocab_size, self.dtype = target.vocab_size, target.dtype
        self.text_config = SimpleNamespace(to_dict=dict)

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: None,
        cache: None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        [text] = token_ids
        positions = np.arange(len(text))
        context = self._lease.context
        context.clear()
        wanted = positions >= len(text) - logits_to_keep
        return context.run(text, positions, [[0]] * len(text), wanted)[None]

    def select(self, rows: list[int]) -> _Passes:
        return self
