"""What may follow a node of a draft model's tree, in the order it is drawn in.

How a token is drawn is the verification rule's wish (``core.Proposals``); every tree shape draws through
here and so works with every rule. Coupled and chosen tokens come likeliest first; sampled ones in the order
they were drawn in, which a rule must keep, each with the law it was drawn from. Drawing one after the other
from what is left of a law is drawing by Gumbel-top-k. Knows nothing of trees.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import SAMPLED, LawSampler, Proposals, Sequence
from hasten.errors import ConfigError
from hasten.laws import Law, draw

_FIRST_RANKS = 16


class Candidate(NamedTuple):
    """A token that may follow a node."""

    token_id: int
    prob: float
    """in the draft's law; with the target's noise in it where tokens are coupled to that"""
    law: NDArray[np.float32] | None = None
    """float32 [vocab], what it was drawn from; None: it was not drawn"""


class Siblings(Protocol):
    """The candidates below one node."""

    @property
    def remaining(self) -> float:
        """Of the draft's law, what was not taken yet; 0: there are no more candidates."""
        ...

    def take(self, count: int, *, distinct: bool = False) -> list[Candidate]:
        """The next ``count`` candidates, fewer where the law holds no more.

        distinct: without replacement, also where the rule wants independent draws.
        """
        ...

    def log_probs(self) -> Law:
        """float64 [vocab], what orders the candidates: -inf for a token that cannot follow."""
        ...

    def named(self, token_ids: list[int]) -> list[Candidate]:
        """These tokens, which the caller drew without replacement and in this order.

        Fewer where the law holds no more.
        """
        ...


def siblings_below(
    sequence: Sequence, logits: torch.Tensor, position: int, generator: np.random.Generator | None
) -> Siblings:
    """The candidates below a node.

    Args:
        sequence: whose text it is; its sampler tells the noise and the laws.
        logits: [vocab], the draft's, after the node.
        position: of the token that follows the node, in the text.
        generator: of sampled tokens; one for a whole tree, new every round. None where nothing is sampled.
    """
    sampler = sequence.sampler
    if generator is not None:
        assert isinstance(sampler, LawSampler)
        return Drawn(sampler.law(logits), sequence.proposals, generator)
    if sequence.proposals == "chosen" and isinstance(sampler, LawSampler) and not sampler.is_greedy:
        probs = torch.from_numpy(sampler.law(logits))
        return Ranked(probs, probs)
    scores = sampler.noisy(logits, position)
    return Ranked(scores, torch.softmax(scores, 0))


def is_sampled(sequence: Sequence) -> bool:
    """Whether its drafts are drawn with noise of their own; a greedy text has nothing to draw.

    Raises ConfigError for a sampler that does not tell its laws.
    """
    if sequence.proposals not in SAMPLED:
        return False
    if not isinstance(sequence.sampler, LawSampler):
        raise ConfigError(
            f"drafts cannot be sampled for {type(sequence.sampler).__name__}, which does not tell its laws; "
            "choose verify='follow'"
        )
    return not sequence.sampler.is_greedy


class Ranked:
    """Candidates that are not drawn: the best first.

    Args:
        scores: [vocab], what ranks them.
        probs: [vocab], their probabilities.
    """

    def __init__(self, scores: torch.Tensor, probs: torch.Tensor) -> None:
        self.remaining = 1.0
        """See Siblings."""
        self._scores = scores
        self._probs = probs
        self._num_taken = 0
        self._best: list[tuple[int, float]] = []

    def take(self, count: int, *, distinct: bool = False) -> list[Candidate]:
        """See Siblings; ranked candidates are distinct anyway."""
        stop = min(self._num_taken + count, self._scores.numel())
        if stop > len(self._best):
            ranks = torch.topk(self._scores, min(self._scores.numel(), max(_FIRST_RANKS, 2 * stop))).indices
            self._best = list(zip(ranks.tolist(), self._probs[ranks].tolist(), strict=True))
        taken = [Candidate(*each) for each in self._best[self._num_taken : stop] if each[1] > 0]
        self._num_taken += len(taken)
        self.remaining = max(0.0, self.remaining - sum(candidate.prob for candidate in taken))
        if len(taken) < count:
            self.remaining = 0.0
        return taken

    def log_probs(self) -> Law:
        """See Siblings."""
        return _log(self._probs.double().cpu().numpy())

    def named(self, token_ids: list[int]) -> list[Candidate]:
        """See Siblings."""
        return [Candidate(token_id, float(self._probs[token_id])) for token_id in token_ids]


class Drawn:
    """Candidates that are drawn, each with its law.

    Args:
        law: [vocab], the draft's.
        proposals: "independent": with replacement.
        generator: their noise.
    """

    def __init__(self, law: Law, proposals: Proposals, generator: np.random.Generator) -> None:
        self._is_replaced = proposals == "independent"
        self._generator = generator
        # Rules are told laws in float32: what is drawn from must be the same numbers.
        self._left = law.astype(np.float32)
        self._total = self._mass = _sum(self._left)

    @property
    def remaining(self) -> float:
        """See Siblings."""
        return self._mass / self._total if self._mass > 0 else 0.0

    def take(self, count: int, *, distinct: bool = False) -> list[Candidate]:
        """See Siblings."""
        taken: list[Candidate] = []
        while len(taken) < count and self.remaining > 0:
            law = self._law()
            token_id = draw(law.astype(np.float64), self._generator)
            taken.append(
                Candidate(token_id, float(law[token_id]), law)
                if self._is_replaced and not distinct
                else self._without(token_id, law)
            )
        return taken

    def log_probs(self) -> Law:
        """See Siblings."""
        if not self.remaining:
            return np.full(len(self._left), -np.inf)
        return _log(self._law().astype(np.float64))

    def named(self, token_ids: list[int]) -> list[Candidate]:
        """See Siblings."""
        return [self._without(token_id, self._law()) for token_id in token_ids if self.remaining > 0]

    def _law(self) -> NDArray[np.float32]:
        return self._left / np.float32(self._mass)

    def _without(self, token_id: int, law: NDArray[np.float32]) -> Candidate:
        """This token, which is gone from what is left of the law afterwards."""
        candidate = Candidate(token_id, float(self._left[token_id]) / self._total, law)
        self._left[token_id] = 0.0
        self._mass = _sum(self._left)
        return candidate


def _sum(law: NDArray[np.float32]) -> float:
    """0 where so little is left that float32 could not be divided by it, or nothing that is a number."""
    mass = float(law.sum(dtype=np.float64))
    return mass if mass > np.finfo(np.float32).tiny else 0.0


def _log(law: Law) -> Law:
    with np.errstate(divide="ignore"):
        logs: Law = np.log(law)
    return logs
