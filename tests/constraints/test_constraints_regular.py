"""Regular constraints allow exactly what some completion of the canvas has, and never run into a dead end."""

from __future__ import annotations

import numpy as np
import pytest
from constraint_checks import assert_exact, commit_at_random, fitting, texts_that_fit
from hypothesis import given, strategies as st

from hasten.constraints import Constraint, ConstraintRun, RegularConstraint, TokenAutomaton
from hasten.errors import ConfigError

EOS, SECOND_EOS, MASK = 3, 4, 5
WORDS = [0, 1, 2]
VOCAB = 6


def accepts(transitions, start, finals):
    def is_text(word):
        state = start
        for token in word:
            state = transitions.get(state, {}).get(token)
            if state is None:
                return False
        return state in finals

    return is_text


@st.composite
def automata(draw):
    states = st.integers(0, draw(st.integers(0, 4)))
    edges = draw(st.lists(st.tuples(states, st.sampled_from(WORDS), states), max_size=12))
    transitions: dict = {}
    for state, token, target in edges:
        transitions.setdefault(state, {})[token] = target
    return transitions, draw(states), set(draw(st.lists(states, min_size=1, max_size=3)))


@st.composite
def canvases(draw, length):
    tokens = draw(
        st.lists(st.sampled_from([*WORDS, EOS, SECOND_EOS, MASK]), min_size=length, max_size=length)
    )
    is_open = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return np.array(tokens), np.array(is_open)


def started(automaton, eos_ids, length, begin=0):
    return RegularConstraint(TokenAutomaton.of(*automaton)).start((begin, begin + length), eos_ids, VOCAB)


@given(st.data(), automata(), st.integers(1, 5), st.sampled_from([(), (EOS,), (EOS, SECOND_EOS)]))
def test_allowed_is_exactly_what_some_completion_has(data, automaton, length, eos_ids):
    texts = texts_that_fit(accepts(*automaton), WORDS, eos_ids, length)
    if not texts:
        with pytest.raises(ConfigError):
            started(automaton, eos_ids, length)
        return
    run = started(automaton, eos_ids, length)
    # One run over several canvases: what it keeps of one must not show in the next.
    for _ in range(3):
        assert_exact(run, texts, *data.draw(canvases(length)), VOCAB)
    text = np.array(data.draw(st.sampled_from(texts)))
    is_open = np.ones(length, dtype=bool)
    for position in data.draw(st.permutations(range(length))):
        is_open[position] = False
        assert_exact(run, texts, np.where(is_open, MASK, text), is_open, VOCAB)


