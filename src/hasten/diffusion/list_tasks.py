"""List tasks that show what parallel decoding of a masked-diffusion model gets wrong.

They are the list tasks of ParallelBench (arXiv 2510.04767), generated here: a list of distinct letters and a
word saying what to do with it. Where only one answer is right, its positions are independent given the list
and may all be written at once; where many are right, they are not, and `total_correlation` says by how much.
The serialisation, words with spaces between, is this project's own. Knows no model and no tokenizer.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from hasten.errors import ConfigError

Items = tuple[str, ...]

LETTERS: Items = tuple(string.ascii_uppercase)
MIN_SIZE, MAX_SIZE = 6, 15
"""Sizes of the lists that are asked about unless the caller says otherwise."""
EMPTY = "-"


@dataclass(frozen=True, slots=True)
class Question:
    """One list and what to do with it; `index` counts from 0, `item` is a letter that the list lacks."""

    task: str
    items: Items
    index: int | None = None
    item: str | None = None

    @property
    def prompt(self) -> str:
        """For example ``replace_index 1 X : B D A - - - - - - - - - - - - =``.

        Places that the list leaves empty keep each item at one distance from its place in the answer, which
        lets a small model with relative positions learn the tasks.
        """
        extras = [str(extra) for extra in (self.index, self.item) if extra is not None]
        empty = [EMPTY] * (MAX_SIZE - len(self.items))
        return " ".join([self.task, *extras, ":", *self.items, *empty, "="])

    @property
    def answer(self) -> str | None:
        """The only right answer, or None where there are several."""
        task = TASKS[self.task]
        return " ".join(next(task.answers(self))) if task.is_deterministic else None

    def answers(self) -> Iterator[Items]:
        """Every right answer, none twice; a shuffle of n items has n! - 1."""
        return TASKS[self.task].answers(self)


@dataclass(frozen=True, slots=True)
class ListTask:
    """A kind of question; `answers` yields the right answers, `accepts` decides without listing them."""

    name: str
    answers: Callable[[Question], Iterator[Items]]
    accepts: Callable[[Question, Items], bool]
    is_deterministic: bool
    takes_item: bool = False
    num_indices: Callable[[int], int] | None = None
    """how many indices a list of that size has for this task, where it takes one"""

    def question(self, size: int, random: np.random.Generator) -> Question:
        """A question about a list of that many letters. Raises ConfigError for an impossible size."""
        if not 2 <= size <= MAX_SIZE:
            raise ConfigError(f"size={size} cannot work for a list; it must be 2 to {MAX_SIZE}")
        letters = [LETTERS[i] for i in random.permutation(len(LETTERS))[: size + self.takes_item]]
        index = None if self.num_indices is None else int(random.integers(self.num_indices(size)))
        return Question(self.name, tuple(letters[:size]), index, letters[size] if self.takes_item else None)

    def answer(self, question: Question, random: np.random.Generator) -> Items:
        """One right answer, each equally likely."""
        if self.name == "shuffle":
            while True:
                shuffled = tuple(question.items[i] for i in random.permutation(len(question.items)))
                if shuffled != question.items:
                    return shuffled
        answers = list(self.answers(question))
        return answers[int(random.integers(len(answers)))]


def _one(rule: Callable[[Question], Items]) -> Callable[[Question], Iterator[Items]]:
    return lambda question: iter([rule(question)])


def _inserted(question: Question, index: int) -> Items:
    return (*question.items[:index], _item(question), *question.items[index:])


def _removed(question: Question, index: int) -> Items:
    return (*question.items[:index], *question.items[index + 1 :])


def _replaced(question: Question, index: int) -> Items:
    return (*question.items[:index], _item(question), *question.items[index + 1 :])


def _index(question: Question) -> int:
    assert question.index is not None
    return question.index


def _item(question: Question) -> str:
    assert question.item is not None
    return question.item


def _shuffles(question: Question) -> Iterator[Items]:
    return (order for order in permutations(question.items) if order != question.items)


def _everywhere(
    change: Callable[[Question, int], Items], extra: int = 0
) -> Callable[[Question], Iterator[Items]]:
    return lambda question: (change(question, index) for index in range(len(question.items) + extra))


def _is_the_answer(question: Question, written: Items) -> bool:
    return written == next(TASKS[question.task].answers(question))


def _is_shuffle(question: Question, written: Items) -> bool:
    return written != question.items and sorted(written) == sorted(question.items)


def _is_among(question: Question, written: Items) -> bool:
    return written in question.answers()


def _same(size: int) -> int:
    return size


def _determined(
    name: str,
    rule: Callable[[Question], Items],
    *,
    takes_item: bool = False,
    num_indices: Callable[[int], int] | None = None,
) -> ListTask:
    return ListTask(name, _one(rule), _is_the_answer, True, takes_item, num_indices)


_ALL_TASKS = (
    _determined("copy", lambda question: question.items),
    _determined("reverse", lambda question: question.items[::-1]),
    _determined("sort", lambda question: tuple(sorted(question.items))),
    ListTask("shuffle", _shuffles, _is_shuffle, False),
    _determined(
        "insert_index",
        lambda question: _inserted(question, _index(question)),
        takes_item=True,
        num_indices=lambda size: size + 1,
    ),
    _determined("remove_index", lambda question: _removed(question, _index(question)), num_indices=_same),
    _determined(
        "replace_index",
        lambda question: _replaced(question, _index(question)),
        takes_item=True,
        num_indices=_same,
    ),
    ListTask("insert_random", _everywhere(_inserted, 1), _is_among, False, takes_item=True),
    ListTask("remove_random", _everywhere(_removed), _is_among, False),
    ListTask("replace_random", _everywhere(_replaced), _is_among, False, takes_item=True),
)
TASKS: dict[str, ListTask] = {task.name: task for task in _ALL_TASKS}

WORDS: tuple[str, ...] = (*TASKS, *map(str, range(MAX_SIZE + 1)), ":", "=", EMPTY, *LETTERS)
"""Every word of prompts and answers."""


def sample_questions(
    task: str, num_questions: int, seed: int, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE
) -> list[Question]:
    """Questions of one task, sizes drawn evenly; equal arguments give equal questions.

    Raises ConfigError for an unknown task and for sizes that cannot work.
    """
    if task not in TASKS:
        raise ConfigError(f"list task {task!r} does not exist; choose one of {', '.join(TASKS)}")
    if min_size > max_size:
        raise ConfigError(f"min_size={min_size} is above max_size={max_size}; give a smaller one")
    random = np.random.default_rng((seed, list(TASKS).index(task)))
    sizes = random.integers(min_size, max_size + 1, num_questions)
    return [TASKS[task].question(int(size), random) for size in sizes]


def is_correct(question: Question, text: str) -> bool:
    """Whether the written text is a right answer; how its words are spaced does not matter."""
    return TASKS[question.task].accepts(question, tuple(text.split()))


def accuracies(written: Iterable[tuple[Question, str]]) -> dict[str, float]:
    """By task, the share of right answers; tasks that were not asked about are left out."""
    asked, right = Counter[str](), Counter[str]()
    for question, text in written:
        asked[question.task] += 1
        right[question.task] += is_correct(question, text)
    return {task: right[task] / asked[task] for task in TASKS if asked[task]}


def shuffle_success(size: int, tokens_per_forward: int) -> float:
    """The chance that an ideal denoiser writes a permutation, that many positions drawn in each forward.

    Ideal: at each open position every item that is not written yet is equally likely. Within one forward the
    draws do not see each other, so they must differ by luck. The list itself counts as a permutation of it.
    """
    chance, remaining = 1.0, size
    while remaining:
        together = min(tokens_per_forward, remaining)
        chance *= math.prod((remaining - j) / remaining for j in range(together))
        remaining -= together
    return chance


def replace_random_success(size: int, tokens_per_forward: int | None = None) -> float:
    """The chance that an ideal denoiser puts the new item at exactly one place; by default in one forward.

    Positions are filled in random order, that many in each forward. While the new item is not written, each
    of the r open positions holds it with chance 1/r.
    """
    together = size if tokens_per_forward is None else tokens_per_forward
    chance, not_yet, remaining = 0.0, 1.0, size
    while remaining > together:
        elsewhere = 1 - 1 / remaining
        chance += not_yet * together / remaining * elsewhere ** (together - 1)
        not_yet *= elsewhere**together
        remaining -= together
    return chance + not_yet * (1 - 1 / remaining) ** (remaining - 1)


def total_correlation(task: str, size: int) -> float:
    """Nats that are lost at least when a whole answer is drawn in one forward: sum of H(y_i|X) - H(Y|X).

    All right answers are taken as equally likely; for the shuffle the list itself is one of them.
    """
    if TASKS[task].is_deterministic:
        return 0.0
    if task == "shuffle":
        return size * math.log(size) - math.lgamma(size + 1)
    answers = list(TASKS[task].question(size, np.random.default_rng(0)).answers())
    marginals = [Counter(position) for position in zip(*answers, strict=True)]
    entropies = (
        -sum(count / len(answers) * math.log(count / len(answers)) for count in marginal.values())
        for marginal in marginals
    )
    return math.fsum(entropies) - math.log(len(answers))
