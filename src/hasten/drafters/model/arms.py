"""Which of several ways to draft writes fastest here, resting among them: tried, measured, and tried
again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.drafters.trees.growing import TreeShape
    from hasten.models.draft.draft_lm import DraftLM

_SHARE = 0.1  # of the newest pass in the moving average


@dataclass(eq=False)
class Arm:
    """One way to draft: a model (or one of its exits) and a tree shape."""

    draft: DraftLM
    shape: TreeShape
    pass_ms: float | None = None
    """moving average of what one of its passes takes, drawing from its laws included"""

    def took(self, pass_ms: float) -> None:
        before = pass_ms if self.pass_ms is None else self.pass_ms
        self.pass_ms = before + _SHARE * (pass_ms - before)


@dataclass
class _Pace:
    """Milliseconds a token took in the last rounds, drafting and verifying."""

    num_rounds: int = 0
    last_round: int = 0
    rounds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=32))

    def add(self, milliseconds: float, num_tokens: float) -> None:
        self.num_rounds += 1
        if self.num_rounds > 1:  # the first one compiles and allocates
            self.rounds.append((milliseconds, num_tokens))

    @property
    def ms_per_token(self) -> float:
        spent, gained = map(sum, zip(*self.rounds, strict=True)) if self.rounds else (0.0, 1)
        return spent / gained


class Arms:
    """Chooses an arm for every round, or none: the others of a union, or plain decoding, write faster then.

    Each is tried for a few rounds; then the one whose tokens took the least time is used, and now and then
    the one that was used the longest ago. A single arm that never rests is always used.

    Args:
        arms: at least one.
        may_rest: whether drafting nothing is one of the choices.
    """

    _TRIAL_ROUNDS = 6
    _EXPLORE_EVERY = 64

    def __init__(self, arms: list[Arm], *, may_rest: bool) -> None:
        choices: list[Arm | None] = [*arms]
        if may_rest:
            choices.append(None)
        self._paces = {choice: _Pace() for choice in choices}
        self._num_rounds = 0
        self._explored: Arm | None = arms[0]

    def choose(self) -> Arm | None:
        self._num_rounds += 1
        for choice, pace in self._paces.items():
            if pace.num_rounds < self._TRIAL_ROUNDS:
                return choice
        place = self._num_rounds % self._EXPLORE_EVERY
        if not place:
            self._explored = min(self._paces, key=lambda choice: self._paces[choice].last_round)
        if self._num_rounds >= self._EXPLORE_EVERY and place < self._TRIAL_ROUNDS:
            return self._explored
        return min(self._paces, key=lambda choice: self._paces[choice].ms_per_token)

    def add(self, choice: Arm | None, milliseconds: float, num_tokens: float) -> None:
        """What a round of this choice took, and how many tokens a sequence gained in it on average."""
        pace = self._paces[choice]
        pace.last_round = self._num_rounds
        pace.add(milliseconds, num_tokens)

    def token_price(self, arm: Arm) -> float:
        """Tokens that the fastest choice writes in the time of a pass of the arm; 0 if nothing is known."""
        known = [pace.ms_per_token for pace in self._paces.values() if pace.rounds]
        return arm.pass_ms / min(known) if known and arm.pass_ms is not None else 0.0