@given(automata(), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_commits_in_any_order_end_in_the_language(automaton, length, seed):
    for eos_ids in ((), (EOS,)):
        try:
            run = started(automaton, eos_ids, length, begin=2)
        except ConfigError:
            continue
        text = commit_at_random(run, length, np.random.default_rng(seed), begin=2)
        word = text[: int((text == EOS).argmax())] if EOS in text else text
        assert (text[len(word) :] == EOS).all()
        assert accepts(*automaton)(word)


@given(automata(), st.integers(2, 5), st.data())
def test_commits_of_one_step_are_judged_one_after_the_other(automaton, length, data):
    texts = texts_that_fit(accepts(*automaton), WORDS, (), length)
    if not texts:
        return
    run = started(automaton, (), length)
    token_ids, is_open = np.full(length, MASK), np.ones(length, dtype=bool)
    run.allowed(token_ids, is_open)
    for position, token in data.draw(
        st.lists(st.tuples(st.integers(0, length - 1), st.sampled_from(WORDS)), max_size=6)
    ):
        if not is_open[position]:
            continue
        alone = is_open.copy()
        alone[position] = False
        is_possible = bool(fitting(texts, np.where(np.arange(length) == position, token, token_ids), alone))
        assert run.admit(token_ids, is_open, position, token) == is_possible
        if is_possible:
            token_ids[position], is_open[position] = token, False
    assert fitting(texts, token_ids, is_open)


def test_a_written_position_can_be_judged_for_another_token():
    run = started(({0: {0: 1, 1: 2}, 1: {1: 0}, 2: {0: 0}}, 0, {0}), (), 4)
    token_ids, is_open = np.array([0, 1, 0, MASK]), np.array([False, False, False, True])
    assert run.admit(token_ids, is_open, 0, 0)
    assert not run.admit(token_ids, is_open, 0, 1)
    assert run.admit(token_ids, is_open, 3, 1)
    assert token_ids.tolist() == [0, 1, 0, MASK]
    assert is_open.tolist() == [False, False, False, True]


def test_two_tokens_that_fit_alone_need_not_fit_together():
    run = started(({0: {0: 1, 1: 2}, 1: {0: 3}, 2: {1: 3}}, 0, {3}), (), 2)
    token_ids, is_open = np.full(2, MASK), np.ones(2, dtype=bool)
    allowed = run.allowed(token_ids, is_open)
    assert allowed.at(0)[0]
    assert allowed.at(1)[1]
    token_ids[0], is_open[0] = 0, False
    assert not run.admit(token_ids, is_open, 1, 1)
    assert run.admit(token_ids, is_open, 1, 0)


def test_an_automaton_that_accepts_everything_allows_everything():
    everything = {0: dict.fromkeys([*WORDS, MASK], 0)}
    run = started((everything, 0, {0}), (EOS,), 3, begin=1)
    token_ids, is_open = np.array([9, 1, MASK, MASK]), np.array([False, False, True, True])
    allowed = run.allowed(token_ids, is_open)
    assert allowed.positions.tolist() == [2, 3]
    assert np.flatnonzero(~allowed.matrix.all(axis=0)).tolist() == [SECOND_EOS]
    assert run.admit(token_ids, is_open, 0, 7)  # outside the span


def test_after_an_end_of_text_only_ends_of_text_follow():
    run = started(({0: {0: 0}}, 0, {0}), (EOS,), 3)
    token_ids, is_open = np.array([MASK, EOS, MASK]), np.array([True, False, True])
    allowed = run.allowed(token_ids, is_open)
    assert np.flatnonzero(allowed.at(0)).tolist() == [0, EOS]
    assert np.flatnonzero(allowed.at(2)).tolist() == [EOS]


def test_a_canvas_without_a_completion_allows_nothing():
    run = started(({0: {0: 1}, 1: {1: 0}}, 0, {0}), (), 4)
    allowed = run.allowed(np.array([1, MASK, MASK, MASK]), np.array([False, True, True, True]))
    assert not allowed.can_be_completed
    assert not allowed.matrix.any()
    assert run.allowed(np.full(4, MASK), np.ones(4, dtype=bool)).can_be_completed


def test_a_length_that_cannot_be_is_refused_before_the_start():
    in_threes = {0: {0: 1}, 1: {0: 2}, 2: {0: 0}}
    with pytest.raises(ConfigError, match=r"exactly 7 tokens.*lengths are 6 and 9"):
        started((in_threes, 0, {0}), (), 7)
    with pytest.raises(ConfigError, match=r"exactly 1 tokens.*lengths are 3:"):
        started((in_threes, 0, {0}), (), 1)
    started((in_threes, 0, {0}), (EOS,), 7)
    with pytest.raises(ConfigError, match=r"at most 1 tokens.*at least 2"):
        started((in_threes, 0, {2}), (EOS,), 1)
    with pytest.raises(ConfigError, match=r"exactly 3 tokens.*lengths are 2:"):
        started(({0: {0: 1}, 1: {0: 2}}, 0, {2}), (), 3)
    with pytest.raises(ConfigError, match="no text of these tokens"):
        started(({0: {0: 1}}, 0, {5}), (), 3)
    with pytest.raises(ConfigError, match="no text of these tokens"):
        started(({0: {0: 1}}, 0, {0}), (), 3)


def test_tokens_outside_the_vocabulary_make_no_text_possible():
    beyond = RegularConstraint(TokenAutomaton.of({0: {7: 1, 2: 0}}, 0, {1}))
    with pytest.raises(ConfigError, match="no text of these tokens"):
        beyond.start((0, 2), (), VOCAB)
    allowed = beyond.start((0, 2), (), 9).allowed(np.zeros(2, dtype=np.int64), np.ones(2, dtype=bool))
    assert np.flatnonzero(allowed.at(1)).tolist() == [7]


def test_spans_and_ends_of_text_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="covers nothing"):
        started(({0: {0: 0}}, 0, {0}), (), 0)
    with pytest.raises(ConfigError, match=f"id {VOCAB} is not in the vocabulary"):
        started(({0: {0: 0}}, 0, {0}), (VOCAB,), 2)


def test_automata_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="token id -1"):
        TokenAutomaton.of({0: {-1: 0}}, 0, {0})
    table = np.array([[0, 1]], dtype=np.int32)
    with pytest.raises(ConfigError, match="leads to 1"):
        TokenAutomaton(table, np.zeros(2, np.int32), np.array([True]), 0)
    with pytest.raises(ConfigError, match="2 marks"):
        TokenAutomaton(np.zeros((1, 1), np.int32), np.zeros(2, np.int32), np.array([True, True]), 0)
    with pytest.raises(ConfigError, match="token of 3"):
        TokenAutomaton(np.zeros((1, 1), np.int32), np.full(2, 3, np.int32), np.array([True]), 0)


def test_tokens_that_do_the_same_are_one_class():
    automaton = TokenAutomaton.of({0: {0: 1, 1: 1, 2: 0}, 1: {0: 0, 1: 0, 3: 1}}, 0, {1})
    assert automaton.class_of[0] == automaton.class_of[1]
    assert len(set(automaton.class_of.tolist())) == 3
    assert automaton.next_states.shape == (2, 3)


def test_an_open_position_alone_is_asked_for():
    run = started(({0: {0: 0}}, 0, {0}), (), 2)
    with pytest.raises(IndexError, match="position 0 is not open"):
        run.allowed(np.array([0, MASK]), np.array([False, True])).at(0)


def test_the_protocols_are_met():
    constraint = RegularConstraint(TokenAutomaton.of({0: {0: 0}}, 0, {0}))
    assert isinstance(constraint, Constraint)
    assert isinstance(constraint.start((0, 1), (), VOCAB), ConstraintRun)
