"""List tasks: rules agree with enumeration, closed forms with the law they describe."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hasten.diffusion.list_tasks import (
    LETTERS,
    MAX_SIZE,
    MIN_SIZE,
    TASKS,
    WORDS,
    Question,
    accuracies,
    is_correct,
    replace_random_success,
    sample_questions,
    shuffle_success,
    total_correlation,
)
from hasten.errors import ConfigError

LIST = ("D", "B", "C", "A")


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (Question("copy", LIST), ["D B C A"], ["D B C", "D B C A A", "D C B A", ""]),
        (Question("reverse", LIST), ["A C B D"], ["D B C A"]),
        (Question("sort", LIST), ["A B C D"], ["A B D C"]),
        (Question("shuffle", LIST), ["A B C D", "B D C A"], ["D B C A", "A B C C", "A B C"]),
        (Question("insert_index", LIST, 0, "X"), ["X D B C A"], ["D X B C A"]),
        (Question("insert_index", LIST, 4, "X"), ["D B C A X"], ["D B C A"]),
        (Question("remove_index", LIST, 1), ["D C A"], ["D B C A", "B C A"]),
        (Question("replace_index", LIST, 3, "X"), ["D B C X"], ["D B X A"]),
        (Question("insert_random", LIST, None, "X"), ["X D B C A", "D B C A X"], ["D B C A", "X D B C X A"]),
        (Question("remove_random", LIST), ["D B C", "B C A"], ["D B C A", "B D C"]),
        (Question("replace_random", LIST, None, "X"), ["X B C A", "D B C X"], ["X X C A", "D B C A"]),
    ],
)
def test_answers_are_judged_by_their_task(question: Question, right: list[str], wrong: list[str]) -> None:
    assert all(is_correct(question, text) for text in right)
    assert not any(is_correct(question, text) for text in wrong)
    assert (question.answer is not None) == TASKS[question.task].is_deterministic
    assert question.answer in (None, right[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_rule_accepts_the_enumerated_answers_and_nothing_else(task: str) -> None:
    question = TASKS[task].question(3, np.random.default_rng(4))
    right = set(question.answers())
    assert len(right) == len(list(question.answers()))
    letters = {*question.items, question.item or "Z", "Y"}
    for size in range(5):
        for written in product(letters, repeat=size):
            assert is_correct(question, " ".join(written)) == (written in right), written


@given(
    task=st.sampled_from(sorted(TASKS)),
    size=st.integers(2, MAX_SIZE),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_drawn_answer_is_right_and_a_prompt_has_one_word_a_token(task: str, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    question = TASKS[task].question(size, random)
    assert is_correct(question, " ".join(TASKS[task].answer(question, random)))
    assert len(set(question.items)) == size
    assert question.item not in question.items
    words = question.prompt.split()
    assert set(words) <= set(WORDS)
    assert words[words.index(":") + 1 : words.index("=")] == [*question.items, *"-" * (MAX_SIZE - size)]
    assert set(question.items) <= set(LETTERS)


def test_every_index_is_asked_about() -> None:
    random = np.random.default_rng(0)
    asked = {task: {TASKS[task].question(4, random).index for _ in range(200)} for task in TASKS}
    assert asked["insert_index"] == {0, 1, 2, 3, 4}
    assert asked["remove_index"] == asked["replace_index"] == {0, 1, 2, 3}
    assert asked["copy"] == {None}


def test_equal_seeds_ask_equal_questions() -> None:
    questions = sample_questions("insert_index", 60, seed=3)
    assert questions == sample_questions("insert_index", 60, seed=3)
    assert questions != sample_questions("insert_index", 60, seed=4)
    assert {len(question.items) for question in questions} == set(range(MIN_SIZE, MAX_SIZE + 1))


def test_what_cannot_be_asked_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'cpoy' does not exist; choose one of copy, reverse"):
        sample_questions("cpoy", 1, 0)
    with pytest.raises(ConfigError, match="size=16"):
        sample_questions("copy", 1, 0, 16, 16)
    with pytest.raises(ConfigError, match="min_size=9 is above max_size=8"):
        sample_questions("copy", 1, 0, 9, 8)


def test_accuracies_are_shares_by_task() -> None:
    copy, sort = Question("copy", LIST), Question("sort", LIST)
    written = [(copy, "D B C A"), (sort, "A B C D"), (copy, "D B C"), (copy, " D  B C A ")]
    assert accuracies(written) == {"copy": pytest.approx(2 / 3), "sort": 1.0}


def chance_by_enumeration(answers: list[tuple[str, ...]], tokens_per_forward: int) -> Fraction:
    """That draws from the marginals of a uniform law, positions in random order, end in an answer."""
    size = len(answers[0])

    def go_on(written: dict[int, str]) -> Fraction:
        left = [answer for answer in answers if all(answer[i] == token for i, token in written.items())]
        is_open = [i for i in range(size) if i not in written]
        if not left or not is_open:
            return Fraction(len(left) > 0)
        total, orders = Fraction(0), list(combinations(is_open, min(tokens_per_forward, len(is_open))))
        for places in orders:
            marginals = [Counter(answer[i] for answer in left) for i in places]
            for tokens in product(*marginals):
                chance = math.prod(
                    Fraction(marginal[token], len(left))
                    for marginal, token in zip(marginals, tokens, strict=True)
                )
                total += chance * go_on(written | dict(zip(places, tokens, strict=True))) / len(orders)
        return total

    return go_on({})


@pytest.mark.parametrize("tokens_per_forward", [1, 2, 3, 4])
def test_success_of_parallel_draws_agrees_with_enumeration(tokens_per_forward: int) -> None:
    shuffled = chance_by_enumeration(list(permutations("ABCD")), tokens_per_forward)
    assert shuffle_success(4, tokens_per_forward) == pytest.approx(float(shuffled))
    question = Question("replace_random", ("A", "B", "C", "D"), None, "X")
    replaced = chance_by_enumeration(list(question.answers()), tokens_per_forward)
    assert replace_random_success(4, tokens_per_forward) == pytest.approx(float(replaced))


def test_known_values_of_the_closed_forms() -> None:
    assert [round(shuffle_success(10, k), 4) for k in (1, 2, 3)] == [1.0, 0.2461, 0.1653]
    assert replace_random_success(6) == pytest.approx((5 / 6) ** 5)
    assert replace_random_success(10, 2) == pytest.approx(0.8121, abs=1e-4)
    assert total_correlation("shuffle", 10) == pytest.approx(7.92, abs=0.005)
    assert total_correlation("reverse", 10) == 0


@pytest.mark.parametrize("task", ["shuffle", "insert_random", "remove_random", "replace_random"])
def test_total_correlation_is_what_independent_draws_lose(task: str) -> None:
    """The divergence of the product of marginals from the law, summed over the answers."""
    question = Question(task, tuple("ABCD"), None, "X" if TASKS[task].takes_item else None)
    answers = list(permutations("ABCD")) if task == "shuffle" else list(question.answers())
    marginals = [Counter(place) for place in zip(*answers, strict=True)]
    each = 1 / len(answers)
    divergence = sum(
        each * math.log(each / math.prod(m[token] * each for m, token in zip(marginals, answer, strict=True)))
        for answer in answers
    )
    assert total_correlation(task, 4) == pytest.approx(divergence)
