"""SpecDec++ (arXiv 2405.19715): a chain that ends when a rejection in it has become likely.

A trained head reads the draft's hidden state at each token and says how likely the target accepts it. The
chain ends when the chance that some token of it is rejected exceeds a threshold; with known chances and a
fixed price of a pass, that is the best rule. A token is proposed before its own hidden state is read, so what
is proposed does not depend on the token itself, and sampled texts keep their law.

Without a head, ``Chain(confidence=...)`` is the same rule on the draft's own probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

SYSTEM = System(
    name="specdec++",
    title="SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths",
    arxiv="2405.19715",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.specdec",
    summary="a chain that ends when a trained head expects a rejection in it",
)


class SpecDec:
    """Chains that a head ends.

    Args:
        chance: hidden state [hidden] of the draft at a token -> the chance that the target accepts the token,
            given all before (``AcceptanceHead.chance``).
        threshold: the chain ends when a rejection is likelier than this.
        min_length, max_length: of a chain, whatever the head says.

    Raises ConfigError for a value that cannot work, and in use where the draft's hidden states are not given.
    """

    reads_hidden = True

    def __init__(
        self,
        chance: Callable[[torch.Tensor], float],
        threshold: float = 0.7,
        min_length: int = 2,
        max_length: int = 20,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold={threshold} cannot work; it must be between 0 and 1")
        if not 1 <= min_length <= max_length:
            raise ConfigError(
                f"min_length={min_length} and max_length={max_length} cannot work; choose 1 <= min <= max"
            )
        self._chance = chance
        self._threshold = threshold
        self._min_length = min_length
        self._max_length = max_length

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        if tree.hidden_of is None:
            raise ConfigError("an acceptance head reads the draft's hidden states, which are not given here")
        node = ROOT
        all_accepted = 1.0
        longest = min(self._max_length, tree.room, tree.max_depth)
        for length in range(1, 1 + longest):
            added = tree.extend(node, 1)
            if not added:
                return
            if node != ROOT:
                all_accepted *= self._chance(tree.hidden_of(node))
            is_risky = 1 - all_accepted > self._threshold
            if (is_risky and length >= self._min_length) or length == longest:
                return
            yield added
            [node] = added

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        """The head was trained before."""
