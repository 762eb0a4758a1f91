"""Tiny decoders of every kind that the compiled pass knows, and of kinds that it does not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from conftest import ARCHITECTURES, BASE, NO_GQA, build_model
from hasten.core import Acceptance
from hasten.models.forwards.choose import prepare
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

DTYPES = [torch.float32, torch.bfloat16]
needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SLIDING_LAYERS = ["sliding_attention", "full_attention"]

COMPILED: dict[str, tuple[str, dict[str, Any]]] = {
    "cwm": ("CwmConfig", {**BASE, "rope_parameters": _LLAMA3_ROPE}),
    "exaone4": ("Exaone4Config", {**BASE, "sliding_window": 6, "layer_types": ["sliding_attention"] * 2}),
    "gemma": ("GemmaConfig", {**BASE, "head_dim": 16}),
    "granite": (
        "GraniteConfig",
        {
            **BASE,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.3,
        },
    ),
    "llama-biases-tied": (
        "LlamaConfig",
        {**BASE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-heads-of-16": ("LlamaConfig", {**BASE, "head_dim": 16}),
    "llama-heads-of-24": ("LlamaConfig", {**BASE, "head_dim": 24}),
    "llama-heads-of-32": ("LlamaConfig", {**BASE, "head_dim": 32}),
    "llama-heads-of-64": ("LlamaConfig", {**BASE, "head_dim": 64, "num_key_value_heads": 1}),
    "llama-many-tiles": (
        "LlamaConfig",
        {**BASE, "vocab_size": 1001, "hidden_size": 112, "intermediate_size": 208, "head_dim": 16},
    ),
    "llama-rope-scaling": ("LlamaConfig", {**BASE, "rope_parameters": _LLAMA3_ROPE}),
    "olmo3": ("Olmo3Config", {**BASE, "sliding_window": 6, "layer_types": _SLIDING_LAYERS}),
    "phi": ("PhiConfig", {**NO_GQA, "partial_rotary_factor": 0.5}),
    "qwen2-sliding-layers": (
        "Qwen2Config",
        {**BASE, "use_sliding_window": True, "sliding_window": 6, "layer_types": _SLIDING_LAYERS},
    ),
    "qwen3-tied": ("Qwen3Config", {**BASE, "head_dim": 8, "vocab_size": 101, "tie_word_embeddings": True}),
    "seed-oss": ("SeedOssConfig", {**BASE, "head_dim": 8}),
    "smollm3": ("SmolLM3Config", {**BASE, "no_rope_layers": [1, 0], "pad_token_id": 0}),
    "stablelm": ("StableLmConfig", {**BASE, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": (
        "StableLmConfig",
        {**BASE, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    ),
    "starcoder2": ("Starcoder2Config", {**BASE, "sliding_window": 6, "use_bias": True}),
    "vaultgemma": ("VaultGemmaConfig", {**BASE, "head_dim": 8}),
}
"""name -> (config class, arguments), besides conftest.ARCHITECTURES"""

COMPILED_ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral-sliding",
    "gemma2",
    "gemma3",
    "gpt-neox",
    "phi3",
    "olmo2",
)
"""Those of conftest.ARCHITECTURES that are compiled."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "cohere": ("CohereConfig", BASE, "pair neighbours"),
    "glm": ("GlmConfig", {**BASE, "head_dim": 8}, "logits differ by"),
    "doge": ("DogeConfig", BASE, "a weight it does not know, model.layers.0.input_residual"),
    "ministral3": ("Ministral3Config", {**BASE, "head_dim": 8}, "sharper along the text"),
    "olmo": ("OlmoConfig", BASE, "arranged in another way"),
    "llama-dynamic-rope": (
        "LlamaConfig",
        {**BASE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "depend on the length",
    ),
    "llama-narrow-heads": ("LlamaConfig", {**BASE, "head_dim": 4}, "no multiple of 16"),
}
"""name -> (config class, arguments, a part of the reason)"""

ALL = (*COMPILED_ARCHITECTURES, *COMPILED)


def decoder(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model whose norms and biases are random too."""
    if name in ARCHITECTURES:
        model = build_model(name, dtype, seed)
    else:
        config_class, arguments = COMPILED[name] if name in COMPILED else REFUSED[name][:2]
        torch.manual_seed(seed)
        config = getattr(hf, config_class)(**{"tie_word_embeddings": False, **arguments})
        model = hf.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.25 * noise)
            else:
                parameter.add_(0.2 * noise.to(parameter.dtype))
    return model.to(dtype).eval()


def compiled(name: str, dtype: torch.dtype = torch.float32, num_threads: int = 1) -> Any:
    """The CompiledForward of such a model."""
    with torch_threads(num_threads):
        return prepare(decoder(name, dtype), "compiled").forward


@contextmanager
def torch_threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def text_of(forward: Any, size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, forward.vocab_size, size).tolist()


def all_logits(forward: Any, text: list[int], cached: int) -> torch.Tensor:
    """Of the tokens from ``cached`` on, in one pass over a cache of those before: [tokens, vocab]."""
    session = TreeSession(forward)
    session.prefill([text[: cached + 1]])
    return session.forward([DraftTree.chain(text[cached + 1 :])])[0]


def last_logits(forward: Any, text: list[int]) -> torch.Tensor:
    """After a text, as plain decoding computes them once the text is cached: in a pass of one row."""
    return all_logits(forward, text, len(text) - 1)[0]


def accept(session: Any, texts: list[list[int]], trees: list[Any], nodes: list[int], bonus: int) -> None:
    """Keep the path to a node of each tree and one token more, in the session and in the texts."""
    acceptances = []
    for text, tree, node in zip(texts, trees, nodes, strict=True):
        path = tree.path_to(node)
        acceptances.append(Acceptance(path, [*tree.token_ids[path].tolist(), bonus]))
        text.extend(acceptances[-1].token_ids)
    session.keep(acceptances)


@torch.inference_mode()
def stock_logits(model, text):
    return model(torch.tensor([text])).logits[0].float()


def assert_close(found, expected, tolerance=1e-4):
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
