"""What drafting may still lose: an account that bounds the time of a text by that of plain decoding.

Plain decoding of the same tokens is the measure. Every step pays in the time its tokens would have taken
plainly, less the time it took, and a small share of the plain time besides, for looking whether drafting
pays. A step is drafted only if the account covers what it may lose. So whatever drafters promise, texts take
at most 1 + SHARE times as long as plainly, and once what a pass cost more than its price.
"""

from __future__ import annotations

SHARE = 0.015
"""Of the time of plain decoding, what trying may cost."""
PROMPT_SHARE = 0.005
"""The same of the time that prompts take; what is learnt from their rows is paid from a budget of its own."""
_FIRST = 0.25
_CARRIED = 0.5
_MOST = 8.0
_DEBT = 16.0
"""In plain steps: what there is at first, what is kept from text to text, the most, the largest debt."""


class LossAccount:
    """In milliseconds. ``plain_ms`` is always what a plain step takes now."""

    def __init__(self) -> None:
        self.credit = 0.0
        self._begun: tuple[float, float] | None = None
        self._is_new = True

    def begin(self, prompt_ms: float, share: float = 1.0) -> None:
        """Texts begin, whose prompts took that long to read; of those that are written they are a share."""
        self._begun = prompt_ms, share

    def covers(self, loss_ms: float, plain_ms: float) -> bool:
        """Whether a step may lose that much."""
        if self._is_new:
            self._is_new = False
            self.credit += _FIRST * plain_ms
        if self._begun is not None:
            prompt_ms, share = self._begun
            carried = min(self.credit, _CARRIED * plain_ms)
            self.credit = share * carried + (1 - share) * self.credit + PROMPT_SHARE * prompt_ms
            self._begun = None
        return loss_ms <= self.credit

    def settle(self, num_tokens: float, spent_ms: float, plain_ms: float) -> None:
        """A step wrote that many tokens a sequence and took that long."""
        self.credit += num_tokens * plain_ms * (1 + SHARE) - spent_ms
        self.credit = min(max(self.credit, -_DEBT * plain_ms), _MOST * plain_ms)
