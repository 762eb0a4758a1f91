"""A row's cache cut down to a budget, so that a pass of the same model over it reads little of a long text.

Source: TokenSwift (arXiv 2502.18890), after TriForce (arXiv 2404.11912). Kept are the first tokens, which
attention uses as a sink, and for every KV head the tokens that the last query scores highest; what is written
later is appended whole. Keys carry their rotary position already, so a kept token stays where it was in the
text. The logits are an approximation, good for drafts. Knows nothing of drafters and of batches: one text a
cache, made from and topped up with copies out of a session's full cache.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from hasten.models.forwards.forward import Forward
from hasten.models.sessions.attention import AttentionKinds, additive_mask
from hasten.models.sessions.session import CopiesRows, RowCache
from hasten.models.sessions.slot_cache import SlotCache

Ranking = Literal["query", "recency"]


def why_not_partial(forward: Forward, session: object) -> str:
    """Why passes over a partial cache of this session cannot be had; empty if they can."""
    if not isinstance(session, CopiesRows):
        return f"{type(session).__name__} keeps no cache that could be copied token by token"
    if getattr(forward.config, "is_encoder_decoder", False):
        return "the model attends to a source as well"
    if any(AttentionKinds.of(forward.text_config).sizes.values()):
        return "some layers see only a window of the text"
    return ""


class PartialCache:
    """The kept part of one text, and passes over it.

    Args:
        forward: the model.
        full: the text's whole cache: all its tokens but the last.
        last_token_id: the last token, whose query chooses.
        budget: how many tokens are kept; at least as many as ``full`` holds keeps all.
        num_sink: first tokens that are always kept.
    """

    def __init__(
        self, forward: Forward, full: RowCache, last_token_id: int, *, budget: int, num_sink: int = 16
    ) -> None:
        self._forward = forward
        self.num_tokens = self.num_selected_from = len(full.positions)
        """tokens of the text this cache stands for, now and when it was selected"""
        self._num_scratch = 0
        self._cache = SlotCache()
        weights: list[torch.Tensor | None] = []
        if budget < self.num_tokens:
            whole = SlotCache()
            whole.reserve(self.num_tokens + 1)
            _append(whole, full)
            weights = forward.attention_weights(*self._pass_over(last_token_id, whole.width), whole)
        self.ranking: Ranking = "query"
        self.kept: list[torch.Tensor | None] = []
        """positions that each layer keeps, [kv heads, kept]; None for an unused layer"""
        for index, pair in enumerate(full.layers):
            if pair is None:
                self.kept.append(None)
                continue
            keys, values = pair
            of_layer = weights[index] if index < len(weights) else None
            scores = None if of_layer is None else query_scores(of_layer, *keys.shape[:2])
            if scores is None:
                if budget < self.num_tokens:
                    self.ranking = "recency"  # said by the attribute; drafts only get worse
                scores = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[0], -1)
            chosen = top_positions(scores, budget, num_sink)
            self.kept.append(chosen)
            self._cache.update(_gather(keys, chosen)[None], _gather(values, chosen)[None], index)

    @property
    def num_written(self) -> int:
        """Tokens of the text that came after the selection."""
        return self.num_tokens - self.num_selected_from

    def append(self, tail: RowCache) -> None:
        """Take over what the full cache gained: its tokens from position ``num_tokens`` on."""
        _append(self._cache, tail)
        self.num_tokens += len(tail.positions)

    def step(self, token_id: int) -> torch.Tensor:
        """Logits [vocab] after one more token, which stays in sight until ``forget``."""
        logits = self._forward(*self._pass_over(token_id, self.num_slots), self._cache)
        self._num_scratch += 1
        return logits[0, -1]

    def forget(self) -> None:
        """Drop the tokens of all steps."""
        self._cache.truncate(self.num_slots - self._num_scratch)
        self._num_scratch = 0

    @property
    def num_slots(self) -> int:
        """Cached tokens a pass reads, those of steps included."""
        return self._cache.width

    def _pass_over(self, token_id: int, num_slots: int) -> tuple[Any, Any, torch.Tensor]:
        """The tokens, positions and mask of a pass over the token that comes next, behind so many slots."""
        mask = additive_mask(
            np.ones((1, 1, num_slots + 1), np.bool_), self._forward.dtype, self._forward.device
        )
        position = self.num_tokens + self._num_scratch
        return np.array([[token_id]]), np.array([[position]]), mask


def query_scores(weights: torch.Tensor, kv_heads: int, num_tokens: int) -> torch.Tensor | None:
    """Scores [kv heads, tokens] from one query's attention weights [1, heads, 1, tokens + 1].

    The logarithm of a weight is the query's product with the key, less a constant of its head: so summed over
    the heads of a group it ranks as the products do. None for weights of another shape.
    """
    if weights.dim() != 4 or weights.shape[0] != 1 or weights.shape[1] % kv_heads:
        return None
    if weights.shape[2:] != (1, num_tokens + 1):
        return None
    log_weights = weights[0, :, 0, :-1].to(torch.promote_types(weights.dtype, torch.float32)).log()
    return log_weights.reshape(kv_heads, -1, num_tokens).sum(1)


def top_positions(scores: torch.Tensor, budget: int, num_sink: int) -> torch.Tensor:
    """Positions [kv heads, min(budget, tokens)] in rising order: the sink, and the best of the rest.

    scores: [kv heads, tokens]. Among equals the latest come first.
    """
    num_tokens = scores.shape[1]
    num_sink = min(num_sink, budget, num_tokens)
    sink = torch.arange(num_sink, device=scores.device).expand(scores.shape[0], -1)
    count = min(budget, num_tokens) - num_sink
    latest_first = torch.argsort(scores[:, num_sink:].flip(1), dim=1, descending=True, stable=True)[:, :count]
    return torch.cat((sink, (num_tokens - 1 - latest_first).sort(1).values), 1)


def _append(cache: SlotCache, tokens: RowCache) -> None:
    for index, pair in enumerate(tokens.layers):
        if pair is not None:
            cache.update(pair[0][None], pair[1][None], index)


def _gather(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[kv heads, tokens, channels] at positions [kv heads, kept]."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[2]))
