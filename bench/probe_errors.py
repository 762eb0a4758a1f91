"""How often the probe errs, both ways, on real shapes and vocabularies with random weights.

python bench/probe_errors.py [NAME ...]

Of every architecture and dtype: whether right tree passes are rejected (a false rejection), and which of the
deliberately wrong ones are taken for right (a false acceptance). One row of the table a model and a dtype.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers as hf

from hasten.models.causal_lm import CausalLM
from hasten.models.probe import probe
from hasten.models.sessions.attention import AttentionKinds
from hasten.models.sessions.tree_session import Block, TreeSession

LAYERS = {"num_hidden_layers": 2}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.2-1b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        "Qwen2Config",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-0.6b": (
        "Qwen3Config",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "gemma-2-2b": (
        "Gemma2Config",
        {
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
        },
    ),
    "gemma-3-270m": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi-3-mini": (
        "Phi3Config",
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "sliding_window": 2047,
            "pad_token_id": 0,
        },
    ),
    "mistral-7b": (
        "MistralConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "olmo-2-1b": (
        "Olmo2Config",
        {
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "pad_token_id": 0,
        },
    ),
    "falcon-rw-1b": (
        "FalconConfig",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "bloom-560m": ("BloomConfig", {"vocab_size": 250880, "hidden_size": 1024, "n_head": 16, "n_layer": 2}),
    "mpt-7b": ("MptConfig", {"vocab_size": 50432, "d_model": 4096, "n_heads": 32, "n_layers": 2}),
    "pythia-1b": (
        "GPTNeoXConfig",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 8,
            "rotary_pct": 0.25,
        },
    ),
    "granite-3-2b": (
        "GraniteConfig",
        {
            "vocab_size": 49155,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.015625,
        },
    ),
    "command-r7b": (
        "Cohere2Config",
        {
            "vocab_size": 256000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "stablelm-2-1.6b": (
        "StableLmConfig",
        {
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "partial_rotary_factor": 0.25,
            "use_qkv_bias": True,
        },
    ),
}
"""name -> (config class, arguments); two layers of the real ones"""

Change = Callable[[Block], Block]


class Changed(TreeSession):
    """A session whose trees are passed on changed."""

    def __init__(self, forward: Any, change: Change) -> None:
        super().__init__(forward)
        self._change = change

    def forward(self, trees: Any) -> Any:
        run = self._run
        self._run = lambda blocks, logits_to_keep: run([self._change(one) for one in blocks], logits_to_keep)  # type: ignore[method-assign]
        try:
            return super().forward(trees)
        finally:
            self._run = run  # type: ignore[method-assign]


class Leaky(TreeSession):
    """One rejected token of each pass stays visible."""

    def _commit(self, kept: Any) -> None:
        start, width = self._block_start, self._table.visible.shape[1]
        super()._commit(kept)
        if start and start + 2 < width and self._table.visible.shape[1] > start + 1:
            self._table.visible[:, start + 1] = True


def sibling_visible(block: Block) -> Block:
    if len(block.token_ids) > 2:
        block.visible[2, 1] = True
    return block


def ancestor_hidden(block: Block) -> Block:
    deep = int(np.argmax(block.depths))
    if block.depths[deep] > 1:
        block.visible[deep, np.flatnonzero(block.visible[deep])[1]] = False
    return block


def position_off(block: Block) -> Block:
    return block._replace(depths=block.depths + (block.depths > 0))


FAULTS: dict[str, Callable[[Any], TreeSession]] = {
    "one sibling visible": lambda forward: Changed(forward, sibling_visible),
    "one ancestor hidden": lambda forward: Changed(forward, ancestor_hidden),
    "positions off by one": lambda forward: Changed(forward, position_off),
    "one rejected slot visible": Leaky,
    "window off by one": lambda forward: _window_off(TreeSession(forward)),
}


def _window_off(session: TreeSession) -> TreeSession:
    sizes = {kind: size and size + 1 for kind, size in session._kinds.sizes.items()}
    session._kinds = AttentionKinds(sizes)
    return session


def build(name: str, dtype: torch.dtype, changes: dict[str, Any] | None = None) -> Any:
    config_class, arguments = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(hf, config_class)(**{**LAYERS, **arguments, **(changes or {})})
    return hf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def judge(model: Any) -> tuple[str, float, dict[str, bool]]:
    """(mode of the right passes, their error, fault -> whether it is taken for right)"""
    forward = CausalLM(model).forward
    found = probe(forward)
    has_windows = any(AttentionKinds.of(forward.text_config).sizes.values())
    accepted = {
        fault: probe(forward, sessions={"tree": start}).mode == "tree"
        for fault, start in FAULTS.items()
        if has_windows or "window" not in fault
    }
    return found.mode, found.noise, accepted


def main(names: list[str]) -> None:
    print(
        "| model | dtype | mode | error | wrong passes taken for right | seconds |\n|---|---|---|---|---|---|"
    )
    for name in names or SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            model = build(name, dtype)
            start = time.perf_counter()
            mode, noise, accepted = judge(model)
            wrong = (
                ", ".join(fault for fault, taken in accepted.items() if taken) or f"none of {len(accepted)}"
            )
            seconds = (time.perf_counter() - start) / (1 + len(accepted))
            print(
                f"| {name} | {str(dtype)[6:]} | {mode} | {noise:.1e} | {wrong} | {seconds:.1f} |", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
