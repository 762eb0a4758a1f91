"""Tiny models, texts and drafters for every test; nothing here needs a download or a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from hasten.engine import LanguageModel
from hasten.models.causal_lm import CausalLM

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # tiny models; tests run side by side

VOCAB = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
MLA = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
MIXED = {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
ENDS = {"bos_token_id": 2, "eos_token_id": 1}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", BASE, "tree"),
    "qwen2": ("Qwen2Config", BASE, "tree"),
    "qwen3": ("Qwen3Config", {**BASE, "head_dim": 8}, "tree"),
    "mistral-sliding": ("MistralConfig", {**BASE, "sliding_window": 6}, "tree"),
    "gemma2": ("Gemma2Config", {**BASE, **MIXED}, "tree"),
    "gemma3": ("Gemma3TextConfig", {**BASE, **MIXED}, "tree"),
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}, "tree"),
    "gpt-neox": ("GPTNeoXConfig", {k: v for k, v in BASE.items() if k != "num_key_value_heads"}, "tree"),
    "phi3": ("Phi3Config", BASE, "tree"),
    "olmo2": ("Olmo2Config", BASE, "tree"),
    "falcon": ("FalconConfig", {**SMALL, "num_attention_heads": 4, "alibi": False, **ENDS}, "tree"),
    "mixtral-moe": ("MixtralConfig", {**BASE, "num_local_experts": 4}, "tree"),
    "deepseek-mla": ("DeepseekV3Config", {**BASE, **MLA}, "tree"),
    "bloom-alibi": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, **ENDS}, "chain"),
    "mpt-alibi": ("MptConfig", {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, **ENDS}, "chain"),
    "qwen3-next-hybrid": ("Qwen3NextConfig", {**BASE, **LINEAR}, "chain with snapshots"),
    "lfm2-hybrid": ("Lfm2Config", {**BASE, "layer_types": ["conv", "full_attention"]}, "chain with snapshots"),
    "mamba-recurrent": ("MambaConfig", {**SMALL, "state_size": 8, **ENDS}, "off"),
}
"""name -> (config class, arguments, the mode the probe must find)"""


def build_model(name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model with weights large enough that its texts wander instead of looping."""
    config_class, arguments, _ = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(getattr(hf, config_class)(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def models() -> Any:
    """models(name) -> a LanguageModel without a tokenizer; one per architecture for the whole run."""
    made: dict[str, LanguageModel] = {}

    def get(name: str = "llama") -> LanguageModel:
        if name not in made:
            made[name] = LanguageModel(CausalLM(build_model(name)))
        return made[name]

    return get


@pytest.fixture(scope="session")
def demo() -> LanguageModel:
    """The bundled demo model in float32."""
    import hasten

    return hasten.load("demo", dtype="float32", device="cpu", forward="stock")


def shared_file(*parts: str) -> Path:
    """A file of the optional data folder beside the checkout; skips the test where it is not there."""
    path = Path(__file__).resolve().parents[2].joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} beside the checkout")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
