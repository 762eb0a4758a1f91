"""Denoisers whose predictions are exact, because their joint law is known: no model, milliseconds a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import SamplingParams
from hasten.diffusion.base import Helpers, Strategy
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.list_tasks import Question, is_correct, sample_questions
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.trace import DiffusionStats, Record

GREEDY = SamplingParams()

Floats = NDArray[np.float64]


class Oracle:
    """A denoiser that is told the law of every place. The mask token is the id after the words.

    What positions before the last ``length`` hold (a prompt) does not matter.
    """

    def __init__(self, num_words: int, length: int, eos_ids: tuple[int, ...] = ()) -> None:
        self.num_words, self.length = num_words, length
        self.spec = DenoiserSpec(mask_id=num_words, eos_ids=eos_ids)
        self.vocab_size = num_words + 1
        self.max_length = None
        self.queries: list[list[Query]] = []
        """of every forward pass"""
        self._known: dict[bytes, torch.Tensor] = {}

    def open(self, lengths: Sequence[int], *, keeps_rows: bool) -> Oracle:
        return self

    def forward(self, queries: Sequence[Query]) -> list[Prediction]:
        self.queries.append(list(queries))
        return [self._predict(query) for query in queries]

    def _predict(self, query: Query) -> Prediction:
        first = len(query.token_ids) - self.length
        text = query.token_ids[first:]
        if text.tobytes() not in self._known:
            self._known[text.tobytes()] = self._logits(text)
        return Prediction(query.wanted, self._known[text.tobytes()][torch.from_numpy(query.wanted - first)])

    def _logits(self, text: Ids) -> torch.Tensor:
        """[length, vocab]"""
        logits = np.full((self.length, self.vocab_size), -np.inf)
        with np.errstate(divide="ignore"):
            logits[:, : self.num_words] = np.log(self.laws(text, np.arange(self.length)))
        return torch.from_numpy(logits)

    def laws(self, text: Ids, places: Ids) -> Floats:
        """[places, words]: of each place, given every other written token; even where that is impossible."""
        return np.array([self.law(text, int(place)) for place in places]).reshape(len(places), self.num_words)

    def law(self, text: Ids, place: int) -> Floats:
        """[words]: of one place."""
        return self.laws(text, np.array([place]))[0]


def _normalised(weights: Floats) -> Floats:
    """[..., words]; even where all are 0."""
    total = weights.sum(-1, keepdims=True)
    return np.where(total == 0, 1 / weights.shape[-1], weights / np.where(total == 0, 1, total))


class JointOracle(Oracle):
    """Knows the probability of every text of a fixed length; ``probs``: [words] * length."""

    def __init__(self, probs: Floats, eos_ids: tuple[int, ...] = ()) -> None:
        super().__init__(probs.shape[0], probs.ndim, eos_ids)
        self.probs = probs / probs.sum()

    def law(self, text: Ids, place: int) -> Floats:
        index = tuple(
            slice(None) if place == other or token == self.num_words else int(token)
            for other, token in enumerate(text)
        )
        rest = self.probs[index]
        kept = sum(isinstance(one, slice) for one in index[:place])
        return _normalised(rest.sum(tuple(axis for axis in range(rest.ndim) if axis != kept)))


class MarkovOracle(Oracle):
    """Texts of a hidden Markov chain of any length, exact by the forward-backward recursion.

    ``start`` [states], ``transition`` [states, next states], ``emission`` [states, words]; the identity
    as emission makes it a plain Markov chain.
    """

    def __init__(self, start: Floats, transition: Floats, emission: Floats, length: int) -> None:
        super().__init__(emission.shape[1], length)
        self.start, self.transition, self.emission = start, transition, emission

    def laws(self, text: Ids, places: Ids) -> Floats:
        seen = np.ones((self.length, len(self.start)))
        written = text != self.num_words
        seen[written] = self.emission[:, text[written]].T
        before = np.empty_like(seen)  # of the state, given what is written before a place
        before[0] = self.start
        after = np.ones_like(seen)  # how likely what is written after a place is, up to a factor
        for place in range(1, self.length):
            before[place] = _normalised((before[place - 1] * seen[place - 1]) @ self.transition)
            back = self.length - 1 - place
            after[back] = _normalised(self.transition @ (seen[back + 1] * after[back + 1]))
        return _normalised((before[places] * after[places]) @ self.emission)

    @property
    def joint(self) -> JointOracle:
        """The same law, written out."""
        probs = np.zeros((self.num_words,) * self.length)
        for text in np.ndindex(probs.shape):
            state = self.start * self.emission[:, text[0]]
            for token in text[1:]:
                state = (state @ self.transition) * self.emission[:, token]
            probs[text] = state.sum()
        return JointOracle(probs)


def random_chain(
    seed: int, num_words: int = 4, length: int = 24, num_states: int | None = None, concentration: float = 0.2
) -> MarkovOracle:
    """A Markov chain, or with ``num_states`` a hidden one."""
    random = np.random.default_rng(seed)
    states = num_states or num_words

    def rows(count: int, width: int) -> Floats:
        return random.dirichlet(np.full(width, concentration), count)

    emission = rows(num_states, num_words) if num_states else np.eye(num_words)
    return MarkovOracle(random.dirichlet(np.ones(states)), rows(states, states), emission, length)


class TextsOracle(Oracle):
    """Equally likely texts, int64 [texts, length], and no others."""

    def __init__(self, texts: Ids, num_words: int) -> None:
        super().__init__(num_words, texts.shape[1])
        self.texts = texts

    def laws(self, text: Ids, places: Ids) -> Floats:
        misses = (text != self.num_words) & (self.texts != text)
        elsewhere = misses.sum(1)[:, None] - misses[:, places]
        words = self.texts[:, places, None] == np.arange(self.num_words)
        return _normalised((words & (elsewhere == 0)[:, :, None]).sum(0).astype(float))


class ListTaskOracle(TextsOracle):
    """The ideal denoiser of one question: every right answer is equally likely.

    The letter that a task adds has the last id, so that the letters of the list win ties.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.words = [*question.items, *([question.item] if question.item else [])]
        answers = [[self.words.index(item) for item in answer] for answer in question.answers()]
        super().__init__(np.array(answers), len(self.words))

    def is_right(self, token_ids: Sequence[int]) -> bool:
        return is_correct(self.question, " ".join(self.words[token_id] for token_id in token_ids))


