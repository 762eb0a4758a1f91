"""From a name to a denoiser: what a checkpoint is, which module runs it, and what it was trained for.

A folder with denoiser_spec.json is one of ours: a stock model and its spec. Published checkpoints are told by
the model type in their config.json and read onto stock modules, so that none of their code is run. Everything
else is a causal model of transformers that was trained to denoise; how, its user says in ``spec``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig

from hasten.core import SPEC_FILE
from hasten.diffusion.canvas import Denoiser, DenoiserSpec, parse_spec
from hasten.diffusion.denoisers.diffusion_gemma import DIFFUSION_GEMMA
from hasten.diffusion.denoisers.dream import DREAM
from hasten.diffusion.denoisers.foreign import Config, Family, need
from hasten.diffusion.denoisers.llada import LLADA
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.denoisers.mdlm import BD3LM, MDLM
from hasten.diffusion.denoisers.sdar import A2D, SDAR
from hasten.diffusion.denoisers.sigma_gpt import POSITIONS_FILE, SigmaGPT
from hasten.errors import ConfigError, ModelError
from hasten.models.checkpoints import find_file, read_json
from hasten.models.loading import (
    load_pretrained,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    resolve_source,
)

FAMILIES: tuple[Family, ...] = (LLADA, DREAM, SDAR, *A2D, MDLM, BD3LM, DIFFUSION_GEMMA)
"""the published checkpoints that are read"""
MASKS = ("<|mask|>", "<|MASK|>", "<|mdm_mask|>", "[MASK]", "<mask>")
"""what mask tokens are called where a tokenizer has one and does not say so"""

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_PROBLEMS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def load_denoiser(
    name: str,
    dtype: str = "auto",
    device: str | None = None,
    *,
    spec: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Denoiser, Any]:
    """(denoiser, tokenizer) of a bundled name, a local folder or a hub id.

    Args:
        dtype, device: as for ``loading.load_pretrained``.
        spec: what the checkpoint does not say or says wrong, such as "mask_id=126336,attention=full".
        trust_remote_code: lets a repository run its own code where its layout is not known here.

    Raises:
        ConfigError: a dtype or device that cannot be used; a spec that cannot be read or does not fit.
        ModelError: nothing there, no denoiser, an unknown layout, or weights that do not fit.
    """
    target = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, target)
    changes = {} if spec is None else parse_spec(spec)
    wish = _Wish(name, resolve_source(name), dtype, target, changes, trust_remote_code)
    try:
        config = read_json(wish.source, "config.json")
        family = next((one for one in FAMILIES if one.reads(config)), None)
        if family is not None:
            return _load_family(family, wish, torch_dtype)
        own = find_file(wish.source, SPEC_FILE)
        if own is None and spec is None:
            raise ModelError(_unknown(config))
        trained = {} if own is None else asdict(DenoiserSpec.load(own.parent))
        _check_code(config, trust_remote_code)
        stock_spec = _stock_spec(wish, trained)
    except ConfigError:
        raise
    except (ModelError, *_PROBLEMS) as problem:
        raise ModelError(f"cannot load {name!r}: {problem}") from problem
    return _load_stock(wish, stock_spec)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a caller of ``load_denoiser`` asked for."""

    name: str
    source: str
    """folder or hub id"""
    dtype: str
    device: torch.device
    changes: dict[str, Any]
    """fields of the spec"""
    trust_remote_code: bool


def _load_family(family: Family, wish: _Wish, dtype: torch.dtype | str) -> tuple[Denoiser, Any]:
    folder = _fetched(wish.source, _TEXT_FILES)
    config = read_json(str(folder), "config.json")
    tokenizer = family.tokenizer(folder)
    text_config = family.text_config(config)
    vocab_size = int(need(text_config, "vocab_size"))
    told = _told(str(folder), text_config, tokenizer, vocab_size, family.end_tokens)
    spec = _spec(told | family.spec_values(config), wish.changes, tokenizer, vocab_size)
    weights = _fetched(wish.source, (*_TEXT_FILES, "*.safetensors"))
    model = family.build(weights, config, dtype)
    return family.wrap(model.to(device=wish.device).eval(), spec), tokenizer


