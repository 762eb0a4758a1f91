"""Every completion of a small canvas, one by one: what the answers of a constraint have to agree with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Text = tuple[int, ...]


def texts_that_fit(
    is_text: Callable[[Text], bool], words: Sequence[int], eos_ids: Sequence[int], length: int
) -> list[Text]:
    """Every way to fill a span: a text of the language in ``words``, then ends of text."""
    sizes = range(length + 1) if eos_ids else [length]
    return [
        word + tail
        for size in sizes
        for word in itertools.product(words, repeat=size)
        if is_text(word)
        for tail in itertools.product(eos_ids, repeat=length - size)
    ]


def fitting(texts: Iterable[Text], token_ids: Any, is_open: Any) -> list[Text]:
    """Those that the canvas can become."""
    fixed = [(place, int(token_ids[place])) for place in np.flatnonzero(~is_open)]
    return [text for text in texts if all(text[place] == token for place, token in fixed)]


def allowed_by_force(texts: Iterable[Text], token_ids: Any, is_open: Any, vocab_size: int) -> Any:
    """bool [length, vocab]: the tokens of open positions with a completion."""
    allowed = np.zeros((len(token_ids), vocab_size), dtype=bool)
    for text in fitting(texts, token_ids, is_open):
        allowed[np.arange(len(text)), text] = True
    return allowed[is_open]


def assert_exact(run: Any, texts: list[Text], token_ids: Any, is_open: Any, vocab_size: int) -> None:
    """``allowed`` and ``admit`` say just what trying every completion says."""
    found = run.allowed(token_ids, is_open)
    expected = allowed_by_force(texts, token_ids, is_open, vocab_size)
    assert np.array_equal(found.positions, np.flatnonzero(is_open))
    assert np.array_equal(found.matrix, expected)
    for row, position in enumerate(found.positions):
        assert np.array_equal(found.at(position), expected[row])
        for token in range(vocab_size):
            assert run.admit(token_ids, is_open, int(position), token) == expected[row, token]


def commit_at_random(
    run: Any, length: int, rng: np.random.Generator, begin: int = 0, of_class: bool = False
) -> Any:
    """Writes every position in any order with anything allowed; never finds a position without."""
    token_ids = np.full(begin + length, -1, dtype=np.int64)
    is_open = np.arange(begin + length) >= begin
    for position in rng.permutation(np.arange(begin, begin + length)):
        allowed = run.allowed(token_ids, is_open)
        assert allowed.can_be_completed
        choices = np.flatnonzero(allowed.at(position))
        if of_class:  # each kind of token as often, and not as often as it has tokens
            kinds = allowed.class_of[choices]
            choices = choices[kinds == rng.choice(np.unique(kinds))]
        token_ids[position] = rng.choice(choices)
        is_open[position] = False
    return token_ids[begin:]
