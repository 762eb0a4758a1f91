"""How often each rule accepts one of k candidates, and how often any rule could: pure functions of two laws.

p is the target's law, q the draft's, both float64 [vocab] with sum 1; k counts the candidates below one node.
What is returned is the probability that one of them is accepted, on average over the candidates.

Exact: everything with replacement, ``point_mass``, and without replacement where all orders of draws can be
listed (``MAX_ORDERS``, orders times tokens). Beyond that ``naive`` and ``recursive`` are means over
``NUM_SAMPLES`` seeded draws, of which the last is never sampled. ``transport_bound`` is not sampled at all,
but without replacement it looks at fewer sets of a large vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError
from hasten.laws import Law, draw
from hasten.verify.k_sequential import accepted_by, best_rho

MAX_ORDERS = 1_000_000
MAX_SUBSETS = 1 << 12
NUM_SAMPLES = 200
SEED = 0

_LOG_STEP = 0.25
_LOG_TIMES = np.arange(-12.0, 70.0, _LOG_STEP)


def single(p: Law, q: Law) -> float:
    """One draw, accepted with min(1, p/q) (arXiv 2211.17192): sum min(p, q), which no rule exceeds."""
    return float(np.minimum(p, q).sum())


def naive(p: Law, q: Law, k: int, *, distinct: bool) -> float:
    """A draw from the target that is one of k draws: sum p(x) P(x is drawn)."""
    if not distinct:
        return float((p * (1 - (1 - q) ** k)).sum())
    tokens = np.flatnonzero(q)
    k = min(k, len(tokens))
    if _size_of_all_orders(len(tokens), k - 1) <= MAX_ORDERS:
        draws, weights = _all_orders(q, k - 1)
        return float(
            sum(weight * _drawn_mass(p, q, some) for some, weight in zip(draws, weights, strict=True))
        )
    generator = np.random.default_rng(SEED)
    found = [_drawn_mass(p, q, _race(q, tokens, k - 1, generator)) for _ in range(NUM_SAMPLES)]
    return float(np.mean(found))


def point_mass(p: Law, q: Law, k: int) -> float:
    """The target's mass on the k likeliest tokens of the draft; no rule exceeds it for these candidates."""
    return float(p[np.argsort(-q, kind="stable")[:k]].sum())


def recursive(p: Law, q: Law, k: int, *, distinct: bool) -> float:
    """k draws tried one after another, each against what is left of the target's law.

    With replacement 1 - prod (1 - sum min(p_j, q)). Without, p_j and q_j depend on the draws before: with
    f_j(x) = max(0, q_j - p_j), the mass of a draw x that is rejected, the same product over all its orders.
    """
    if distinct:
        return 1.0 - _rejected(p, q, min(k, int(np.count_nonzero(q))))
    rejected = 1.0
    for _ in range(k):
        rest = np.maximum(p - q, 0.0)
        if not rest.any():
            return 1.0
        rejected *= 1.0 - single(p, q)
        p = rest / rest.sum()
    return 1.0 - rejected


def k_sequential(p: Law, q: Law, k: int) -> float:
    """SpecTr's rule with the best rho, with replacement; at least 1 - (1 - 1/k)^k of ``transport_bound``."""
    return accepted_by(p, q, k, best_rho(p, q, k))


def transport_bound(p: Law, q: Law, k: int, *, distinct: bool = False) -> float:
    """What no exact rule exceeds: the least of p(H) + 1 - P(all candidates are in H) over sets H of tokens.

    With replacement that probability is q(H)^k, which makes the expression concave in (p(H), q(H)). So the
    least is at a corner of what such pairs can be, and these are the sets of the tokens of least p/q.
    Without, all sets are tried where vocabulary and orders are few. Elsewhere the same corners are, which
    gives no less than the bound; it was the bound itself in every small case that was compared.
    """
    order = np.argsort(np.divide(p, q, out=np.full(len(p), np.inf), where=q > 0), kind="stable")
    outside = np.concatenate(([0.0], p[order].cumsum()))
    if not distinct:
        inside = np.concatenate(([0.0], q[order].cumsum())).clip(max=1.0) ** k
        return float((outside + 1 - inside).min())
    size = int(np.count_nonzero(q))
    k = min(k, size)
    if 1 << min(len(p), 62) <= MAX_SUBSETS and _size_of_all_orders(size, k) <= MAX_ORDERS:
        return _least_over_all_sets(p, *_all_orders(q, k))
    inside = all_drawn_inside(q[order], k)
    return float((outside + 1 - inside).min())


def all_drawn_inside(q: Law, k: int) -> Law:
    """float64 [vocab + 1]: the probability that k draws without replacement are all among the first n tokens.

    Draws without replacement are the first arrivals where every token arrives at its own rate q. So it is the
    probability that k of the n tokens arrive before any other, an integral over that other's time. k is at
    most the number of tokens that can be drawn; those of less than about 1e-25 count as if they could not.
    """
    others = np.concatenate((q[::-1].cumsum()[::-1][1:], [0.0]))
    inside: Law = _arrive_first(q, others, np.exp(_LOG_TIMES), _LOG_STEP, k)
    return inside


