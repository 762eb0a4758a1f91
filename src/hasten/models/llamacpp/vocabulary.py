"""A byte-level BPE tokenizer of transformers in the terms of a GGUF file.

llama.cpp knows how text is split before the merges only by the name of a known tokenizer, so a splitting rule
it has no name for is refused: its own tokenisation would differ without any error.
"""

from __future__ import annotations

import json
from typing import Any

from hasten.errors import ModelError
from hasten.values import known_ids

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (f"split {_LLAMA_3}", "spelled"): "llama-bpe",
    (f"split {_LLAMA_3.replace('{1,3}', '')}", "spelled"): "qwen2",
}
"""what is done before the merges -> llama.cpp's name for it"""


def write_vocabulary(writer: Any, model: Any, tokenizer: Any) -> None:
    """Add tokens, merges, special tokens and the chat template to a gguf writer.

    Raises ModelError for a tokenizer that llama.cpp would read differently.
    """
    ends = _end_ids(model)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _write_tokens(writer, model, tokenizer)
        ends = [*ends, *_known(tokenizer.eos_token_id)]
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(set(ends)) > 1:
        writer.add_eot_token_id(next(each for each in ends if each != ends[0]))
    begins = _known(getattr(tokenizer, "bos_token_id", None)) or _known(model.config.bos_token_id)
    if begins:
        writer.add_bos_token_id(begins[0])


def _end_ids(model: Any) -> list[int]:
    for config in (model.generation_config, model.config):
        if found := _known(getattr(config, "eos_token_id", None)):
            return found
    return []


def _known(token_ids: Any) -> list[int]:
    return known_ids(token_ids, "token id")


def _write_tokens(writer: Any, model: Any, tokenizer: Any) -> None:
    import gguf

    kinds = gguf.TokenType
    state = _byte_level_state(tokenizer)
    size = model.config.vocab_size
    texts = [f"[PAD{token_id}]" for token_id in range(size)]
    types = [kinds.UNUSED] * size
    for token, token_id in tokenizer.get_vocab().items():
        if token_id < size:  # the head has no row for others
            texts[token_id], types[token_id] = token, kinds.NORMAL
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if token_id < size:
            texts[token_id] = added.content
            types[token_id] = kinds.CONTROL if added.special else kinds.USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(state))
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(len(full) > len(bare) and full[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(full) > len(bare) and full[-1] == tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.mask_token_id is not None:
        writer.add_mask_token_id(tokenizer.mask_token_id)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(tokenizer.chat_template)


def _byte_level_state(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer saves of itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    steps = _steps(state.get("pre_tokenizer"))
    if state.get("model", {}).get("type") != "BPE" or not {"bytes", "spelled"}.intersection(steps[-1:]):
        raise ModelError(
            f"{type(tokenizer).__name__} is not byte-level BPE and cannot be written as GGUF here; use "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    return state


def _pre_tokenizer(state: dict[str, Any]) -> str:
    steps = _steps(state["pre_tokenizer"])
    if tuple(steps) not in _PRE_TOKENIZERS or state.get("normalizer") not in (None, {"type": "NFC"}):
        raise ModelError(
            f"llama.cpp has no name for how this tokenizer splits text ({' then '.join(steps)}); use "
            "its convert_hf_to_gguf.py, or export without a tokenizer"
        )
    return _PRE_TOKENIZERS[tuple(steps)]


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[str]:
    """A pre-tokenizer as words; others than these by their type.

    "split RULE"; "digits"; "bytes", which splits as GPT-2 does and spells bytes; "spelled", which spells.
    """
    if pre_tokenizer is None:
        return []
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [step for each in pre_tokenizer["pretokenizers"] for step in _steps(each)]
    if kind == "Split":
        return [f"split {pre_tokenizer['pattern'].get('Regex')}"]
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ["digits"]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ["bytes" if pre_tokenizer["use_regex"] else "spelled"]
    return [kind]
