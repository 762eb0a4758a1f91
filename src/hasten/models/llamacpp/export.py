"""Writes a transformers model of the Llama family as a GGUF file, the format of llama.cpp.

The weights are those of the model: in its own dtype nothing is rounded. Not known: other architectures, and
tokenizers that are not byte-level BPE; llama.cpp's own converter knows more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hasten.errors import ConfigError, MissingExtra, ModelError
from hasten.files import write_whole
from hasten.models.llamacpp.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

GGUF_DTYPES = ("auto", "float32", "bfloat16", "float16", "q8_0")


class _Architecture(NamedTuple):
    """How llama.cpp names a model, and whether it turns pairs of neighbouring channels instead of halves."""

    name: str
    turns_neighbours: bool


_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture("llama", True),
    "MistralForCausalLM": _Architecture("llama", True),
    "Qwen2ForCausalLM": _Architecture("qwen2", False),
    "Qwen3ForCausalLM": _Architecture("qwen3", False),
}

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class _Tensor(NamedTuple):
    name: str
    values: torch.Tensor
    kind: Any
    """gguf.GGMLQuantizationType"""


def export_gguf(
    model: Any, tokenizer: Any, path: str | os.PathLike[str], *, dtype: str = "auto"
) -> dict[str, int]:
    """Write model and tokenizer to one file. An older file is replaced only when the new one is complete.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 causal LM of transformers, also while hasten
            accelerates it.
        tokenizer: byte-level BPE; or None, then the file takes and gives token ids only.
        dtype: "auto" (the model's), "float32", "bfloat16", "float16" or "q8_0". Vectors stay in float32.

    Returns:
        how many tensors there are of each of llama.cpp's types.

    Raises:
        ConfigError: an unknown dtype.
        ModelError: a model or a tokenizer that cannot be written this way.
        StoreError: the place cannot be written.
        MissingExtra: the gguf package is not installed.
    """
    gguf = require_gguf()
    chosen = str(model.dtype).removeprefix("torch.") if dtype == "auto" else dtype
    if chosen not in GGUF_DTYPES[1:]:
        raise ConfigError(f"dtype={chosen!r} is not known to GGUF files; choose {', '.join(GGUF_DTYPES[1:])}")
    architecture = _require_supported(model)
    tensors = list(_tensors(model, architecture, chosen))
    _require_complete(tensors, model)

    def write(temporary: str) -> None:
        with closing(gguf.GGUFWriter(temporary, architecture.name)) as writer:
            _write_settings(writer, model, chosen)
            write_vocabulary(writer, model, tokenizer)
            for each in tensors:
                shape = tuple(each.values.shape)
                size = gguf.quant_shape_to_byte_shape(shape, each.kind)
                num_bytes = int(torch.tensor(size).prod())
                writer.add_tensor_info(each.name, shape, None, num_bytes, raw_dtype=each.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for each in tensors:  # one at a time, so that memory holds no second model
                writer.write_tensor_data(gguf.quantize(_as_numpy(each.values), each.kind))

    write_whole(Path(path), write, "GGUF file")
    kinds = [each.kind.name for each in tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def require_gguf() -> Any:
    """The gguf package. Raises MissingExtra where it is not installed."""
    try:
        import gguf
    except ImportError as problem:
        raise MissingExtra("GGUF files are written by the gguf package: pip install gguf") from problem
    return gguf


def _as_numpy(values: torch.Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return found


def _require_supported(model: Any) -> _Architecture:
    kind = type(model).__name__  # a subclass may compute something else with the same weights
    if kind not in _ARCHITECTURES:
        raise ModelError(
            f"{kind} cannot be written as GGUF here; only {', '.join(_ARCHITECTURES)} can, llama.cpp's "
            "convert_hf_to_gguf.py knows more"
        )
    config = model.config
    if getattr(config, "hidden_act", "silu") != "silu":
        raise ModelError(f"{kind} with hidden_act={config.hidden_act!r} cannot be written as GGUF, only silu")
    if _has_window(config):
        raise ModelError(f"{kind} with sliding windows cannot be written as GGUF here: they would be ignored")
    return _ARCHITECTURES[kind]


def _has_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _write_settings(writer: Any, model: Any, dtype: str) -> None:
    gguf = require_gguf()
    config, head_dim = model.config, _head_dim(model.config)
    writer.add_type("model")
    writer.add_name(Path(str(getattr(model, "name_or_path", "") or type(model).__name__)).name)
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[dtype]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope_base(config))


_FILE_TYPES = {
    "float32": "ALL_F32",
    "float16": "MOSTLY_F16",
    "bfloat16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}


def _rope_base(config: Any) -> float:
    return float(config.rope_parameters["rope_theta"])


def _tensors(model: Any, architecture: _Architecture, dtype: str) -> Iterator[_Tensor]:
    gguf = require_gguf()
    kinds = gguf.GGMLQuantizationType
    matrix = {"float32": kinds.F32, "float16": kinds.F16, "bfloat16": kinds.BF16, "q8_0": kinds.Q8_0}[dtype]
    factors = _rope_factors(model, architecture)
    if factors is not None:
        yield _Tensor("rope_freqs.weight", factors, kinds.F32)
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kind = kinds.F32 if values.dim() == 1 else matrix
        if kind == kinds.Q8_0 and values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = kinds.F16  # blocks of 32 values a row
        num_heads = heads.get(name.split(".")[-2]) if architecture.turns_neighbours else None
        placed = values if num_heads is None else _halves_interleaved(values, num_heads)
        yield _Tensor(_gguf_name(name), placed, kind)


def _require_complete(tensors: list[_Tensor], model: Any) -> None:
    """Raises ModelError where a layer has no weights of its own, as one that was replaced."""
    names = {each.name for each in tensors}
    needed = [name for name in _LAYER_NAMES.values() if not name.endswith(("q_norm", "k_norm"))]
    for layer in range(model.config.num_hidden_layers):
        for name in needed:
            if f"blk.{layer}.{name}.weight" not in names:
                raise ModelError(
                    f"layer {layer} of {type(model).__name__} has no weights for {name!r}; give a model with "
                    "transformers' own layers"
                )


def _gguf_name(name: str) -> str:
    """Raises ModelError for a tensor that these architectures do not have."""
    module, _, kind = name.rpartition(".")
    if module in _OTHER_NAMES and kind == "weight":
        return f"{_OTHER_NAMES[module]}.weight"
    if module.startswith("model.layers.") and kind in ("weight", "bias"):
        _, _, layer, inner = module.split(".", 3)
        if inner in _LAYER_NAMES:
            return f"blk.{layer}.{_LAYER_NAMES[inner]}.{kind}"
    raise ModelError(f"the weights {name!r} have no name in GGUF; give a model with transformers' own layers")


def _halves_interleaved(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head in the order 0, n/2, 1, n/2 + 1, ...: what transformers turns as halves."""
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _rope_factors(model: Any, architecture: _Architecture) -> torch.Tensor | None:
    """What llama.cpp divides each frequency by; None if there is nothing to divide.

    Taken from the model's own frequencies, so it covers every scaling that does not depend on the text.
    """
    rotary, head_dim = model.model.rotary_emb, _head_dim(model.config)
    kind = model.config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or rotary.attention_scaling != 1:
        raise ModelError(f"rope_type={kind!r} cannot be written as GGUF here; default, linear and llama3 can")
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / _rope_base(model.config) ** powers
    factors: torch.Tensor = plain / rotary.inv_freq.detach().to("cpu", torch.float32)
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-6):
        return None
    if architecture.name != "llama":
        raise ModelError(f"rope_type={kind!r} of {type(model).__name__} cannot be written as GGUF here")
    return factors
