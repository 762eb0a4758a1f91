"""Which tokens a draft's head needs: those that texts are mostly made of (VocabTrim, arXiv 2506.22694).

Texts that the target wrote tell more than others. Knows texts and counts; heads are cut by ``load_draft``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.drafters.corpus.corpus_texts import find_files, tokenised
from hasten.errors import ConfigError
from hasten.models.draft.trimmed_vocabulary import save_kept_ids
from hasten.models.vocabulary import vocabulary_fingerprint


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What was kept, and how much of the texts that is."""

    kept_ids: NDArray[np.int64]
    num_tokens: int
    """of the texts, ends included"""
    coverage: float
    """share of these tokens that are kept"""


def trim_vocabulary(
    tokenizer: Any,
    paths: Iterable[Path],
    keep: int,
    output: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trimmed:
    """Count the tokens of text files and write the most frequent ones to a file for ``draft_vocab=``.

    Args:
        tokenizer: the draft's.
        paths: text files, .jsonl files with a "text" in every line, or folders of such.
        keep: how many tokens.
        on_progress: called with (bytes read, bytes of all files).

    Raises:
        ConfigError: a number of tokens that cannot be, or files that cannot be read.
        StoreError: a place that cannot be written.
    """
    size = len(tokenizer)
    if not 1 <= keep <= size:
        raise ConfigError(f"keep={keep} cannot work; it must be from 1 to the {size} tokens there are")
    texts = tokenised(find_files(paths), tokenizer, on_progress)
    counts = count_tokens(texts, size, tokenizer.eos_token_id)
    if not counts.any():
        raise ConfigError(
            "the files hold no text, so that no token is more frequent than others; give more files"
        )
    kept_ids = most_frequent(counts, keep)
    trimmed = Trimmed(kept_ids, int(counts.sum()), float(counts[kept_ids].sum() / counts.sum()))
    save_kept_ids(output, kept_ids, vocabulary_fingerprint(tokenizer, size), trimmed.coverage)
    return trimmed


def count_tokens(
    texts: Iterable[NDArray[np.int32]], vocab_size: int, end_of_text: int | None
) -> NDArray[np.int64]:
    """int64 [vocab]: how often each token occurs; every text that is not empty also ends."""
    counts = np.zeros(vocab_size, np.int64)
    for token_ids in texts:
        counts += np.bincount(token_ids, minlength=vocab_size)
        if end_of_text is not None and len(token_ids):
            counts[end_of_text] += 1
    return counts


def most_frequent(counts: NDArray[np.int64], keep: int) -> NDArray[np.int64]:
    """Ids of the largest counts, ascending; of equal ones the lower id, which mostly was merged earlier."""
    return np.sort(np.argsort(-counts, kind="stable")[:keep]).astype(np.int64)
