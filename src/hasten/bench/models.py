"""Opens the models of a measurement: hasten's own copy, and a stock one that shares nothing with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.bench.shapes import embed_in_shape
from hasten.drafters import Drafter
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.models.forwards.choose import FORWARDS, prepare
from hasten.models.llamacpp.target import GgufLM, is_gguf
from hasten.models.loading import load_pretrained
from hasten.text.engine import LanguageModel
from hasten.text.loading import load


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model and what is worth saying about it. ``shape`` is None for the model as it is."""

    name: str
    shape: str | None
    language_model: LanguageModel
    num_parameters: int
    forward: str
    """"stock", "packed" or "compiled": how its passes run; or "llama.cpp" """
    reason: str
    """why that forward was chosen"""
    startup_seconds: float = 0.0
    """to choose and prepare it"""


def open_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    forward: str = "auto",
    shape: str | None = None,
    drafter: str | Drafter = "off",
    index: Path | None = None,
    draft: str | None = None,
    draft_device: str | None = None,
    draft_vocab: Path | None = None,
) -> OpenModel:
    """As ``hasten.load``, at the cost of a bigger shape if one is given; a draft model keeps its own.

    Raises ConfigError, ModelError, StoreError, IncompatibleModels.
    """
    if forward not in FORWARDS:
        raise ConfigError(f"forward={forward!r} is unknown; choose {', '.join(FORWARDS)}")
    if is_gguf(name):
        drafting = {"draft": draft, "draft_device": draft_device, "draft_vocab": draft_vocab}
        loaded, num_parameters = _load_gguf(
            name, shape, dtype=dtype, device=device, forward=forward, drafter=drafter, index=index, **drafting
        )
        return OpenModel(name, None, loaded, num_parameters, "llama.cpp", "which runs GGUF files")
    model, tokenizer = load_stock(name, dtype=dtype, device=device, shape=shape)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    prepared = prepare(model, forward)
    target = CausalLM(model, forward=prepared.forward)
    found = None
    if draft is not None:
        found = load_draft(
            draft,
            target=target,
            target_tokenizer=tokenizer,
            dtype=dtype,
            device=draft_device,
            forward=forward,
            draft_vocab=draft_vocab,
        )
    language_model = LanguageModel(target, tokenizer, drafter=drafter, index=index, draft=found)
    return OpenModel(
        name, shape, language_model, num_parameters, prepared.name, prepared.reason, prepared.seconds
    )


def _load_gguf(name: str, shape: str | None, **options: Any) -> tuple[LanguageModel, int]:
    """A GGUF file, and how many parameters it has. Raises ConfigError for a shape."""
    if shape is not None:
        raise ConfigError(
            f"shape={shape!r} does not go with a GGUF file; give it to `hasten export`, which writes the file"
        )
    language_model = load(name, prefix_cache=0, **options)
    assert isinstance(language_model.target, GgufLM)
    return language_model, language_model.target.file.num_parameters


def load_stock(name: str, *, dtype: str, device: str | None, shape: str | None) -> tuple[Any, Any]:
    """(model, tokenizer) of transformers, in its shape, its layers untouched."""
    model, tokenizer = load_pretrained(name, dtype, device)
    return (embed_in_shape(model, shape) if shape else model), tokenizer


def fastest_dtype() -> str:
    """bfloat16 where the device computes in it, else float32."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def shape_sentence(opened: OpenModel) -> str:
    """What a reader of a table has to know about a model in a shape; empty for a model as it is."""
    if not opened.shape:
        return ""
    return (
        f"{opened.name} is a small trained model; here it sits inside a network with the sizes of a "
        f"{opened.shape.upper()} model ({opened.num_parameters / 1e6:.0f} million parameters with its small "
        "vocabulary), whose other weights change nothing: the same function at the bigger model's cost."
    )
