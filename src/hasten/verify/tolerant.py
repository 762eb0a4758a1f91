"""Tolerant verification (GAD++, arXiv 2205.10350): near misses of the target are kept.

Approximate: the text may differ from plain decoding's, so this rule is only used when it is asked for by
name. Where no child carries the target's own token, the best child is kept whose token is among the target's
``beta`` best and whose log-probability is at most ``tau`` below the best one. With ``beta=1`` this is
``follow``.

What differs from the paper: there are trees, so the target's own token comes first where it was drafted; and
sampled texts have the rule too, with the scores that the draw compares, noise included. The defaults are what
we remember of the paper's. Knows nothing of how drafts were made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, LogitRows, Sequence, TokenSampler
from hasten.errors import ConfigError
from hasten.sampling import require_finite
from hasten.tree import DraftTree
from hasten.verify.walk import walk


@runtime_checkable
class ScoreSampler(TokenSampler, Protocol):
    """A sampler that also tells how close the other tokens came."""

    def scores(self, logits: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
        """[vocab] from logits [vocab]: the token written after ``token_ids`` has the highest.

        Called once for each written position, in order.
        """
        ...


def tolerant(beta: int = 3, tau: float = 1.0) -> Callable[[DraftTree, LogitRows, Sequence], Acceptance]:
    """A rule that keeps drafted tokens close to the target's own.

    Args:
        beta: how many of the target's best tokens count.
        tau: how far below the best one's a log-probability may lie, in nats.

    Raises ConfigError for values that cannot work, and in use for a sampler that does not tell its scores.
    """
    if beta < 1:
        raise ConfigError(f"beta={beta} cannot work; it must be at least 1")
    if not tau >= 0:
        raise ConfigError(f"tau={tau} cannot work; it must be 0 or more")

    def verify(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """logits: [nodes + 1, vocab], root first. Raises ModelError at the first row that holds NaN."""
        sampler = sequence.sampler
        if not isinstance(sampler, ScoreSampler):
            raise ConfigError(
                f"verify='tolerant' needs a sampler that tells its scores, and {type(sampler).__name__} does "
                "not; choose verify='follow'"
            )

        def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
            scores = sampler.scores(logits[node + 1], token_ids)
            require_finite(float(scores.max()), len(token_ids))  # a NaN anywhere is the maximum
            drafted = tree.token_ids[np.flatnonzero(tree.parents == node)]
            token_id = _choose(drafted, scores, beta, tau)
            return token_id, tree.child(node, token_id)

        return walk(sequence, choose)

    return verify


def _choose(drafted: NDArray[np.int64], scores: torch.Tensor, beta: int, tau: float) -> int:
    """The token written where these tokens were drafted."""
    own = int(scores.argmax())
    if not len(drafted) or own in drafted:
        return own
    found = scores[torch.from_numpy(drafted).to(scores.device)]
    place = int(found.argmax())
    is_near = float(scores[own] - found[place]) <= tau
    num_ahead = int((scores >= found[place]).sum()) - 1  # itself does not count, a tie does
    return int(drafted[place]) if is_near and num_ahead < beta else own
