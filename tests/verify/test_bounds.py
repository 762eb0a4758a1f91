"""Closed forms of acceptance against the rules themselves, their order, and the bound no rule exceeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from forks import Forks
from sampled_trees import Laws, chains, grown, one_round, patch_draw, rule_of

from hasten.errors import ConfigError
from hasten.verify import bounds
from hasten.verify.bounds import ACCEPTANCES, acceptance, recursive, transport_bound
from hasten.verify.k_sequential import accepted_by, after_rejections, best_rho

PROPOSED = {
    "single": ("residual", "iid"),
    "naive": ("naive", "distinct"),
    "naive-independent": ("naive", "iid"),
    "point-mass": ("point-mass", "chosen"),
    "residual": ("residual", "distinct"),
    "residual-independent": ("residual", "iid"),
    "k-sequential": ("k-sequential", "iid"),
}
"""closed form -> the rule, and how its candidates come about"""


@pytest.fixture
def forks(monkeypatch):
    forks = Forks()
    patch_draw(monkeypatch, forks)
    return forks


def pairs(count, seed=0, sizes=(3, 4, 5)):
    """(p, q, k), also with sharp laws and with tokens that one of them never gives."""
    rng = np.random.default_rng(seed)
    for at in range(count):
        size = int(rng.choice(sizes))
        p, q = (rng.dirichlet(np.full(size, rng.choice([0.3, 1.0, 3.0]))) for _ in range(2))
        if at % 5 == 0:
            p[rng.integers(size)] = 0.0
            q[rng.integers(size)] = 0.0
        yield p / p.sum(), q / q.sum(), int(rng.integers(2, 4))


def least_over_all_sets(p, q, k, distinct):
    """The bound by its definition."""
    chances = {}
    for draws in itertools.product(range(len(q)), repeat=k):
        chance, left = 1.0, q.copy()
        for token in draws:
            chance *= left[token] / left.sum() if left.sum() else 0.0
            left[token] *= not distinct
        chances[draws] = chance
    values = []
    for held in itertools.product([False, True], repeat=len(q)):
        inside = sum(chance for draws, chance in chances.items() if all(held[token] for token in draws))
        values.append(p[list(held)].sum() + 1 - inside)
    return min(values)


@pytest.mark.parametrize("name", PROPOSED)
def test_closed_forms_are_how_often_the_rules_accept(forks, name):
    assert {*PROPOSED} == {*ACCEPTANCES}
    rule, kind = PROPOSED[name]
    for p, q, count in pairs(20):
        k = 1 if name == "single" else count
        target, draft = (Laws(len(p), 0, lambda at, law=law: law) for law in (p, q))
        _, accepted = one_round(
            forks,
            rule_of(rule),
            target,
            lambda draft=draft, k=k: grown(draft, (0,), kind, (k,), forks.choose),
        )
        assert acceptance(name, p, q, k) == pytest.approx(accepted, abs=1e-12)


def test_no_rule_accepts_more_than_the_bound_and_the_rules_are_ordered():
    slack = 1e-12
    for p, q, k in pairs(300, seed=1):
        found = {name: acceptance(name, p, q, k) for name in ACCEPTANCES}
        bound, bound_distinct = (transport_bound(p, q, k, distinct=distinct) for distinct in (False, True))
        assert bound + slack >= found["k-sequential"]
        assert found["k-sequential"] + slack >= found["residual-independent"]
        assert found["residual-independent"] + slack >= max(found["naive-independent"], found["single"])
        assert found["k-sequential"] + slack >= (1 - (1 - 1 / k) ** k) * bound
        if np.count_nonzero(q) >= k:
            assert bound_distinct + slack >= max(found["residual"], bound)
            ordered = [found[name] for name in ("residual-independent", "naive", "single")]
            assert found["residual"] + slack >= max(ordered)
            assert found["naive"] + slack >= found["naive-independent"]


def test_the_bound_is_that_of_its_definition():
    for p, q, k in pairs(60, seed=2, sizes=(2, 3, 4)):
        for distinct in (False, True):
            if not distinct or np.count_nonzero(q) >= k:
                expected = least_over_all_sets(p, q, k, distinct)
                assert transport_bound(p, q, k, distinct=distinct) == pytest.approx(expected, abs=1e-12)


def test_the_bound_of_a_large_vocabulary_is_that_of_a_small_one(monkeypatch):
    cases = [case for case in pairs(150, seed=3, sizes=(3, 5, 8)) if np.count_nonzero(case[1]) >= case[2]]
    expected = [transport_bound(*case, distinct=True) for case in cases]
    monkeypatch.setattr(bounds, "MAX_SUBSETS", 0)
    assert [transport_bound(*case, distinct=True) for case in cases] == pytest.approx(expected, abs=1e-10)


def test_draws_inside_a_set_by_integral_are_those_by_listing():
    for _, q, count in pairs(50, seed=4, sizes=(4, 6)):
        k = min(count, np.count_nonzero(q))
        draws, weights = bounds._all_orders(q, k)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        listed = [weights[(draws < size).all(axis=1)].sum() for size in range(len(q) + 1)]
        assert bounds.all_drawn_inside(q, k) == pytest.approx(listed, abs=1e-10)


@pytest.mark.parametrize("name", ["naive", "residual"])
def test_sampled_values_are_near_the_exact_ones(name, monkeypatch):
    cases = list(pairs(40, seed=5, sizes=(6, 9)))
    exact = np.array([acceptance(name, *case) for case in cases])
    monkeypatch.setattr(bounds, "MAX_ORDERS", 0)
    sampled = np.array([acceptance(name, *case) for case in cases])
    assert np.array_equal(sampled, [acceptance(name, *case) for case in cases])
    assert abs(sampled - exact).max() < 0.03
    assert abs((sampled - exact).mean()) < 0.003


def test_large_vocabularies_take_no_listing():
    rng = np.random.default_rng(6)
    p, q = (rng.dirichlet(np.full(3000, 0.05)) for _ in range(2))
    for name in ACCEPTANCES:
        assert 0 <= acceptance(name, p, q, 4) <= 1
    assert transport_bound(p, q, 4) <= transport_bound(p, q, 4, distinct=True) + 1e-9


def test_a_draft_that_is_the_target_and_one_that_has_nothing_of_it():
    p = np.array([0.5, 0.3, 0.2, 0.0, 0.0])
    other = np.array([0.0, 0.0, 0.0, 0.9, 0.1])
    for name in ("single", "residual", "residual-independent", "k-sequential"):
        assert acceptance(name, p, p, 2) == pytest.approx(1, abs=1e-12)
    for name in ACCEPTANCES:
        assert acceptance(name, p, other, 2) == 0
    for distinct in (False, True):
        assert transport_bound(p, p, 2, distinct=distinct) == pytest.approx(1)
        assert transport_bound(p, other, 2, distinct=distinct) == pytest.approx(0)
    assert recursive(p, np.full(5, 0.2), 5, distinct=True) == pytest.approx(1)  # all tokens were drawn


def test_the_best_rho_is_the_smallest_that_leaves_a_law():
    for p, q, k in pairs(200, seed=7):
        rho = best_rho(p, q, k)
        assert 1 <= rho <= k
        rest = p - np.minimum(q, p / rho) * _ratio(p, q, k, rho)
        assert rest.min() > -1e-9
        assert after_rejections(p, q, k, rho).sum() == pytest.approx(1)
        if rho > 1 + 1e-6:
            lower = rho - 1e-6
            assert accepted_by(p, q, k, lower) > lower * np.minimum(q, p / lower).sum()
    assert best_rho(p, p, 3) == 1
    assert best_rho(p, q, 1) == 1


def _ratio(p, q, k, rho):
    each = np.minimum(q, p / rho).sum()
    return accepted_by(p, q, k, rho) / each if each else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_judging_whole_paths_accepts_more(forks, seed):
    target, draft = Laws(3, 10 + seed), Laws(3, 20 + seed)

    def mean_accepted(name, kind, branching):
        propose = lambda: grown(draft, (0,), kind, branching, forks.choose)  # noqa: E731
        return one_round(forks, rule_of(name), target, propose)[1]

    path = {name: mean_accepted(name, "iid", (1, 1, 1)) for name in ("residual", "block", "traversal")}
    assert path["block"] == pytest.approx(path["traversal"], abs=1e-12)
    assert path["block"] > path["residual"] - 1e-12
    tree = {name: mean_accepted(name, "distinct", (2, 1)) for name in ("residual", "block", "traversal")}
    assert tree["traversal"] > max(tree["residual"], tree["block"]) - 1e-12
    chosen = {name: mean_accepted(name, "chosen", (1, 1, 1)) for name in ("point-mass", "block", "traversal")}
    assert chosen["block"] == pytest.approx(chosen["point-mass"], abs=1e-12)


def test_tokens_of_a_round_for_draws_that_are_alike_at_every_place(forks):
    p, q, length = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3]), 3
    target, draft = (Laws(3, 0, lambda at, law=law: law) for law in (p, q))
    rate = acceptance("single", p, q, 1)
    _, accepted = one_round(
        forks, rule_of("residual"), target, lambda: grown(draft, (0,), "iid", (1,) * length, forks.choose)
    )
    assert accepted + 1 == pytest.approx((1 - rate ** (length + 1)) / (1 - rate), abs=1e-12)


def test_whole_sequences_are_counted_anew_at_each_node(forks):
    """SpecTr: k sequences, of which those that go through a node are its k."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    target, draft = (Laws(3, 0, lambda at, law=law: law) for law in (p, q))
    law, accepted = one_round(
        forks, rule_of("k-sequential"), target, lambda: chains(draft, (0,), 2, 2, forks.choose)
    )
    assert sum(law.values()) == pytest.approx(1)
    first = sum(chance for written, chance in law.items() if len(written) > 1)
    assert first == pytest.approx(acceptance("k-sequential", p, q, 2), abs=1e-12)
    below = (accepted - first) / first
    assert acceptance("k-sequential", p, q, 1) < below < acceptance("k-sequential", p, q, 2)


def test_what_cannot_be_said_is_named():
    with pytest.raises(ConfigError, match="rule='best' has no closed form"):
        acceptance("best", np.ones(1), np.ones(1), 1)
    with pytest.raises(ConfigError, match="k=0"):
        acceptance("naive", np.ones(1), np.ones(1), 0)
