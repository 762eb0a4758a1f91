"""Which way to draft is used: tried, measured, and tried again."""

from __future__ import annotations

import pytest

from hasten.drafters.model.arms import Arm, Arms


def arms_of(count, may_rest=False):
    made = [Arm(None, None) for _ in range(count)]
    return made, Arms(made, may_rest=may_rest)


def play(arms, costs, rounds, gains=None):
    """How often each choice was made in so many rounds of these milliseconds (and tokens)."""
    chosen = []
    for _ in range(rounds):
        choice = arms.choose()
        chosen.append(choice)
        arms.add(choice, costs[choice], (gains or {}).get(choice, 1))
    return {choice: chosen.count(choice) for choice in costs}


def test_a_single_arm_is_always_used():
    [arm], arms = arms_of(1)
    assert play(arms, {arm: 5.0}, 100) == {arm: 100}


def test_the_fastest_is_used_most_and_the_others_now_and_then():
    (slow, fast), arms = arms_of(2, may_rest=True)
    counts = play(arms, {slow: 30.0, fast: 10.0, None: 20.0}, 640)
    assert counts[fast] > 500
    assert min(counts[slow], counts[None]) >= 12


def test_what_counts_is_the_time_of_a_token():
    (long, short), arms = arms_of(2)
    counts = play(arms, {long: 30.0, short: 10.0}, 200, {long: 6, short: 1})
    assert counts[long] > 150


def test_it_rests_while_tokens_take_less_time_without():
    [arm], arms = arms_of(1, may_rest=True)
    assert play(arms, {arm: 30.0, None: 10.0}, 300)[None] > 250
    # The draft has become good: an exploration finds out.
    assert play(arms, {arm: 30.0, None: 10.0}, 300, {arm: 9})[arm] > 150


def test_the_first_round_of_an_arm_is_not_counted():
    (first, second), arms = arms_of(2)
    arms.add(arms.choose(), 1000.0, 1)  # compiles
    counts = play(arms, {first: 5.0, second: 10.0}, 200)
    assert counts[first] > 150


def test_a_pass_is_priced_at_what_the_fastest_choice_writes():
    [arm], arms = arms_of(1, may_rest=True)
    assert arms.token_price(arm) == 0
    arm.took(4.0)
    play(arms, {arm: 30.0, None: 10.0}, 40)
    assert arms.token_price(arm) == pytest.approx(0.4)
