"""Every causal language model that transformers has, small and random.

A config is made of the class's own defaults and common small sizes; FIXES holds what an architecture needs
beside them, LEFT_OUT those that cannot be made or that transformers itself does not let write.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
MOST_WEIGHTS = 3_000_000

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "is_decoder": True,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim", "embedding_size", "lru_width"), 32
    ),
    **dict.fromkeys(("word_embed_proj_dim", "mamba_d_ssm", "attention_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "mamba_n_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_target_positions", "context_length"), 256
    ),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), 6),
    # experts
    **dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "shared_intermediate_size"), 16),
    "moe_shared_expert_intermediate_size": 16,
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    # latent attention, and attention that selects: many heads, because equal scores may be ordered either way
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_n_heads", "index_head_dim", "index_topk"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    # recurrent layers
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads", "time_step_rank"), 4),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    # embeddings of each layer
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "rotary_dim": 4,
}
VISION = {
    **dict.fromkeys(("hidden_size", "out_hidden_size"), 32),
    **dict.fromkeys(("depth", "num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 4),
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
SHARED_KEYS = {**TWO_KINDS, "num_kv_shared_layers": 2}
MAMBA = {"mamba_d_state": 8, "num_key_value_heads": 4, "attention_hidden_size": 64}
MIXED = {
    "num_hidden_layers": 6,
    "layer_types": None,
    "layers_block_type": ["mamba", "hybrid"] * 3,
    **MAMBA,
}
INDEXER = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
NGRAMS = {
    "ple_embed_dim": 16,
    "hc_lowrank": 8,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
    "make_ngram_vocab_size_divisible_by": 8,
}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

FIXES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        **TWO_KINDS,
        "head_dim": 16,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROTARY),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_head": 8},
    "gemma3n_text": SHARED_KEYS,
    "gemma4_text": {**SHARED_KEYS, "head_dim": 8, "global_head_dim": 16},
    "gemma4_unified_text": {**SHARED_KEYS, "head_dim": 8, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "prophetnet": {
        "num_hidden_layers": None,
        **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 2),
        **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    },
    "qwen4_exp": {"text_config": {**INDEXER, **NGRAMS}},
    "qwen4_exp_text": {**INDEXER, **NGRAMS},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "feed_forward_size": 64,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {
        **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8),
        **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), VOCAB),
    },
    "xlnet": {"d_inner": 64, "max_position_embeddings": None},
    "xlstm": {"hidden_size": 128, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**MIXED, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "zamba2": {**MIXED, "n_mamba_heads": 4},
    "zaya": {
        "num_experts_per_tok": 1,
        "layer_types": ["hybrid", "hybrid_sliding"],
        "router_hidden_size": 16,
    },
}
"""what the configs need beside SIZES; None leaves a size at its default"""

REFUSED = ("cpmant", "moshi", "prophetnet", "reformer", "xlm", "xlnet")
"""whose logits for a text are others when more of it is read in one pass, so that nothing can be verified;
those of Moshi, when it is read with the cache of `generate`, which forgets what passes without one see"""

LEFT_OUT = {
    "blt": "reads bytes in patches that another model cuts; its parts have sizes of their own",
    "dots3_note": "sound and images with a config of fixed layers",
    "dots3_note_text": "a config of fixed layers",
    "gemma3n": "images, by the timm library",
    "gemma4_assistant": "drafts for Gemma 4 from its hidden states, and cannot write alone",
    "gemma4_unified_assistant": "drafts for Gemma 4 from its hidden states, and cannot write alone",
    "musicgen": "writes sound, in several tokens a position",
    "musicgen_melody": "writes sound, in several tokens a position",
    "phi4_multimodal": "sound and images, of millions of weights at the least",
}
"""types of transformers' mapping that are not tried, and why"""

PARTS = ("emu3", "mllama")
"""whose language model, taken out of the whole, transformers does not load from a folder by itself"""

NAMES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in {*REFUSED, *LEFT_OUT}]


def build(name: str, **changes: Any) -> Any:
    """A random model of a type, in float32; ``changes`` go into its config.

    Raises ValueError for one of more than MOST_WEIGHTS: a size that nobody made small.
    """
    config = small_config(hf.CONFIG_MAPPING[name], {**FIXES.get(name, {}), **changes})
    with torch.device("meta"):
        size = sum(weight.numel() for weight in hf.AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise ValueError(f"a small {name} has {size} weights; make it smaller in FIXES")
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.eval()


def small_config(config_class: Any, fixes: dict[str, Any], sizes: dict[str, Any] = SIZES) -> Any:
    return config_class(**_small_values(config_class, fixes, sizes))


def _small_values(config_class: Any, fixes: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """``sizes`` of what the config has, one layer of each kind, and its parts made small likewise."""
    default = config_class()
    values = {
        name: size for name, size in sizes.items() if _has(default, name) and _is_settable(config_class, name)
    }
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]  # latent attention shares otherwise
    for name in config_class.sub_configs or {}:
        part = getattr(default, name, None)
        if part is not None:
            is_text = "text" in name or "decoder" in name
            values[name] = _small_values(type(part), fixes.get(name, {}), SIZES if is_text else VISION)
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if kinds and sizes is SIZES and _is_settable(config_class, "layer_types"):
        values["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        if _is_settable(config_class, "num_hidden_layers"):
            values["num_hidden_layers"] = len(values["layer_types"])
    made = {**values, **{name: fix for name, fix in fixes.items() if not isinstance(values.get(name), dict)}}
    return {name: value for name, value in made.items() if value is not None}


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # what differs between layers may not be asked of all of them
        return True


def _is_settable(config_class: Any, name: str) -> bool:
    real_name = (config_class.attribute_map or {}).get(name, name)
    found = getattr(config_class, real_name, None)
    return not (isinstance(found, property) and found.fset is None)
