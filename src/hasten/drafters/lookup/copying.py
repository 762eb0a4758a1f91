"""Copies what followed the last few tokens when the text had them before: prompt lookup, CopySpec, LLMA.

Prompt lookup (Saxena 2023, as in transformers) tries the longest n-gram first; CopySpec (arXiv 2502.08923)
uses one length only; LLMA (arXiv 2304.04487), in the form EMS-SD drafts with (arXiv 2405.07542), one length
and the prompt only. All draft a chain from the sequence's own text and remember one place per n-gram, so that
a step costs the new tokens only. Know nothing of models or of other sequences.

A chain's scores follow from the length of the match alone; they rank drafts and are meant to be calibrated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.errors import ConfigError
from hasten.tree import DraftTree

PROMPT_LOOKUP_SYSTEM = System(
    name="prompt-lookup",
    title="Prompt Lookup Decoding",
    arxiv="",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.copying",
    summary="copies what followed the longest n-gram that ends the text",
)
COPYSPEC_SYSTEM = System(
    name="copyspec",
    title="CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without Compromising Quality",
    arxiv="2502.08923",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.copying",
    summary="copies what followed the last three tokens before",
)
LLMA_SYSTEM = System(
    name="llma",
    title="Inference with Reference: Lossless Acceleration of Large Language Models",
    arxiv="2304.04487",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.copying",
    summary="copies from the prompt what followed the last two tokens there",
)

Occurrence = Literal["first", "last"]

FULL_MATCH = 32
"""Longer matches are no more reliable."""


def match_reliability(match_length: int) -> float:
    """A guess at how often the continuation of a match of this length is right.

    The lengths 1, 2, 3, 4-7 and 8+ lie in the middle of different half-octaves of probability, because
    calibration bins by these; from 8 on, the guess rises within the highest.
    """
    octaves = (2.25, 1.75, 1.25, 0.75, 0.75, 0.75, 0.75, 0.25)
    if match_length <= 8:
        return float(2.0 ** -octaves[max(match_length, 1) - 1])
    return 1 - 0.16 * 8 / min(match_length, FULL_MATCH)


RELIABILITY: NDArray[np.float64] = np.array([match_reliability(length) for length in range(FULL_MATCH + 1)])
"""By length, for compiled loops."""


class _NgramIndex:
    """Where a text goes on after each of its n-grams: the first time, or the last."""

    def __init__(self, size: int, occurrence: Occurrence) -> None:
        self.size = size
        self._keep_first = occurrence == "first"
        self._next_position: dict[tuple[int, ...], int] = {}
        self._num_seen = size

    def update(self, token_ids: list[int]) -> None:
        """Learn the n-grams that something follows by now; the one at the very end would match itself."""
        size = self.size
        for position in range(self._num_seen, len(token_ids)):
            ngram = tuple(token_ids[position - size : position])
            if self._keep_first:
                self._next_position.setdefault(ngram, position)
            else:
                self._next_position[ngram] = position
        self._num_seen = max(self._num_seen, len(token_ids))

    def find(self, token_ids: list[int]) -> int | None:
        return self._next_position.get(tuple(token_ids[-self.size :]))


class _Copier(Forgetful):
    """What these drafters share: they differ in the n-gram sizes they try, best first, and in where."""

    top_k = 0

    def __init__(
        self, sizes: range, num_tokens: int, occurrence: Occurrence, *, prompt_only: bool = False
    ) -> None:
        if num_tokens < 1:
            raise ConfigError(f"a copy of {num_tokens} tokens cannot work; it must be at least 1")
        if occurrence not in ("first", "last"):
            raise ConfigError(f"occurrence={occurrence!r} is not one of first, last")
        self._sizes = sizes
        self._num_tokens = num_tokens
        self._occurrence = occurrence
        self._prompt_only = prompt_only
        self._indexes: dict[Sequence, list[_NgramIndex]] = {}
        self._scores: dict[int, NDArray[np.float32]] = {
            # An accepted token makes the match one longer.
            size: np.cumprod([match_reliability(size + i) for i in range(num_tokens)], dtype=np.float32)
            for size in sizes
        }

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        self._indexes[sequence] = [_NgramIndex(size, self._occurrence) for size in self._sizes]
        self._update(sequence)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        return self.propose_after(sequence, [], budget)

    def propose_after(self, sequence: Sequence, path: list[int], budget: int) -> DraftTree:
        """As ``propose``, for what would follow if ``path`` were written."""
        token_ids = sequence.token_ids
        matched = token_ids[-max(self._sizes) :] + path if path else token_ids
        end = sequence.prompt_length if self._prompt_only else len(token_ids)
        num_tokens = max(min(budget, self._num_tokens), 0)
        for index in self._indexes[sequence]:
            position = index.find(matched)
            if position is not None:
                copied = token_ids[position : min(position + num_tokens, end)]
                scores = self._scores[index.size][: len(copied)]
                return DraftTree(copied, np.arange(-1, len(copied) - 1), scores, source_names=(self.name,))
        return DraftTree(source_names=(self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        if not self._prompt_only:
            self._update(sequence)

    def end(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence, None)

    def _update(self, sequence: Sequence) -> None:
        for index in self._indexes[sequence]:
            index.update(sequence.token_ids)


class PromptLookup(_Copier):
    """The longest n-gram first.

    Args:
        max_ngram: the longest n-gram looked up; shorter ones are tried down to a single token.
        num_tokens: the most to copy.
        occurrence: which earlier occurrence to copy from; transformers takes the first.
    """

    name = "prompt-lookup"

    def __init__(self, *, max_ngram: int = 3, num_tokens: int = 10, occurrence: Occurrence = "first") -> None:
        if max_ngram < 1:
            raise ConfigError(f"max_ngram={max_ngram} cannot work; it must be at least 1")
        super().__init__(range(max_ngram, 0, -1), num_tokens, occurrence)


class CopySpec(_Copier):
    """One n-gram length only.

    Args:
        gamma: the paper's name for the number of tokens that must match.
        num_copy: the most to copy.
        occurrence: which earlier occurrence to copy from; the paper takes the first, the last suits text that
            is edited as it is repeated.
    """

    name = "copyspec"

    def __init__(self, *, gamma: int = 3, num_copy: int = 10, occurrence: Occurrence = "first") -> None:
        if gamma < 1:
            raise ConfigError(f"gamma={gamma} cannot work; it must be at least 1")
        super().__init__(range(gamma, gamma + 1), num_copy, occurrence)


class Llma(_Copier):
    """Two tokens must match, in the prompt, where they stood last.

    Args:
        num_copy: the most to copy; never beyond the end of the prompt.
    """

    name = "llma"

    def __init__(self, *, num_copy: int = 7) -> None:
        super().__init__(range(2, 3), num_copy, "last", prompt_only=True)
