"""Random checkpoints in the layouts of published denoisers, and what they compute, in plain tensor functions.

The functions follow the published modules, under their names; nothing here knows the modules of hasten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
VOCAB = 272
END, CHAT_END, MASK, TURN_END = 256, 257, 258, 259
"""ids of the special tokens, after one token a byte"""

LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM", "AutoConfig": "configuration_llada.LLaDAConfig"},
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_size": VOCAB,
    "eos_token_id": END,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": MASK,
    "max_sequence_length": 128,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": END,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "float32",
    "use_cache": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}
DREAM = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel", "AutoConfig": "configuration_dream.DreamConfig"},
    "attention_dropout": 0.0,
    "bos_token_id": END,
    "eos_token_id": END,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": END,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}
SDAR = {
    **{name: value for name, value in DREAM.items() if name not in {"use_mrope", "pad_token_id"}},
    "model_type": "sdar",
    "architectures": ["SDARForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
    "attention_bias": False,
    "attn_implementation": "flex_attention",
    "block_size": 4,
    "head_dim": 16,
    "fuse_cross_entropy": True,
}
MDLM = {
    "model_type": "mdlm",
    "architectures": ["MDLM"],
    "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
    "cond_dim": 16,
    "dropout": 0.1,
    "hidden_dim": 32,
    "model_length": 64,
    "n_blocks": 2,
    "n_heads": 4,
    "time_conditioning": False,
    "torch_dtype": "float32",
    "vocab_size": VOCAB,
}
BD3LM = {
    **MDLM,
    "model_type": "bd3lm",
    "architectures": ["BD3LM"],
    "adaln": True,
    "attn_backend": "flex",
    "block_size": 4,
    "causal": False,
    "cross_attn": True,
    "var_min": True,
}


def write_checkpoint(folder: Path, config: dict[str, Any], weights: Weights, tokenizer: str = "fast") -> Path:
    """config.json, the weights, and a tokenizer: "fast", "vocabulary" files, or "" for none."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    if tokenizer:
        write_tokenizer(folder, tokenizer)
    return folder