def list_task(name: str, size: int, seed: int = 0) -> ListTaskOracle:
    """The oracle of a question about a list of that many letters."""
    return ListTaskOracle(sample_questions(name, 1, seed, size, size)[0])


class ScriptedOracle(Oracle):
    """Predicts what it was given, float [forward passes, length, words]: logits; the last again and again."""

    def __init__(self, logits: Floats) -> None:
        super().__init__(logits.shape[2], logits.shape[1])
        self.logits = logits

    def _predict(self, query: Query) -> Prediction:
        script = self.logits[min(len(self.queries), len(self.logits)) - 1]
        first = len(query.token_ids) - self.length
        logits = np.full((len(query.wanted), self.vocab_size), -np.inf)
        logits[:, : self.num_words] = script[query.wanted - first]
        return Prediction(query.wanted, torch.from_numpy(logits))


def random_joint(seed: int, num_words: int = 3, length: int = 5, concentration: float = 0.05) -> JointOracle:
    """A joint law that is mostly concentrated on a few texts."""
    random = np.random.default_rng(seed)
    return JointOracle(
        random.dirichlet(np.full(num_words**length, concentration)).reshape((num_words,) * length)
    )


@dataclass
class Written:
    """One text, and how it came about."""

    token_ids: list[int]
    """the canvas without its prompt"""
    stats: DiffusionStats
    records: list[Record] = field(repr=False)


def write(
    denoiser: object,
    strategy: str | Strategy,
    *,
    length: int | None = None,
    prompt: Sequence[int] = (),
    params: SamplingParams = GREEDY,
    seed: int = 0,
    helpers: Helpers = Helpers(),
    canvas: Canvas | None = None,
) -> Written:
    """One canvas, by default ``length`` positions after a prompt, written by a strategy or its text."""
    spec, vocab_size = denoiser.spec, denoiser.vocab_size  # type: ignore[attr-defined]
    if isinstance(strategy, str):
        strategy = parse_strategy(strategy, spec, helpers)
    noise = noise_source(spec, vocab_size, seed, 0)
    num_open = length or denoiser.length  # type: ignore[attr-defined]
    canvas = canvas or Canvas.after(prompt, noise(np.arange(num_open), 0))
    strategy.check_canvas(canvas)
    writing = Writing(canvas, strategy, Drawing(params, seed), noise)
    records = [record for step in denoise(denoiser, [writing]) for record in step]  # type: ignore[arg-type]
    return Written(canvas.token_ids[len(prompt) :].tolist(), writing.stats, records)
