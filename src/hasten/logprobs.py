"""The log-probabilities of written tokens, of the logits as the model gave them.

They are those of OpenAI's and vLLM's servers: the logarithm of the softmax of the raw logits (temperature 1,
before any bias, penalty or processor), whatever the token was drawn from. So they do not depend on drafts.
"""

from __future__ import annotations

import copy

import torch

from hasten.core import Acceptance, LogitRows, TokenLogprob
from hasten.logits import Logits


class Logprobs:
    """Those of one text.

    Args:
        num_top: how many of the likeliest tokens are told beside each written one.
    """

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self.tokens: list[TokenLogprob] = []

    def add(self, logits: LogitRows, acceptance: Acceptance) -> None:
        """What a step wrote; logits: [nodes + 1, vocab] of its tree, root first."""
        rows = [0, *(node + 1 for node in acceptance.path)]
        scores = logits[rows].float()
        total = torch.logsumexp(scores, -1, keepdim=True)
        written = torch.tensor(acceptance.token_ids, device=scores.device)[:, None]
        found = (scores.gather(-1, written) - total)[:, 0].tolist()
        best = self._best(Logits.of(logits), rows, total) if self._num_top else [{} for _ in rows]
        self.tokens += map(TokenLogprob, acceptance.token_ids, found, best)

    def _best(self, logits: Logits, rows: list[int], total: torch.Tensor) -> list[dict[int, float]]:
        top = logits.top(self._num_top)
        scores = top.scores[rows] - total.cpu().numpy()
        pairs = zip(top.token_ids[rows].tolist(), scores.tolist(), strict=True)
        return [dict(zip(ids, values, strict=True)) for ids, values in pairs]

    def fork(self) -> Logprobs:
        """Those of a text that goes on from here by itself."""
        forked = copy.copy(self)
        forked.tokens = list(self.tokens)
        return forked
