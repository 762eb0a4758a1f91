"""How much to draft: as much as pays on this machine, and never more than may be lost.

A tree of n nodes costs t(rows, context) and what its drafter takes, and is expected to gain 1 + the sum of
its nodes' acceptance probabilities, corrected by what such sums have been worth. Prices and gains are learnt
while decoding, and prices are known before (forward_cost.py). What drafting may lose to plain decoding is
bounded by an account (account.py); when it is used up, the policy sleeps and no drafter is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.policies.account import LossAccount
from hasten.policies.averages import Line, Mean, Trust
from hasten.policies.base import MAX_DRAFT_TOKENS
from hasten.policies.forward_cost import ForwardCost, octave
from hasten.tree import DraftTree

_FIRST_SIZE = 16
"""Nodes a tree is expected to have before any was chosen."""
_SHORTEST_NAP, _LONGEST_NAP = 4, 96
_PLAIN_AFTER = 12
_PLAIN_SHARE = 0.008
"""After so many drafted steps one is plain again, so that its price stays right; later if drafts gain so much
that this would cost more than the share."""
_PRICED_EVERY = 8
_SURE = 0.5
"""Of the tokens that a draft is expected to gain, how many count as if they were gained already."""
_UNKNOWN = 4
"""A pass has at most so many times the rows of the largest that was ever run."""
_SURPRISE = 1.2
"""A pass that much dearer or cheaper than its price has all prices looked up anew."""
_SPIKE = 4.0
"""A pass is charged at most so many times its price: what took longer was not the pass."""
_UPKEEP_SHARE = 0.0075
"""Of a plain step, what a drafter may take to follow a text step by step while it is not asked."""
_COMPILING = 2
"""Calls of a drafter that say nothing of the next: its kernels are being loaded or compiled."""
_UPKEEP_EVERY = 64


class CostPolicy:
    """Maximises expected tokens per second, step by step, of what the account covers.

    Where a pass is as wide as its widest row, all sequences of a batch get trees of at most the same size.
    Where it is not, one budget of rows is given to all, node by node, where another one gains most. What is
    maximised is the harmonic mean of their speeds: the time a token takes, over all sequences alike.

    A tree whose tokens were sampled is never cut: what is cut off would depend on what was drawn, and the law
    of the text with it. How large such trees are made follows what the sizes of earlier ones were worth.
    """

    def __init__(self, cost: ForwardCost | None = None, max_draft_tokens: int = MAX_DRAFT_TOKENS) -> None:
        self.cost = cost or ForwardCost()
        self.account = LossAccount()
        self.is_learning = True
        self._max_draft_tokens = max_draft_tokens
        self._prices = _Prices(max_draft_tokens)
        self._drafting = Line()  # milliseconds a drafted step takes outside its pass, by rows
        self._plain_other = Mean()
        self._upkeep = Mean()
        self._num_drafted = self._num_followed = 0
        self._promised = Mean(1.0)  # tokens a draft is expected to gain
        self._extra_rows = 0.0  # moving average of the rows a sequence's drafter adds to its tree
        self._trust = Trust()
        self._context, self._batch, self._num_others = 0.0, 1, 0
        self._pads_rows = True
        self._usual_size = float(min(_FIRST_SIZE, max_draft_tokens))
        self._size = 0.0  # nodes of a tree, on average where passes are not padded
        self._is_sampled = False
        self._is_asking = False
        self._since_plain = 0
        self._num_resting = 0
        self._nap = self._last_nap = 0
        self._won_ms = 0.0  # since the policy woke up
        self._gain = Mean(1.0)  # tokens per second over that of plain decoding

    def num_prompt_rows(self, num_tokens: int) -> int | None:
        prices = self.cost.of_prompts
        return None if prices is None else prices.num_positions(num_tokens)

    def begin(self, prefill_ms: float, share: float = 1.0) -> None:
        self.account.begin(prefill_ms, share)

    def budget(self, contexts: Sequence[int] = (), num_others: int = 0, *, pads_rows: bool = True) -> int:
        self._num_others, self._pads_rows = num_others, pads_rows
        if contexts:
            self._batch, self._context = len(contexts) + num_others, sum(contexts) / len(contexts)
        self._look_up_prices()
        self._is_asking = self._may_ask()
        self.is_learning = self._is_asking or self._may_learn()
        if not self._is_asking:
            return 0
        room = int(
            np.flatnonzero(self._risks(np.full_like(self._prices.losses, 1 / _SURE)) <= self.account.credit)[
                -1
            ]
        )
        if not pads_rows:
            room = min(room * self._batch, self._max_draft_tokens)  # all of it may go to one sequence
        usual = 2 + self._usual_size if self._is_sampled else 8 + 2 * self._usual_size
        return int(min(room, usual))

    def choose(self, trees: list[DraftTree]) -> list[DraftTree]:
        self._size = 0
        if not self._is_asking:
            return trees
        if self._batch != len(trees) + self._num_others:
            self._batch = len(trees) + self._num_others
            self._look_up_prices()
        self._is_sampled = any(tree.draft_probs is not None for tree in trees)
        sizes = self._best_sizes(trees)
        size = max(sizes)
        is_all = 0 < size == max(map(len, trees))
        self._usual_size += 0.1 * ((2 * size + 2 if is_all else size) - self._usual_size)
        if not self._is_sampled:
            trees = [tree.head(count) for tree, count in zip(trees, sizes, strict=True)]
        lengths = [len(tree) for tree in trees]
        self._size = max(lengths) if self._pads_rows else sum(lengths) / self._batch
        self._trust.promise(sum(float(tree.scores.sum()) for tree in trees))
        return trees

    def observe(
        self,
        num_rows: int,
        forward_ms: float,
        draft_ms: float,
        num_accepted: Sequence[int],
        other_ms: float = 0.0,
    ) -> None:
        batch, plain_ms = len(num_accepted) + self._num_others, self._prices.plain_ms
        price = float(self.cost(np.array([num_rows]), self._context, batch)[0])
        self.cost.observe(num_rows, forward_ms, self._context, batch)
        if not price / _SURPRISE < forward_ms < price * _SURPRISE:
            self._prices.expire()
        if not self._is_asking:
            self._since_plain = 0
            self._plain_other.observe(other_ms)
            if self.is_learning:
                self._num_followed += 1
                if self._num_followed > _COMPILING:
                    self._upkeep.observe(draft_ms)
            self._trust.forget()
            self._drafting.forget()
            self.account.settle(1.0, plain_ms, plain_ms)
            return
        self._since_plain += 1
        # Fewer rows than planned: the model takes chains only.
        extra_rows = max(0.0, num_rows / batch - 1 - self._size)
        self._extra_rows += 0.1 * (extra_rows - self._extra_rows)
        self._num_drafted += 1
        if self._num_drafted > _COMPILING:
            self._drafting.observe(num_rows, draft_ms + other_ms)
        else:
            draft_ms = min(draft_ms, plain_ms)
        self._trust.keep(sum(num_accepted))
        tokens = batch / (self._num_others + sum(1 / (1 + accepted) for accepted in num_accepted))
        spent_ms = min(forward_ms, _SPIKE * price) + draft_ms + other_ms
        self.account.settle(tokens, spent_ms, plain_ms)
        self._won_ms += tokens * plain_ms - spent_ms
        self._gain.observe(tokens * plain_ms / spent_ms)

    def _may_ask(self) -> bool:
        if self._nap:
            self._nap -= 1
            return False
        risks = self._risks(np.full_like(self._prices.losses, self._promised.value))
        least = float(risks[1:].min(initial=np.inf))
        if not self._pads_rows and len(risks) > 1:  # a single node of one sequence
            least = min(least, float(risks[0] + (risks[1] - risks[0]) / self._batch))
        covers = self.account.covers(least, self._prices.plain_ms)
        is_due = self._since_plain >= max(_PLAIN_AFTER, (self._gain.value - 1) / _PLAIN_SHARE)
        if is_due or not self.cost.is_measured(self._context, self._batch):
            return False  # without the price of a plain step every draft would seem cheap
        if not covers and self._since_plain:
            # Longer than the last time, unless something was won in between.
            self._last_nap = 0 if self._won_ms > 0 else self._last_nap
            self._last_nap = min(_LONGEST_NAP, max(_SHORTEST_NAP, 2 * self._last_nap))
            self._nap, self._won_ms = self._last_nap - 1, 0.0
        return covers

    def _may_learn(self) -> bool:
        """Whether drafters follow this plain step at once."""
        self._num_resting += 1
        is_cheap = self._upkeep.value <= _UPKEEP_SHARE * self._prices.plain_ms
        return is_cheap or self._num_resting % _UPKEEP_EVERY == 0

    def _look_up_prices(self) -> None:
        """Only every few steps, as prices change slowly."""
        prices, place = self._prices, (self._batch, octave(self._context))
        if not prices.are_due(place):
            return
        rows = self._batch * (1 + self._extra_rows + np.arange(self._max_draft_tokens + 1))
        passes = self.cost(np.concatenate(([self._batch], rows)), self._context, self._batch)
        prices.plain_ms = float(passes[0]) + self._plain_other.value
        prices.times = passes[1:] + np.maximum(self._drafting(rows), self._plain_other.value)
        prices.losses = prices.times - prices.plain_ms
        prices.losses[rows > _UNKNOWN * self.cost.most_rows] = np.inf

    def _best_sizes(self, trees: Sequence[DraftTree]) -> list[int]:
        """Nodes of each tree, of those the account covers."""
        largest = min(self._max_draft_tokens, max(map(len, trees)))
        gained = np.zeros((len(trees), largest + 1))
        for row, tree in enumerate(trees):
            best_first = tree.scores if tree.draft_probs is None else -np.sort(-tree.scores)
            gained[row, 1 : 1 + len(tree)] = best_first[:largest]
        tokens = 1 + self._trust.share * gained.cumsum(axis=1)
        # Harmonic, not plain sum: what a lucky sequence gains does not repay those that wait for the pass.
        waits = 1 / tokens
        self._promised.observe(float(self._mean_tokens(waits[:, -1].sum())) - 1)
        if self._pads_rows:
            speed = self._speeds(self._mean_tokens(waits.sum(axis=0)), np.arange(largest + 1))
            return [int(np.argmax(speed))] * len(trees)
        # What the next node of each tree saves; never more than the one before, so that heads are chosen.
        saved = np.minimum.accumulate(waits[:, :-1] - waits[:, 1:], axis=1)
        order = np.argsort(-saved, axis=None, kind="stable")
        left = waits[:, 0].sum() - np.concatenate(([0.0], saved.ravel()[order].cumsum()))
        speed = self._speeds(self._mean_tokens(left), np.arange(len(left)) / self._batch)
        chosen = order[: int(np.argmax(speed))]
        sizes: list[int] = np.bincount(chosen // max(largest, 1), minlength=len(trees)).tolist()
        return sizes

    def _mean_tokens(self, waits: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
        """Harmonic mean over all sequences of the pass; others write one token each."""
        found: NDArray[np.float64] = self._batch / (self._num_others + np.asarray(waits))
        return found

    def _speeds(
        self, tokens: NDArray[np.float64], sizes: NDArray[np.signedinteger] | NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Tokens a millisecond with trees of these sizes on average; 0 where that is not covered."""
        grid = np.arange(len(self._prices.times))
        # An unknown price is no number between two known ones.
        losses = np.where(
            np.isinf(self._prices.losses[np.ceil(sizes).astype(np.int64)]),
            np.inf,
            np.interp(sizes, grid, np.nan_to_num(self._prices.losses, posinf=0.0)),
        )
        is_too_dear = losses - self._sure(tokens - 1) > self.account.credit
        is_too_dear[0] = False
        return np.where(is_too_dear, 0.0, tokens / np.interp(sizes, grid, self._prices.times))

    def _risks(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the account has to cover for trees of 0, 1, 2, ... nodes, expected to gain so many tokens."""
        return self._prices.losses[: len(expected)] - self._sure(expected)

    def _sure(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of what is expected to be gained, what counts as if it were: half, up to a plain step.

        That much the account may be overdrawn, once.
        """
        return np.minimum(_SURE * expected, 1.0) * self._prices.plain_ms


class _Prices:
    """Of steps here: one that is plain, and those with trees of 0, 1, 2, ... nodes."""

    def __init__(self, max_draft_tokens: int) -> None:
        self.plain_ms = 0.0
        self.times: NDArray[np.float64] = np.zeros(max_draft_tokens + 1)
        self.losses: NDArray[np.float64] = np.zeros(max_draft_tokens + 1)
        self._num_left = 0
        self._place: tuple[int, int] | None = None

    def expire(self) -> None:
        self._num_left = 0

    def are_due(self, place: tuple[int, int]) -> bool:
        self._num_left -= 1
        if self._num_left >= 0 and place == self._place:
            return False
        self._num_left, self._place = _PRICED_EVERY, place
        return True
