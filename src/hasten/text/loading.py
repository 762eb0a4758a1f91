"""Load a model to write with: by name, from a folder or a GGUF file, or a transformers model as it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hasten.drafters import Drafter
from hasten.errors import ConfigError, ModelError
from hasten.models.checkpoints import is_denoiser
from hasten.models.draft.draft_lm import DraftLM, load_draft
from hasten.models.encoder_decoder.target import target_of
from hasten.models.forwards.choose import FORWARDS, prepare
from hasten.models.llamacpp.target import is_gguf, load_gguf
from hasten.models.loading import load_pretrained
from hasten.models.target import Target
from hasten.text.engine import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: str | os.PathLike[str] | PreTrainedModel = "demo",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    device: str | None = None,
    drafter: str | Drafter = "auto",
    store: str | os.PathLike[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | PreTrainedModel | DraftLM | None = None,
    draft_device: str | None = None,
    draft_vocab: str | os.PathLike[str] | None = None,
    forward: str = "auto",
    prefix_cache: int | str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model to write with.

    Args:
        model: a bundled name ("demo", "demo-draft"), a local folder, a hub id, the path of a GGUF file, which
            llama.cpp runs, or a transformers model.
        tokenizer: only for a transformers model; without one, prompts are token ids.
        dtype: "auto" (the checkpoint's), "float32", "float64", "bfloat16" or "float16".
        device: such as "cpu" or "cuda:0"; by default the GPU where there is one.
        drafter: the default for this model's calls; see ``LanguageModel.generate``.
        store: a file written by ``save_store``, to start with what earlier runs learnt.
        index: a corpus index made by ``hasten index``, for the drafters "rest" and "rasd".
        draft: a smaller model that guesses for this one, and which "auto" then uses too: a bundled name, a
            folder or a hub id, loaded with this dtype and forward; a transformers model; or a DraftLM.
        draft_device: where the draft model runs; by default where this model does.
        draft_vocab: tokens that the draft may propose, a file of ``hasten train trim``.
        forward: "stock" runs transformers' own layers; on the CPU, "packed" packs the linear ones, and
            "compiled" runs whole passes in compiled code; on a GPU, "graphs" replays recorded passes; "auto"
            measures which is fastest. A transformers model given as an object is never changed: it runs as it
            is, or recorded on request; its weights must then stay where they are.
        prefix_cache: bytes in which keys and values of earlier texts are kept, so that a text that begins
            alike (a chat's next turn, a system prompt) reads only what is new; 0 keeps none. "auto" is 256
            MiB where that changes no logit and the model was loaded here, so that nobody else changes its
            weights.
        trust_remote_code: allow a hub repository to run its own code.

    Raises:
        ConfigError, ModelError, StoreError, IncompatibleModels: see hasten.errors.
    """
    if forward not in FORWARDS:
        raise ConfigError(f"forward={forward!r} is unknown; choose {', '.join(FORWARDS)}")
    target, tokenizer = _open_target(
        model, tokenizer, dtype=dtype, device=device, forward=forward, trust_remote_code=trust_remote_code
    )
    if draft is not None:
        options: dict[str, Any] = {"device": draft_device, "draft_vocab": draft_vocab}
        if isinstance(draft, str | os.PathLike):
            options |= {"dtype": dtype, "forward": forward, "trust_remote_code": trust_remote_code}
        draft = load_draft(draft, target=target, target_tokenizer=tokenizer, **options)
    elif draft_device is not None or draft_vocab is not None:
        raise ConfigError("draft_device and draft_vocab go with a draft model; give draft= too")
    if prefix_cache == "auto" and not isinstance(model, str | os.PathLike):
        prefix_cache = 0
    language_model = LanguageModel(
        target, tokenizer, drafter=drafter, index=index, draft=draft, prefix_cache=prefix_cache
    )
    if store is not None:
        language_model.load_store(store)
    return language_model


def _open_target(
    model: Any,
    tokenizer: Any,
    *,
    dtype: str,
    device: str | None,
    forward: str,
    trust_remote_code: bool,
) -> tuple[Target, Any]:
    """As ``load``: the target and its tokenizer."""
    dtype = str(dtype).removeprefix("torch.")  # torch.float32 is as good as its name
    if is_gguf(model):
        return load_gguf(model, tokenizer=tokenizer, dtype=dtype, device=device, forward=forward)
    if isinstance(model, str | os.PathLike):
        if is_denoiser(os.fspath(model)):
            raise ModelError(
                f"{os.fspath(model)!r} is a diffusion model, which writes another way; use "
                "hasten.load_diffusion, or hasten generate and hasten infill"
            )
        if tokenizer is not None:
            raise ConfigError("tokenizer= goes with a transformers model; a name or folder brings its own")
        model, tokenizer = load_pretrained(
            os.fspath(model), dtype, device, trust_remote_code=trust_remote_code
        )
        return target_of(model, prepare(model, forward).forward), tokenizer
    if not hasattr(model, "generate"):
        raise ModelError(f"model={model!r} is no model: give a name, a folder, or a transformers model")
    if tokenizer is not None and not callable(tokenizer):
        raise ConfigError(f"tokenizer={tokenizer!r} is no tokenizer: give the object itself")
    if dtype != "auto" or device is not None:
        raise ConfigError("dtype and device go with a name or folder; convert a model object yourself")
    if forward not in ("auto", "stock", "graphs"):
        raise ConfigError(f"forward={forward!r} takes the weights over, so it goes with a name or folder")
    return target_of(model, prepare(model, "stock" if forward == "auto" else forward).forward), tokenizer
