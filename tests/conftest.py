"""Tiny models, texts and drafters for every test; nothing here needs a download or a GPU."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import settings

from hasten.core import SamplingParams, prompt_seeds
from hasten.drafters.corpus.corpus_index import write_index
from hasten.drafters.trees.acceptance_head import HEAD_FILE, AcceptanceHead, save_head
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import DraftLM, load_draft
from hasten.models.fingerprint import model_fingerprint
from hasten.models.llamacpp.export import export_gguf
from hasten.models.loading import load_pretrained
from hasten.text.engine import LanguageModel

pytest_plugins = ["what_ran"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_CACHE = tempfile.TemporaryDirectory(prefix="hasten-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # what passes cost is kept there, not in the user's own
torch.set_num_threads(1)  # tiny models; tests run side by side
settings.register_profile("hasten", deadline=None, derandomize=True)  # no clocks, the same run everywhere
settings.load_profile("hasten")

VOCAB = 97
EOS = 1
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
NO_GQA = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
ENDS = {"bos_token_id": 2, "eos_token_id": EOS}
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, **ENDS}
GPT: dict[str, Any] = {"vocab_size": VOCAB, "n_layer": 2, "n_head": 4, **ENDS}
GPT_NEO = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 6,
    "max_position_embeddings": 256,
    **ENDS,
}
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
CHUNKED = {
    "head_dim": 8,
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"],
    "num_local_experts": 2,
    "intermediate_size_mlp": 64,
    "interleave_moe_layer_step": 2,
}
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
MAMBA2 = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 8}
SNAPSHOTS = "chain with snapshots"

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", BASE, "tree"),
    "qwen2": ("Qwen2Config", BASE, "tree"),
    "qwen3": ("Qwen3Config", {**BASE, "head_dim": 8}, "tree"),
    "mistral-sliding": ("MistralConfig", {**BASE, "sliding_window": 6}, "tree"),
    "gemma2": ("Gemma2Config", {**BASE, **MIXED}, "tree"),
    "gemma3": ("Gemma3TextConfig", {**BASE, **MIXED}, "tree"),
    "gpt2": ("GPT2Config", {**GPT, "n_embd": 32}, "tree"),
    "gpt-neox": ("GPTNeoXConfig", NO_GQA, "tree"),
    "phi3": ("Phi3Config", BASE, "tree"),
    "olmo2": ("Olmo2Config", BASE, "tree"),
    "falcon": ("FalconConfig", {**SMALL, "num_attention_heads": 4, "alibi": False}, "tree"),
    "mixtral-moe": ("MixtralConfig", {**BASE, "num_local_experts": 4}, "tree"),
    "deepseek-mla": ("DeepseekV3Config", {**BASE, **MLA}, "tree"),
    "llama4-chunked": ("Llama4TextConfig", {**BASE, **CHUNKED}, "tree"),
    "bloom-alibi": ("BloomConfig", {**GPT, "hidden_size": 32}, "chain"),
    "mpt-alibi": (
        "MptConfig",
        {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, **ENDS},
        "chain",
    ),
    "gpt-neo-local": ("GPTNeoConfig", GPT_NEO, "chain"),
    "qwen3-next-hybrid": ("Qwen3NextConfig", {**BASE, **LINEAR}, SNAPSHOTS),
    "lfm2-hybrid": ("Lfm2Config", {**BASE, "layer_types": ["conv", "full_attention"]}, SNAPSHOTS),
    "mamba2-recurrent": ("Mamba2Config", {**SMALL, **MAMBA2}, SNAPSHOTS),
    "mamba-recurrent": ("MambaConfig", {**SMALL, "state_size": 8}, "off"),
    "rwkv": ("RwkvConfig", {**SMALL, "attention_hidden_size": 32, "context_length": 256}, "recompute"),
}
"""name -> (config class, arguments, the mode the probe must find)"""

DRAFTING = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode != "off"]


GROUPED_EXPERTS = ("mixtral-moe", "deepseek-mla", "qwen3-next-hybrid")


def finest_dtype(name: str) -> torch.dtype:
    """float64, except where transformers multiplies by grouped experts, which needs float32."""
    return torch.float32 if name in GROUPED_EXPERTS else torch.float64


def build_model(
    name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Any:
    """A random model with weights large enough that its texts wander instead of looping.

    ``changes`` go into the config.
    """
    config_class, arguments, _ = ARCHITECTURES[name]
    torch.manual_seed(seed)
    arguments = {**arguments, "tie_word_embeddings": False, **changes}  # tied models repeat the last token
    model = hf.AutoModelForCausalLM.from_config(getattr(hf, config_class)(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def targets() -> Any:
    """targets(name, dtype) -> a CausalLM; one per architecture and dtype for the whole run."""
    made: dict[tuple[str, torch.dtype], CausalLM] = {}

    def get(name: str = "llama", dtype: torch.dtype = torch.float32) -> CausalLM:
        if (name, dtype) not in made:
            made[name, dtype] = CausalLM(build_model(name, dtype))
        return made[name, dtype]

    return get


@pytest.fixture(scope="session")
def drafts(targets: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """drafts(name, dtype) -> a DraftLM of the same architecture that often agrees with the target.

    An acceptance head that knows nothing lies beside it.
    """
    made: dict[tuple[str, torch.dtype], DraftLM] = {}

    def get(name: str = "llama", dtype: torch.dtype = torch.float32) -> DraftLM:
        if (name, dtype) not in made:
            model = build_model(name, dtype)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(noise.to(parameter.dtype), alpha=0.02)
            target = targets(name, dtype)
            draft = load_draft(model, target=target, target_tokenizer=None)
            made[name, dtype] = with_head(draft, tmp_path_factory.mktemp("draft"))
        return made[name, dtype]

    return get


@pytest.fixture(scope="session")
def models(targets: Any, drafts: Any, corpus_index: Path) -> Any:
    """models(name, dtype) -> a LanguageModel that has learnt nothing yet, without a tokenizer.

    It has an index and a draft model, which only those drafters use that need them.
    """
    return lambda name="llama", dtype=torch.float32: LanguageModel(
        targets(name, dtype), drafter="off", index=corpus_index, draft=drafts(name, dtype)
    )


@pytest.fixture(scope="session")
def corpus_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of random texts, in which almost any two tokens occur."""
    path = tmp_path_factory.mktemp("corpus") / "index"
    write_index(path, np.random.default_rng(0).integers(0, VOCAB, (4, 12_000)), f"token-ids-{VOCAB}")
    return path


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """gguf_file(name, dtype) -> a bundled model as a GGUF file, or a random one, which has no tokenizer."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str = "llama", dtype: str = "float32") -> Path:
        if (name, dtype) not in made:
            path = tmp_path_factory.mktemp("gguf") / f"{name}-{dtype}.gguf"
            found = (
                (build_model(name), None) if name in ARCHITECTURES else load_pretrained(name, "auto", "cpu")
            )
            export_gguf(*found, path, dtype=dtype)
            made[name, dtype] = path
        return made[name, dtype]

    return get


def drawn_as(output: Any, params: SamplingParams) -> SamplingParams:
    """What writes this output again: a prompt has a seed of its own in a call with several."""
    return replace(params, seed=output.seed)


def each_alone(lm: LanguageModel, prompts: list[Any], params: SamplingParams) -> list[Any]:
    """Plain decoding of each prompt, with the seed it has in a call with all of them."""
    seeds = prompt_seeds(params.seed, len(prompts))
    return [
        lm.generate(prompt, replace(params, seed=seed), drafter="off")
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def with_head(draft: DraftLM, folder: Path) -> DraftLM:
    """The draft, as if it had been loaded from a folder with an acceptance head that knows nothing."""
    model = draft.model.forward.model
    head = AcceptanceHead(model.get_input_embeddings().weight.shape[1])
    save_head(folder / HEAD_FILE, head, model_fingerprint(model))
    draft.folder = folder
    return draft


def with_index(language_model: LanguageModel, path: Path, texts: list[str]) -> LanguageModel:
    """The same model, with an index of these texts, and with itself as its draft model."""
    target, tokenizer = language_model.target, language_model.tokenizer
    write_index(path, [np.array(language_model.encode(text)) for text in texts], language_model.fingerprint)
    draft = load_draft(target.forward.model, target=target, target_tokenizer=tokenizer, tokenizer=tokenizer)
    draft = with_head(draft, path.parent)
    return LanguageModel(target, tokenizer, drafter="off", index=path, draft=draft)


@pytest.fixture(scope="session")
def demo() -> LanguageModel:
    """The bundled demo model in float32."""
    import hasten

    return hasten.load("demo", dtype="float32", device="cpu", forward="stock", drafter="off")


def shared_file(*parts: str) -> Path:
    """A file of the optional data folder beside the checkout; skips the test where it is not there."""
    path = Path(__file__).resolve().parents[2].joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} beside the checkout")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