def write_tokenizer(folder: Path, kind: str = "fast", **names: str) -> None:
    """One token a byte, then <end>, <|im_end|>, <|mask|>, <|eot_id|>, padded to the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    special = ["<end>", "<|im_end|>", "<|mask|>", "<|eot_id|>"]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(256 + number): {"content": token, **flags} for number, token in enumerate(special)}
    settings = {"eos_token": "<end>", "added_tokens_decoder": added, **names}
    if kind == "fast":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        settings["tokenizer_class"] = "DreamTokenizer"
        settings["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.5) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def llada_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    width, inner = config["d_model"], config["mlp_hidden_size"]
    keys = width // config["n_heads"] * config["n_kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["embedding_size"], width),
        "ln_f.weight": (width,),
        "ff_out.weight": (config["embedding_size"], width),
    }
    if config["weight_tying"]:
        del shapes["ff_out.weight"]
    for number in range(config["n_layers"]):
        block = f"blocks.{number}."
        shapes |= {
            f"{block}q_proj.weight": (width, width),
            f"{block}k_proj.weight": (keys, width),
            f"{block}v_proj.weight": (keys, width),
            f"{block}attn_out.weight": (width, width),
            f"{block}ff_proj.weight": (inner, width),
            f"{block}up_proj.weight": (inner, width),
            f"{block}ff_out.weight": (width, inner),
            f"{block}attn_norm.weight": (width,),
            f"{block}ff_norm.weight": (width,),
        }
    return _random({f"model.transformer.{name}": shape for name, shape in shapes.items()}, seed)


def llada_logits(weights: Weights, config: dict[str, Any], token_ids: Tensor) -> Tensor:
    """[tokens, vocab] for one text."""
    part = {name.removeprefix("model.transformer."): weight for name, weight in weights.items()}
    eps = config["rms_norm_eps"]
    x = part["wte.weight"][token_ids]
    for number in range(config["n_layers"]):
        own = _below(part, f"blocks.{number}.")
        normed = _rms(x, own["attn_norm.weight"], eps)
        heads = [
            _heads(functional.linear(normed, own[f"{kind}_proj.weight"]), count)
            for kind, count in (
                ("q", config["n_heads"]),
                ("k", config["n_kv_heads"]),
                ("v", config["n_kv_heads"]),
            )
        ]
        x = x + functional.linear(_attend(*heads, config["rope_theta"]), own["attn_out.weight"])
        normed = _rms(x, own["ff_norm.weight"], eps)
        gate = functional.silu(functional.linear(normed, own["ff_proj.weight"]))
        up = functional.linear(normed, own["up_proj.weight"])
        x = x + functional.linear(gate * up, own["ff_out.weight"])
    x = _rms(x, part["ln_f.weight"], eps)
    return functional.linear(x, part.get("ff_out.weight", part["wte.weight"]))


def qwen_weights(config: dict[str, Any], *, has_bias: bool, seed: int = 0) -> Weights:
    """Qwen2 has biases on queries, keys and values, Qwen3 norms on the heads of queries and keys."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim", width // config["num_attention_heads"])
    rows = {
        "q": size * config["num_attention_heads"],
        "k": size * config["num_key_value_heads"],
        "v": size * config["num_key_value_heads"],
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
        "lm_head.weight": (config["vocab_size"], width),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= {
            f"{layer}self_attn.o_proj.weight": (width, rows["q"]),
            f"{layer}mlp.gate_proj.weight": (inner, width),
            f"{layer}mlp.up_proj.weight": (inner, width),
            f"{layer}mlp.down_proj.weight": (width, inner),
            f"{layer}input_layernorm.weight": (width,),
            f"{layer}post_attention_layernorm.weight": (width,),
        }
        shapes |= {f"{layer}self_attn.{kind}_proj.weight": (count, width) for kind, count in rows.items()}
        if has_bias:
            shapes |= {f"{layer}self_attn.{kind}_proj.bias": (count,) for kind, count in rows.items()}
        else:
            shapes |= {f"{layer}self_attn.{kind}_norm.weight": (size,) for kind in "qk"}
    return _random(shapes, seed)


def qwen_logits(
    weights: Weights, config: dict[str, Any], token_ids: Tensor, mask: Tensor | None = None
) -> Tensor:
    """[tokens, vocab] for one text; ``mask`` bool [tokens, tokens], None where all is seen."""
    eps = config["rms_norm_eps"]
    counts = {"q": "num_attention_heads", "k": "num_key_value_heads", "v": "num_key_value_heads"}
    x = weights["model.embed_tokens.weight"][token_ids]
    for number in range(config["num_hidden_layers"]):
        own = _below(weights, f"model.layers.{number}.")
        normed = _rms(x, own["input_layernorm.weight"], eps)
        heads = []
        for kind, count in counts.items():
            name = f"self_attn.{kind}_proj"
            rows = functional.linear(normed, own[f"{name}.weight"], own.get(f"{name}.bias"))
            found = _heads(rows, config[count])
            norm = own.get(f"self_attn.{kind}_norm.weight")
            heads.append(found if norm is None else _rms(found, norm, eps))
        attended = _attend(*heads, config["rope_theta"], mask)
        x = x + functional.linear(attended, own["self_attn.o_proj.weight"])
        normed = _rms(x, own["post_attention_layernorm.weight"], eps)
        gate = functional.silu(functional.linear(normed, own["mlp.gate_proj.weight"]))
        up = functional.linear(normed, own["mlp.up_proj.weight"])
        x = x + functional.linear(gate * up, own["mlp.down_proj.weight"])
    return functional.linear(_rms(x, weights["model.norm.weight"], eps), weights["lm_head.weight"])


def mdlm_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    width, condition = config["hidden_dim"], config["cond_dim"]
    is_modulated = config.get("adaln", True)
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (config["vocab_size"], width),
        "output_layer.norm_final.weight": (width,),
        "output_layer.linear.weight": (config["vocab_size"], width),
        "output_layer.linear.bias": (config["vocab_size"],),
    }
    if is_modulated:
        shapes |= {
            "sigma_map.mlp.0.weight": (condition, 256),
            "sigma_map.mlp.0.bias": (condition,),
            "sigma_map.mlp.2.weight": (condition, condition),
            "sigma_map.mlp.2.bias": (condition,),
            "output_layer.adaLN_modulation.weight": (2 * width, condition),
            "output_layer.adaLN_modulation.bias": (2 * width,),
        }
    for number in range(config["n_blocks"]):
        block = f"blocks.{number}."
        shapes |= {
            f"{block}norm1.weight": (width,),
            f"{block}attn_qkv.weight": (3 * width, width),
            f"{block}attn_out.weight": (width, width),
            f"{block}norm2.weight": (width,),
            f"{block}mlp.0.weight": (4 * width, width),
            f"{block}mlp.0.bias": (4 * width,),
            f"{block}mlp.2.weight": (width, 4 * width),
            f"{block}mlp.2.bias": (width,),
        }
        if is_modulated:
            shapes[f"{block}adaLN_modulation.weight"] = (6 * width, condition)
            shapes[f"{block}adaLN_modulation.bias"] = (6 * width,)
    found = {f"backbone.{name}": weight for name, weight in _random(shapes, seed).items()}
    size = width // config["n_heads"]
    found["backbone.rotary_emb.inv_freq"] = 1 / 10_000 ** (torch.arange(0, size, 2) / size)
    if config.get("var_min"):
        found |= {"sampling_eps_min": torch.tensor(0.1), "sampling_eps_max": torch.tensor(0.9)}
    return found


