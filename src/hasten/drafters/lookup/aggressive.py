"""Input-guided aggressive decoding (arXiv 2106.04970, 2205.10350): the source itself is the draft.

For texts that mostly repeat what the model reads, such as corrections and edits. The draft is what is left of
the source after the place the text has reached. Where the text leaves the source, drafting pauses until its
last one to three tokens stand at exactly one place of the source, and goes on after that place.

The source is what the encoder reads (``source_ids``), or, for a causal model, the prompt. Knows nothing of
other sequences. How far a copy may be trusted is a guess by the number of tokens copied so far, meant to be
calibrated.
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np

from hasten.core import Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.drafters.lookup.copying import match_reliability
from hasten.errors import ConfigError
from hasten.tree import DraftTree

SYSTEM = System(
    name="aggressive",
    title="Instantaneous Grammatical Error Correction with Shallow Aggressive Decoding (IAD)",
    arxiv="2106.04970",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.lookup.aggressive",
    summary="drafts the rest of the source, from where the text has got to in it",
)
GAD_SYSTEM = System(
    name="generalized-aggressive",
    title="Lossless Acceleration for Seq2seq Generation with Aggressive Decoding (GAD)",
    arxiv="2205.10350",
    kind="block drafting",
    guarantee="exact",
    module="hasten.models.encoder_decoder.target",
    summary="any drafter on an encoder-decoder model: its block is verified in one decoder pass",
)

_AMBIGUOUS = -1


class _Source:
    """Where the text stands in its source."""

    def __init__(self, token_ids: list[int], max_ngram: int) -> None:
        self.token_ids = token_ids
        self.position: int | None = 0
        self.num_matched = 1
        self._places: list[dict[tuple[int, ...], int]] = []  # n-gram -> the position after it
        for size in range(1, max_ngram + 1):
            places: dict[tuple[int, ...], int] = {}
            for end in range(size, len(token_ids) + 1):
                ngram = tuple(token_ids[end - size : end])
                places[ngram] = _AMBIGUOUS if ngram in places else end
            self._places.append(places)

    def follow(self, written: list[int]) -> None:
        """Walk along with new tokens as long as they are the source's."""
        for token in written:
            at = self.position
            if at is None or at >= len(self.token_ids) or self.token_ids[at] != token:
                self.position = None
                return
            self.position = at + 1
            self.num_matched += 1

    def align(self, text: list[int]) -> None:
        """Find the shortest n-gram at the end of the text that stands at one place only."""
        self.position = None
        for size, places in enumerate(self._places, start=1):
            if len(text) < size:
                return
            place = places.get(tuple(text[-size:]))
            if place is None:  # then no longer n-gram is there either
                return
            if place != _AMBIGUOUS:
                self.position, self.num_matched = place, size
                return


class AggressiveDecoding(Forgetful):
    """A chain of source tokens.

    Args:
        max_ngram: the longest n-gram tried when looking for the place to go on from.
        realign: "mismatch" keeps following the source until the text leaves it; "step" looks for the place
            anew before every draft but the first, which loses it where the last tokens are not unique.
    """

    name = "aggressive"
    top_k = 0

    def __init__(self, *, max_ngram: int = 3, realign: Literal["mismatch", "step"] = "mismatch") -> None:
        if max_ngram < 1:
            raise ConfigError(f"max_ngram={max_ngram} cannot work; it must be at least 1")
        if realign not in ("mismatch", "step"):
            raise ConfigError(f"realign={realign!r} is not one of mismatch, step")
        self._max_ngram = max_ngram
        self._realigns_always = realign == "step"
        self._sources: dict[Sequence, _Source] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        source_ids = list(sequence.source_ids) or sequence.token_ids[: sequence.prompt_length]
        self._sources[sequence] = _Source(source_ids, self._max_ngram)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        source = self._sources[sequence]
        if source.position is None or budget < 1:
            return DraftTree(source_names=(self.name,))
        copied = source.token_ids[source.position : source.position + budget]
        trust = [match_reliability(source.num_matched + ahead) for ahead in range(len(copied))]
        return DraftTree.chain(copied, np.cumprod(trust).tolist(), (self.name,))

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        source = self._sources[sequence]
        source.follow(observation.acceptance.token_ids)
        if source.position is None or self._realigns_always:
            source.align(sequence.new_token_ids)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._sources[child] = copy.copy(self._sources[parent])

    def end(self, sequence: Sequence) -> None:
        self._sources.pop(sequence, None)
