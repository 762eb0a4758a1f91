"""Burst sampling: a block drafted at once, and kept as far as the chain confirms it."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.enumerated import (
    SAMPLED,
    WARPED,
    CanvasOracle,
    ChainOracle,
    always_kept,
    law_in_order,
    law_of,
    order_of,
    require_law,
)
from diffusion.exact_laws import random_joint, write
from hasten.diffusion.canvas import Canvas
from hasten.diffusion.defaults import reference_of
from hasten.diffusion.parse import parse_strategy
from hasten.errors import ConfigError
from verify.forks import distance


def chains(seed, **shape):
    return ChainOracle(random_joint(seed, **shape).probs)


@pytest.mark.parametrize("params", [SAMPLED, WARPED], ids=["sampled", "warped"])
def test_with_one_order_texts_have_the_law_of_the_reference(monkeypatch, params):
    for seed in range(4):
        oracle = CanvasOracle(seed, num_words=2 if params is SAMPLED else 3, attention="any-order")
        strategy = f"burst:seed={seed}"
        expected = law_in_order(oracle, order_of(strategy, oracle.spec, oracle.length), params)
        found = law_of(oracle, strategy, params, monkeypatch)
        assert sum(found.values()) == pytest.approx(1)
        assert distance(found, expected) < 1e-6


def test_the_law_holds_over_several_rounds_and_blocks(monkeypatch):
    oracle = CanvasOracle(1, length=4, attention="any-order")
    strategy = parse_strategy("burst+blocks:2", oracle.spec)
    ranks = strategy.selector.start(Canvas.after((), np.full(4, 2)))[0]
    order = [*sorted((0, 1), key=ranks.__getitem__), *sorted((2, 3), key=ranks.__getitem__)]
    assert (
        distance(law_of(oracle, strategy, SAMPLED, monkeypatch), law_in_order(oracle, order, SAMPLED)) < 1e-6
    )


def test_with_several_orders_the_law_is_another(monkeypatch):
    """Which is why it promises nothing then."""
    oracle = ChainOracle(np.random.default_rng(0).dirichlet(np.full(8, 0.3)).reshape(2, 2, 2))
    law = {text: float(oracle.probs[text]) for text in np.ndindex(2, 2, 2)}
    assert distance(law_of(oracle, "burst:1", SAMPLED, monkeypatch), law) < 1e-6
    assert distance(law_of(oracle, "burst:2", SAMPLED, monkeypatch), law) > 1e-3


def test_keeping_every_draft_is_another_law(monkeypatch):
    oracle = CanvasOracle(0, attention="any-order")
    always_kept(monkeypatch, "selectors.burst")
    expected = law_in_order(oracle, order_of("burst", oracle.spec, 3), SAMPLED)
    assert distance(law_of(oracle, "burst", SAMPLED, monkeypatch), expected) > 0.02


def texts_of(oracle, count):
    strategy = parse_strategy("burst", oracle.spec)
    return [tuple(write(oracle, strategy, params=SAMPLED, seed=seed).token_ids) for seed in range(count)]


def test_texts_drawn_with_keyed_noise_have_the_joint_law_and_lose_it_if_all_drafts_are_kept(monkeypatch):
    oracle = chains(0, num_words=2, length=3, concentration=0.7)
    law = {text: float(oracle.probs[text]) for text in np.ndindex(*oracle.probs.shape)}
    require_law(texts_of(oracle, 300), law)
    always_kept(monkeypatch, "selectors.burst")
    with pytest.raises(AssertionError):
        require_law(texts_of(oracle, 300), law)


def test_a_greedy_text_is_that_of_the_reference_in_as_many_forward_passes_or_fewer():
    saved = 0
    for seed in range(30):
        oracle = chains(seed, length=6)
        plain = write(oracle, f"static:order=random,seed={seed}")
        burst = write(oracle, f"burst:seed={seed}")
        assert burst.token_ids == plain.token_ids
        assert burst.stats.num_forwards <= plain.stats.num_forwards
        saved += plain.stats.num_forwards - burst.stats.num_forwards
    assert saved > 0


def test_independent_places_are_written_in_two_forward_passes():
    laws = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    probs = np.einsum("a,b,c,d,e->abcde", *laws)
    for seed in range(5):
        written = write(ChainOracle(probs), "burst", params=SAMPLED, seed=seed)
        assert written.stats.num_forwards == 2
        assert len(written.records[0].positions) == 5


def test_two_forward_passes_write_two_tokens_or_more_and_a_last_place_needs_one():
    for seed in range(20):
        written = write(chains(seed, length=5), "burst", params=SAMPLED, seed=seed)
        sizes = [len(record.positions) for record in written.records]
        assert all(size >= 2 for size in sizes[:-1])
        assert written.stats.num_forwards == 2 * len(sizes) - (sizes[-1] == 1)


def test_more_orders_keep_no_shorter_a_beginning():
    longer = 0
    for seed in range(20):
        oracle = chains(seed, length=6)
        sizes = [
            len(write(oracle, f"burst:{orders}", params=SAMPLED, seed=seed).records[0].positions)
            for orders in (1, 2, 4)
        ]
        assert sizes == sorted(sizes)
        longer += sizes[2] > sizes[0]
    assert longer > 0


def test_all_orders_are_asked_for_in_one_forward_pass_and_leave_written_places_out():
    oracle = chains(0, length=6)
    strategy = parse_strategy("burst:3", oracle.spec)
    ranks = strategy.selector.start(Canvas.after((1, 1), np.full(6, 3)))
    written = write(oracle, strategy, params=SAMPLED, prompt=(1, 1), seed=2)
    is_open = np.arange(8) >= 2
    assert len({tuple(query.chain.tolist()) for query in oracle.queries[1]}) == 3
    for record, asked in zip(written.records, oracle.queries[1::2], strict=False):
        assert len(asked) == 3
        for query, own in zip(asked, ranks, strict=True):
            assert query.chain.tolist() == sorted(np.flatnonzero(is_open), key=own.__getitem__)
            assert (query.token_ids < 3).all()
        assert set(record.positions.tolist()) in [
            set(query.chain[: len(record.positions)].tolist()) for query in asked
        ]
        is_open[record.positions] = False


def test_a_model_that_answers_no_chains_is_refused():
    with pytest.raises(ConfigError, match="any-order models"):
        parse_strategy("burst", random_joint(0).spec)


@pytest.mark.parametrize("part", ["freedave", "credit"])
def test_parts_that_a_chain_does_not_know_are_refused(part):
    with pytest.raises(ConfigError, match="leave"):
        parse_strategy(f"burst+{part}", chains(0).spec)


def test_a_constraint_is_refused():
    strategy = parse_strategy("burst", chains(0).spec)
    with pytest.raises(ConfigError, match="constraint"):
        strategy.constrained(object()).check(chains(0).spec)


def test_no_order_at_all_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="burst:0"):
        parse_strategy("burst:0", chains(0).spec)


def test_it_promises_the_law_with_one_order_and_nothing_with_more():
    spec = chains(0).spec
    assert parse_strategy("burst", spec).guarantee == "distribution"
    assert parse_strategy("burst:2", spec).guarantee == "approximate"
    assert reference_of(parse_strategy("burst:seed=4", spec)).selector.seed == 4