def mdlm_logits(
    weights: Weights, config: dict[str, Any], token_ids: Tensor, mask: Tensor | None = None
) -> Tensor:
    """[tokens, vocab] for one text at noise level 0; ``mask`` as in ``qwen_logits``."""
    part = {name.removeprefix("backbone."): weight for name, weight in weights.items()}
    level = _level(part, torch.zeros(())) if config.get("adaln", True) else None
    x = part["vocab_embed.embedding"][token_ids]
    for number in range(config["n_blocks"]):
        own = _below(part, f"blocks.{number}.")
        shifts = _modulation(own, level, 6)
        normed = _centred(x, own["norm1.weight"]) * (1 + shifts[1]) + shifts[0]
        thirds = functional.linear(normed, own["attn_qkv.weight"]).chunk(3, -1)
        heads = [_heads(third, config["n_heads"]) for third in thirds]
        attended = functional.linear(_attend(*heads, 10_000.0, mask), own["attn_out.weight"])
        x = x + shifts[2] * attended
        normed = _centred(x, own["norm2.weight"]) * (1 + shifts[4]) + shifts[3]
        inner = functional.gelu(_linear(own, "mlp.0", normed), approximate="tanh")
        x = x + shifts[5] * _linear(own, "mlp.2", inner)
    own = _below(part, "output_layer.")
    shift, scale = _modulation(own, level, 2)
    return _linear(own, "linear", _centred(x, own["norm_final.weight"]) * (1 + scale) + shift)


def _level(part: Weights, sigma: Tensor) -> Tensor:
    speeds = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    waves = torch.cat([torch.cos(sigma * speeds), torch.sin(sigma * speeds)])
    own = _below(part, "sigma_map.")
    return functional.silu(_linear(own, "mlp.2", functional.silu(_linear(own, "mlp.0", waves))))


def _modulation(own: Weights, level: Tensor | None, count: int) -> list[Tensor]:
    """Shift, scale, gate for each half of a block; shift and scale for the head."""
    if level is None:
        return [torch.tensor(float(number % 3 == 2)) for number in range(count)]
    return list(_linear(own, "adaLN_modulation", level).chunk(count))


def _below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}


def _linear(own: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def _centred(x: Tensor, weight: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:]) * weight


def _heads(rows: Tensor, count: int) -> Tensor:
    """[heads, tokens, channels]"""
    return rows.unflatten(-1, (count, -1)).transpose(0, 1)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, theta: float, mask: Tensor | None = None
) -> Tensor:
    """Rotary embedding over the two halves of a head, then attention; [tokens, heads * channels]."""
    repeats = len(queries) // len(keys)
    queries, keys = _turn(queries, theta), _turn(keys, theta).repeat_interleave(repeats, 0)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ values.repeat_interleave(repeats, 0)).transpose(0, 1).flatten(1)


def _turn(x: Tensor, theta: float) -> Tensor:
    size = x.shape[-1]
    speeds = 1 / theta ** (torch.arange(0, size, 2) / size)
    angles = (torch.arange(x.shape[1])[:, None] * speeds).repeat(1, 2)
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def in_blocks(length: int, size: int) -> Tensor:
    """bool [length, length]: what block-causal attention lets each position see."""
    block = torch.arange(length) // size
    return block[:, None] >= block


Layout = tuple[dict[str, Any], Callable[[dict[str, Any]], Weights], str]
LAYOUTS: dict[str, Layout] = {
    "llada": (LLADA, llada_weights, "fast"),
    "dream": (DREAM, lambda config: qwen_weights(config, has_bias=True), "vocabulary"),
    "sdar": (SDAR, lambda config: qwen_weights(config, has_bias=False), "fast"),
    "mdlm": (MDLM, mdlm_weights, "fast"),
    "bd3lm": (BD3LM, mdlm_weights, "fast"),
}
"""name -> (config, its weights, kind of tokenizer files)"""


def write_layout(folder: Path, name: str, **changes: Any) -> Path:
    """A checkpoint of a layout; ``changes`` go into its config."""
    config, weights, tokenizer = LAYOUTS[name]
    config = {**config, **changes}
    return write_checkpoint(folder, config, weights(config), tokenizer)
