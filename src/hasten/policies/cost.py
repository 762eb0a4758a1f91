"""How much to draft: as much as pays on this machine, measured while decoding.

A tree of n nodes costs t(rows) and is expected to gain 1 + the sum of its nodes' acceptance probabilities.
Both sides of that bargain are learnt online; where nothing pays, the policy drafts nothing and, after a
while, stops asking the drafter at all.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.policies.base import MAX_DRAFT_TOKENS
from hasten.tree import DraftTree


class ForwardCost:
    """t(rows): milliseconds of a pass, interpolated between the medians of the row counts that were run."""

    _ROW_SHARE = 0.02  # what one more row is believed to add to a pass of one row until it was measured
    _MEMORY = 9

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._knots: dict[int, tuple[float, float]] = {}  # mean rows, median milliseconds

    def observe(self, num_rows: int, milliseconds: float) -> None:
        knot = round(4 * math.log2(num_rows))
        samples = self._samples.setdefault(knot, deque(maxlen=self._MEMORY))
        samples.append((num_rows, milliseconds))
        rows, times = zip(*samples, strict=True)
        self._knots[knot] = (sum(rows) / len(rows), statistics.median(times))

    @property
    def is_known(self) -> bool:
        return bool(self._knots)

    def __call__(self, num_rows: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
        """float64, one a row count; never falls as rows are added."""
        if not self._knots:
            return self._prior(num_rows)
        rows, times = np.array([self._knots[knot] for knot in sorted(self._knots)]).T
        times = np.minimum.accumulate(times[::-1])[::-1]  # more rows were faster: the slow sample was noise
        inside = np.interp(num_rows, rows, times)
        below = times[0] * self._prior(num_rows) / self._prior(rows[0])
        above = times[-1] * self._prior(num_rows) / self._prior(rows[-1])
        outside = np.where(num_rows > rows[-1], above, inside)
        return np.asarray(np.where(num_rows < rows[0], below, outside), np.float64)

    def _prior(self, num_rows: NDArray[np.generic]) -> NDArray[np.float64]:
        share: NDArray[np.float64] = 1 + self._ROW_SHARE * np.asarray(num_rows, np.float64)
        return share


class CostPolicy:
    """Maximises expected tokens per second, step by step.

    All sequences of a batch get trees of at most the same size, because a pass is as wide as its widest row.
    What is maximised is the harmonic mean of their speeds: the time a token takes, over all sequences alike.
    When drafting has not paid for a while it sleeps, for longer and longer, and wakes up to look again.

    A tree whose tokens were sampled is never cut: what is cut off would depend on what was drawn, and the law
    of the text with it. How large such trees are made follows what the sizes of earlier ones were worth.
    """

    _AWAKE_STEPS = 12
    _MAX_NAP = 96
    _LOOKUP_EVERY = 4

    def __init__(self, cost: ForwardCost | None = None, max_draft_tokens: int = MAX_DRAFT_TOKENS) -> None:
        self.cost = cost or ForwardCost()
        self._max_draft_tokens = max_draft_tokens
        self._overhead_ms = 0.0  # moving average of a drafting step's time outside the forward pass
        self._plain_overhead_ms = 0.0
        self._usual_size = float(max_draft_tokens)
        self._is_sampled = False
        self._gain = 1.5  # moving average of tokens per second over that of plain decoding
        self._num_awake = 0
        # A plain step first where none is known: without its price every draft would seem cheap.
        self._num_asleep = 0 if self.cost.is_known else 1
        self._is_drafting = True
        self._nap = 0
        self._lookups = 0
        self._num_planned = 1
        self._extra_rows = 0.0  # moving average of the rows a sequence's drafter adds to its tree
        self._priced_batch = 0
        self._plain_price = 0.0
        self._prices: NDArray[np.float64] = np.empty(0)

    def budget(self) -> int:
        if self._num_asleep:
            return 0
        if self._is_sampled:
            return int(min(self._max_draft_tokens, 2 + self._usual_size))
        return int(min(self._max_draft_tokens, 8 + 2 * self._usual_size))

    def choose(self, trees: list[DraftTree]) -> list[DraftTree]:
        self._is_drafting = not self._num_asleep
        self._num_planned = 1
        if self._num_asleep:
            self._num_asleep -= 1
            return trees
        self._is_sampled = any(tree.draft_probs is not None for tree in trees)
        size, gain = self._best_size(trees)
        self._usual_size += 0.1 * (size - self._usual_size)
        self._gain += 0.15 * (gain - self._gain)
        self._num_awake += 1
        if self._gain >= 1:
            self._nap = 0
        elif self._num_awake >= self._AWAKE_STEPS:
            self._nap = min(self._MAX_NAP, max(8, 2 * self._nap))
            self._num_asleep, self._num_awake, self._gain = self._nap, 0, 1.0
        if self._is_sampled:
            self._num_planned += max(map(len, trees))
            return trees
        self._num_planned += min(size, max(map(len, trees)))
        return [tree.head(size) for tree in trees]

    def observe(
        self, num_rows: int, forward_ms: float, overhead_ms: float, num_accepted: Sequence[int]
    ) -> None:
        self.cost.observe(num_rows, forward_ms)
        if self._is_drafting:
            self._overhead_ms += 0.1 * (overhead_ms - self._overhead_ms)
            # Fewer rows than planned: the model takes chains only.
            extra_rows = max(0.0, num_rows / len(num_accepted) - self._num_planned)
            self._extra_rows += 0.1 * (extra_rows - self._extra_rows)
        else:
            self._plain_overhead_ms += 0.1 * (overhead_ms - self._plain_overhead_ms)

    def _pass_times(self, batch: int) -> tuple[float, NDArray[np.float64]]:
        """t of a plain step, and for trees of 0, 1, 2, ... nodes with the drafter's own rows.

        Looked up anew every few steps, as they change slowly.
        """
        self._lookups -= 1
        if self._lookups < 0 or self._priced_batch != batch:
            self._lookups, self._priced_batch = self._LOOKUP_EVERY, batch
            rows = 1 + self._extra_rows + np.arange(self._max_draft_tokens + 1)
            times = self.cost(batch * np.concatenate(([1.0], rows)))
            self._plain_price, self._prices = float(times[0]), times[1:]
        return self._plain_price, self._prices

    def _best_size(self, trees: Sequence[DraftTree]) -> tuple[int, float]:
        """(nodes a tree, expected speed over plain decoding)."""
        largest = min(self._max_draft_tokens, max(map(len, trees)))
        gained = np.zeros((len(trees), largest + 1))
        gained[:, 0] = 1
        for row, tree in enumerate(trees):
            best_first = tree.scores if tree.draft_probs is None else -np.sort(-tree.scores)
            gained[row, 1 : 1 + len(tree)] = best_first[:largest]
        # Harmonic, not plain sum: what a lucky sequence gains does not repay those that wait for the pass.
        tokens = len(trees) ** 2 / (1 / gained.cumsum(axis=1)).sum(axis=0)
        plain_pass, passes = self._pass_times(len(trees))
        passes = passes[: largest + 1]
        speeds = tokens / (passes + self._overhead_ms)
        size = int(np.argmax(speeds))
        plain = len(trees) / (plain_pass + min(self._plain_overhead_ms, self._overhead_ms))
        return size, float(speeds[size] / plain)