def _stock_spec(wish: _Wish, trained: dict[str, Any]) -> DenoiserSpec:
    """Of a model of transformers, before its weights are read."""
    config = AutoConfig.from_pretrained(wish.source, trust_remote_code=wish.trust_remote_code)
    text_config = config.get_text_config(decoder=True)
    vocab_size = int(text_config.vocab_size)
    tokenizer = load_tokenizer(wish.name, trust_remote_code=wish.trust_remote_code)
    told = _told(wish.source, text_config.to_dict(), tokenizer, vocab_size)
    return _spec(told | trained, wish.changes, tokenizer, vocab_size)


def _load_stock(wish: _Wish, spec: DenoiserSpec) -> tuple[Denoiser, Any]:
    model, tokenizer = load_pretrained(
        wish.name, wish.dtype, str(wish.device), trust_remote_code=wish.trust_remote_code
    )
    if spec.attention == "any-order":
        place = find_file(wish.source, POSITIONS_FILE)
        return SigmaGPT.of(model, spec, Path(wish.source) if place is None else place.parent), tokenizer
    return MaskedLM(model, spec), tokenizer


def _told(
    source: str, config: Config, tokenizer: Any, vocab_size: int, end_tokens: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What configs and tokenizer tell: the mask token, where they do, the ends of texts, and padding."""
    place = find_file(source, "generation_config.json")
    generation = {} if place is None else json.loads(place.read_text(encoding="utf-8"))
    vocabulary = tokenizer.get_vocab()
    ends = [tokenizer.eos_token_id, *(vocabulary.get(token) for token in end_tokens)]
    for told in (config.get("eos_token_id"), generation.get("eos_token_id")):
        ends += told if isinstance(told, list) else [told]
    pad = config.get("pad_token_id")
    return {
        "mask_id": config.get("mask_token_id"),
        "eos_ids": tuple(sorted({one for one in ends if one is not None and one < vocab_size})),
        "pad_id": tokenizer.pad_token_id if pad is None else pad,
    }


def _spec(told: dict[str, Any], changes: dict[str, Any], tokenizer: Any, vocab_size: int) -> DenoiserSpec:
    """Raises ModelError or, where ``changes`` are to blame, ConfigError."""
    values = told | changes
    if values.get("noise") == "uniform":
        values["mask_id"] = changes.get("mask_id")
    elif values["mask_id"] is None:
        values["mask_id"] = _mask_of(tokenizer)
    mask_id = values["mask_id"]
    if mask_id is not None and not 0 <= mask_id < vocab_size:
        raise (ConfigError if "mask_id" in changes else ModelError)(
            f"mask_id={mask_id} is not in the vocabulary of {vocab_size} tokens; give another, as in "
            "spec='mask_id=...'"
        )
    return DenoiserSpec(**values)


def _mask_of(tokenizer: Any) -> int:
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    vocabulary = tokenizer.get_vocab()
    for token in MASKS:
        if token in vocabulary:
            return int(vocabulary[token])
    raise ModelError("neither config.json nor the tokenizer names a mask token; give spec='mask_id=...'")


def _unknown(config: Config) -> str:
    known = ", ".join(family.name for family in FAMILIES)
    return (
        f"its model type {config.get('model_type')!r} with architectures {config.get('architectures')} is no "
        f"denoiser that is known ({known}), and there is no {SPEC_FILE}; for a causal model of transformers "
        "that was trained to denoise, give spec='mask_id=...,attention=full'"
    )


def _check_code(config: Config, trust_remote_code: bool) -> None:
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise ModelError(
            f"model type {config.get('model_type')!r} needs code from its repository, which is not run by "
            "default; read that code, then give trust_remote_code=True"
        )


def _fetched(source: str, patterns: tuple[str, ...]) -> Path:
    """A folder with the files of a repository that match; folders are taken as they are."""
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, allow_patterns=list(patterns)))
