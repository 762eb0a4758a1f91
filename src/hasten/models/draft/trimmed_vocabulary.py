"""Which tokens a draft's trimmed head may still propose, on disk: one safetensors file beside the draft.

Source: VocabTrim (arXiv 2506.22694). What is kept is counted by ``hasten train trim``; the head itself is cut
by ``draft_lm.trim_head``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hasten.core import System
from hasten.errors import IncompatibleModels, StoreError
from hasten.files import write_whole

SYSTEM = System(
    name="vocab-trim",
    title="VOCABTRIM: Vocabulary Pruning for Efficient Speculative Decoding in LLMs",
    arxiv="2506.22694",
    kind="draft model",
    guarantee="exact",
    module="hasten.models.draft.trimmed_vocabulary",
    summary="a draft model's head keeps the rows of the tokens that the text is mostly made of",
)

TRIM_FILE = "vocab_trim.safetensors"
"""What a draft's folder is searched for."""
_FORMAT = "hasten-vocab-trim-1"


def save_kept_ids(
    path: str | os.PathLike[str], kept_ids: NDArray[np.int64], fingerprint: str, coverage: float
) -> None:
    """Write the draft's token ids to keep, for the tokenizer of this fingerprint.

    Args:
        coverage: the share of the counted tokens that are kept; only for people who look into the file.

    Raises StoreError if the place cannot be written.
    """
    path = Path(path)
    metadata = {"format": _FORMAT, "tokenizer": fingerprint, "coverage": f"{coverage:.6f}"}
    arrays = {"kept_ids": np.ascontiguousarray(kept_ids)}
    write_whole(path, lambda temporary: save_file(arrays, temporary, metadata), "trimmed vocabulary")


def load_kept_ids(path: str | os.PathLike[str], fingerprint: str) -> NDArray[np.int64]:
    """The token ids that ``save_kept_ids`` wrote.

    Raises:
        StoreError: no such file, or not one of these.
        IncompatibleModels: the tokens were counted with another tokenizer.
    """
    remedy = "make one with `hasten train trim`"
    if not Path(path).is_file():
        raise StoreError(f"no trimmed vocabulary at {str(path)!r}; {remedy}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            kept_ids = file.get_tensor("kept_ids")
    except (SafetensorError, OSError) as problem:
        raise StoreError(f"{str(path)!r} is not a trimmed vocabulary ({problem}); {remedy}") from problem
    if metadata.get("format") != _FORMAT:
        raise StoreError(
            f"{str(path)!r} has format {metadata.get('format')!r}, expected {_FORMAT!r}; {remedy}"
        )
    if metadata.get("tokenizer") != fingerprint:
        raise IncompatibleModels(
            f"{str(path)!r} was counted with tokenizer {metadata.get('tokenizer')!r}, the draft has "
            f"{fingerprint!r}; {remedy}"
        )
    return np.asarray(kept_ids, np.int64)