@numba.njit(cache=True)
def _arrive_first(q, others, times, log_step, k):  # type: ignore[no-untyped-def]
    inside = np.zeros(len(q) + 1)
    counts = np.zeros((len(times), k))  # P(j of the tokens have arrived), by time and j < k
    counts[:, 0] = 1.0
    for token in range(len(q)):
        total = 0.0
        for at, time in enumerate(times):
            absent = np.exp(-q[token] * time)
            for j in range(k - 1, 0, -1):
                counts[at, j] = counts[at, j] * absent + counts[at, j - 1] * (1.0 - absent)
            counts[at, 0] *= absent
            rate = others[token] * time
            total += rate * np.exp(-rate) * (1.0 - counts[at].sum())
        inside[token + 1] = total * log_step if others[token] > 0.0 else 1.0
    return inside


ACCEPTANCES: dict[str, Callable[[Law, Law, int], float]] = {
    "single": lambda p, q, k: single(p, q),
    "naive": lambda p, q, k: naive(p, q, k, distinct=True),
    "naive-independent": lambda p, q, k: naive(p, q, k, distinct=False),
    "point-mass": point_mass,
    "residual": lambda p, q, k: recursive(p, q, k, distinct=True),
    "residual-independent": lambda p, q, k: recursive(p, q, k, distinct=False),
    "k-sequential": k_sequential,
}
"""rule -> acceptance(p, q, k), by the names of VERIFIERS and of what they are compared with"""


def acceptance(rule: str, p: Law, q: Law, k: int) -> float:
    """The probability that one of k candidates is accepted.

    Raises ConfigError for an unknown rule or k < 1.
    """
    if rule not in ACCEPTANCES:
        raise ConfigError(f"rule={rule!r} has no closed form here; choose {', '.join(ACCEPTANCES)}")
    if k < 1:
        raise ConfigError(f"k={k} cannot work; it must be at least 1")
    return ACCEPTANCES[rule](p, q, k)


def _rejected(p: Law, q: Law, k: int) -> float:
    """The probability that all k draws without replacement are rejected."""
    if _size_of_all_orders(int(np.count_nonzero(q)), k - 1) <= MAX_ORDERS:
        return _rejected_in_all_orders(p, q, k)
    generator = np.random.default_rng(SEED)
    return float(np.mean([_rejected_in_one_order(p, q, k, generator) for _ in range(NUM_SAMPLES)]))


def _rejected_in_all_orders(p: Law, q: Law, k: int) -> float:
    if k == 0:
        return 1.0
    rejections, rest = np.maximum(q - p, 0.0), _rest(p, q)
    if k == 1 or not rejections.any():
        return float(rejections.sum())
    tokens = np.flatnonzero(rejections)
    return sum(
        float(rejections[token]) * _rejected_in_all_orders(rest, _without(q, int(token)), k - 1)
        for token in tokens
    )


def _rejected_in_one_order(p: Law, q: Law, k: int, generator: np.random.Generator) -> float:
    """As above, for draws that are each taken from the law of a rejected one."""
    chance = 1.0
    for left in range(k, 0, -1):
        rejections = np.maximum(q - p, 0.0)
        chance *= float(rejections.sum())
        if left == 1 or chance == 0:
            break
        p, q = _rest(p, q), _without(q, draw(rejections, generator))
    return chance


def _rest(p: Law, q: Law) -> Law:
    rest = np.maximum(p - q, 0.0)
    return rest / rest.sum() if rest.any() else p


def _without(q: Law, token: int | NDArray[np.int64]) -> Law:
    left = q.copy()
    left[token] = 0.0  # one token or several
    total = left.sum()
    return left / total if total > 0 else left


def _size_of_all_orders(size: int, k: int) -> float:
    """How many numbers it takes to list all orders of k draws from that many tokens."""
    return float(size * np.prod(np.arange(size, size - k, -1.0)))


def _all_orders(q: Law, k: int) -> tuple[NDArray[np.int64], Law]:
    """(int [orders, k] of draws without replacement, float64 [orders] their probabilities)."""
    tokens = np.flatnonzero(q)
    orders = list(itertools.permutations(range(len(tokens)), k))
    places = np.array(orders, np.int64).reshape(len(orders), k)
    probs = np.ones(len(places))
    left = np.ones((len(places), len(tokens)), np.bool_)
    rows = np.arange(len(places))
    for place in places.T:
        # Summed anew, as 1 minus what was drawn has lost the digits of a likely first draw.
        probs *= q[tokens[place]] / (left @ q[tokens])
        left[rows, place] = False
    return tokens[places], probs


def _drawn_mass(p: Law, q: Law, draws: NDArray[np.int64]) -> float:
    """The target's mass on these draws and, on average, one more."""
    left = _without(q, draws)
    return float(p[draws].sum() + p @ left)


def _race(q: Law, tokens: NDArray[np.int64], k: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """k draws without replacement: the first arrivals, each token's at its own rate. Not in order."""
    times = generator.standard_exponential(len(tokens)) / q[tokens]
    return tokens[np.argpartition(times, k)[:k]]


def _least_over_all_sets(p: Law, draws: NDArray[np.int64], weights: Law) -> float:
    size = len(p)
    held = np.bincount((1 << draws).sum(axis=1), weights, minlength=1 << size)
    sets = np.arange(1 << size)
    outside = np.zeros(1 << size)
    for token in range(size):
        has_token = (sets >> token & 1).astype(bool)
        held[has_token] += held[sets[has_token] ^ 1 << token]  # of all subsets, one token after another
        outside[has_token] += p[token]
    return float((outside + 1 - held).min())
