"""What callers give as prompts, read once, whichever model goes on with them.

Knows collections, arrays and what tokenizers return; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence as AbstractSequence, Set as AbstractSet
from typing import Any

import numpy as np
import torch

from hasten.errors import PromptError
from hasten.files import require_characters


def tokenised(text: str, tokenizer: Any, **options: bool) -> list[int]:
    """Token ids of a text; ``options`` are the tokenizer's.

    Raises PromptError for characters that nothing encodes, and without a tokenizer.
    """
    if tokenizer is None:
        raise PromptError(
            "this model was loaded without a tokenizer: give token ids, or tokenizer= with an object"
        )
    require_characters(text, "the prompt")
    return list(tokenizer(text, **options)["input_ids"])


def read_prompts(prompts: Any, pad_token_id: int | None = None) -> tuple[list[Any], bool]:
    """The prompts of a call, and whether it gave a single one: a text, token ids, or a recording's features.

    Several are any collection or iterator of such, an integer array [prompts, tokens], or what a tokenizer
    returns, whose attention mask says what is padding. An array without a mask may not begin or end a row
    with the pad token, as padding would be read as text.

    Raises PromptError for anything else.
    """
    if isinstance(prompts, Mapping):
        return _encoded(prompts)
    if isinstance(prompts, str | bytes | bytearray | memoryview) or _is_features(prompts):
        return [prompts], True
    if isinstance(prompts, AbstractSet) or not isinstance(prompts, Iterable):
        raise PromptError(f"prompts={prompts!r} are no prompts: give a text, token ids, or a list of such")
    if getattr(prompts, "ndim", 1) == 0:
        return read_prompts(prompts.item())  # type: ignore[attr-defined]
    if isinstance(prompts, np.ndarray | torch.Tensor) and prompts.ndim <= 2 and not _is_float(prompts):
        found = prompts.tolist()
        _refuse_padding(found if prompts.ndim == 2 else [found], pad_token_id)
    else:
        found = list(prompts)
    first = found[0] if found else ""
    if isinstance(first, Mapping):
        raise PromptError(
            "a prompt is a text or token ids, not a message: write a conversation as the text or the token "
            "ids of tokenizer.apply_chat_template(messages, add_generation_prompt=True)"
        )
    return ([found], True) if _is_token(first) else (found, False)


def _is_token(item: Any) -> bool:
    """Whether a list that begins with this is one prompt; what is neither is refused as a token id."""
    return getattr(item, "ndim", None) == 0 or not isinstance(item, str | bytes | Iterable)


_BESIDE_IDS = ("attention_mask", "token_type_ids", "special_tokens_mask", "offset_mapping", "length")


def _encoded(encoding: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """What a tokenizer returned, without its padding."""
    if "input_ids" not in encoding:
        raise PromptError(
            f"prompts with the keys {sorted(map(str, encoding))} have no input_ids: give a text, token ids, "
            "or what a tokenizer returns"
        )
    other = [name for name in encoding if name not in ("input_ids", *_BESIDE_IDS)]
    if other:
        raise PromptError(f"{other[0]} cannot be read: a prompt is token ids and nothing else")
    rows, is_single = read_prompts(encoding["input_ids"])
    if encoding.get("attention_mask") is None:
        return rows, is_single
    masks, _ = read_prompts(encoding["attention_mask"])
    if [len(row) for row in rows] != [len(mask) for mask in masks]:
        raise PromptError("input_ids and attention_mask differ in shape; give those of one tokenizer call")
    return [_unpadded(*pair) for pair in zip(rows, masks, strict=True)], is_single


def _unpadded(token_ids: AbstractSequence[int], mask: AbstractSequence[int]) -> list[int]:
    kept = [bool(one) for one in mask]
    start = kept.index(True) if any(kept) else 0
    end = start + sum(kept)
    if not all(kept[start:end]):
        raise PromptError(
            f"attention_mask={[int(one) for one in mask]} hides tokens inside a prompt; only padding at its "
            "ends can be left out"
        )
    return list(token_ids)[start:end]


def _refuse_padding(rows: list[list[Any]], pad_token_id: int | None) -> None:
    for row in rows:
        if pad_token_id is not None and row and pad_token_id in (row[0], row[-1]):
            raise PromptError(
                f"a row of this array begins or ends with the pad token ({pad_token_id}), which would be "
                "read as text: give all that the tokenizer returned, with its attention_mask, or lists"
            )


def _is_float(array: Any) -> bool:
    if isinstance(array, torch.Tensor):
        return array.is_floating_point()
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _is_features(prompts: Any) -> bool:
    return _is_float(prompts) and prompts.ndim == 2
