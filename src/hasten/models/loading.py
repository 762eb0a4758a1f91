"""From a name to a transformers model and its tokenizer, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from transformers.utils import logging

from hasten.errors import ConfigError, ModelError
from hasten.models.bundled_models import BUNDLED, bundled_path
from hasten.models.forwards.forward import takes_tree_masks
from hasten.models.weights import load_weights

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.vocab", "*.tiktoken", "merges.txt", "spiece*")
"""what the files of tokenizers are called"""


def load_pretrained(
    name: str, dtype: str, device: str | None, *, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a bundled name, a local folder or a hub id.

    The tokenizer of a folder that has no file of one is None: such a model reads and writes token ids.

    Raises:
        ConfigError: unknown dtype, a dtype the device cannot use, or a device that is not there.
        ModelError: no such folder or hub id, unreadable files, or files without all its weights.
    """
    target_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, target_device)
    source = resolve_source(name)
    if name in BUNDLED:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # nothing to wait for
    try:
        tokenizer = _tokenizer_of(source, trust_remote_code) if _has_tokenizer(source) else None
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if not takes_tree_masks(config):
            config._attn_implementation = None  # the default computes the same, and does
        options = {"config": config, "dtype": torch_dtype, "trust_remote_code": trust_remote_code}
        model = load_weights(_auto_class(config), source, **options)
    except (ModelError, ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        raise ModelError(f"cannot load {name!r}: {problem}") from problem
    finally:
        if name in BUNDLED:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model.to(device=target_device)
    model.eval()
    return model, tokenizer


def _auto_class(config: Any) -> Any:
    if not config.is_encoder_decoder:
        return AutoModelForCausalLM
    is_speech = type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    return AutoModelForSpeechSeq2Seq if is_speech else AutoModelForSeq2SeqLM


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a bundled name, a local folder or a hub id. Raises ModelError."""
    try:
        return _tokenizer_of(resolve_source(name), trust_remote_code)
    except (ModelError, OSError, ValueError, KeyError, RuntimeError) as problem:
        raise ModelError(f"cannot load the tokenizer of {name!r}: {problem}") from problem


def _tokenizer_of(source: str, trust_remote_code: bool) -> Any:
    """Raises ModelError for the empty tokenizer that transformers makes up where files are missing."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelError("its tokenizer knows special tokens only: the files of its vocabulary are missing")
    return tokenizer


def _has_tokenizer(source: str) -> bool:
    """Whether a folder has a file of one; a hub id is taken to have one."""
    folder = Path(source)
    return not folder.is_dir() or any(next(folder.glob(name), None) for name in _TOKENIZER_FILES)


def resolve_source(name: str) -> str:
    """The folder or hub id that a name stands for. Raises ModelError where there is nothing."""
    if name in BUNDLED:
        return str(bundled_path(name))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name!r} is a folder without config.json; give a folder made by save_pretrained"
            )
        return str(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if path.exists() or looks_like_path:
        raise ModelError(
            f"no model at {name!r}: give an existing folder, a hub id such as 'owner/name', "
            f"or one of the bundled models: {', '.join(BUNDLED)}"
        )
    return name


def resolve_device(device: str | None) -> torch.device:
    """The device asked for, or the GPU where there is one, or the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as problem:
        why = str(problem).splitlines()[0].split(". ")[0]
        raise ConfigError(f"device={device!r} cannot be used here ({why}); try device='cpu'") from problem
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The torch dtype, or "auto" for that of the checkpoint."""
    if dtype == "auto":
        return "auto"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype='float16' is for GPUs; on the CPU choose 'bfloat16' or 'float32'")
    return DTYPES[dtype]
