"""What a policy is: decides how much to draft, and learns from what that cost and gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hasten.errors import ConfigError
from hasten.tree import DraftTree
from hasten.values import whole

MAX_DRAFT_TOKENS = 64


class DraftPolicy(Protocol):
    """Decides the size of every tree."""

    def num_prompt_rows(self, num_tokens: int) -> int | None:
        """How many positions of prompts of so many tokens, together, drafters may see candidates of.

        None: all of them.
        """
        ...

    def begin(self, prefill_ms: float, share: float = 1.0) -> None:
        """Texts begin; caching their prompts took that long.

        share: of the texts that are now written side by side, how many are these.
        """
        ...

    def budget(self, contexts: Sequence[int] = (), num_others: int = 0, *, pads_rows: bool = True) -> int:
        """How many nodes a sequence's drafter should propose now; 0: do not ask it.

        contexts: how many tokens each sequence of this policy has.
        num_others: sequences in the same pass that another policy decides for.
        pads_rows: whether the pass is as wide as its widest row; else it has the rows that are asked for.
        """
        ...

    @property
    def is_learning(self) -> bool:
        """Whether drafters are to be told of this step at once; they hear of others before they are asked."""
        ...

    def choose(self, trees: list[DraftTree]) -> list[DraftTree]:
        """The part of each tree that is worth its rows. Nodes come best first."""
        ...

    def observe(
        self,
        num_rows: int,
        forward_ms: float,
        draft_ms: float,
        num_accepted: Sequence[int],
        other_ms: float = 0.0,
    ) -> None:
        """What the step cost, and how many draft tokens of each sequence of this policy were accepted.

        ``num_rows`` counts rows of the whole pass, with padding that is computed and rows a drafter added.
        ``draft_ms`` is what the drafter took, to propose and to learn; ``other_ms`` is the rest of the step.
        """
        ...


class FixedPolicy:
    """Always the same number of draft tokens; 0 is plain decoding."""

    is_learning = True

    def __init__(self, num_draft_tokens: int) -> None:
        num_draft_tokens = whole(num_draft_tokens, "num_draft_tokens", "a whole number, 0 to 4096")
        if not 0 <= num_draft_tokens <= 4096:
            raise ConfigError(f"num_draft_tokens={num_draft_tokens} cannot work; choose 0 to 4096")
        self._num_draft_tokens = num_draft_tokens

    def num_prompt_rows(self, num_tokens: int) -> int | None:
        return None

    def begin(self, prefill_ms: float, share: float = 1.0) -> None:
        """A fixed size spends what it spends."""

    def budget(self, contexts: Sequence[int] = (), num_others: int = 0, *, pads_rows: bool = True) -> int:
        return self._num_draft_tokens

    def choose(self, trees: list[DraftTree]) -> list[DraftTree]:
        return [tree.head(self._num_draft_tokens) for tree in trees]

    def observe(
        self,
        num_rows: int,
        forward_ms: float,
        draft_ms: float,
        num_accepted: Sequence[int],
        other_ms: float = 0.0,
    ) -> None:
        """A fixed size learns nothing."""
