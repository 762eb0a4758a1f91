"""Laws of whole canvases by enumeration: every random decision is a fork with its probability."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch

from diffusion.exact_laws import JointOracle
from hasten.core import SamplingParams
from hasten.diffusion.canvas import Canvas, DenoiserSpec, Prediction, Query
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.laws import draw
from verify.forks import Forks

SAMPLED = SamplingParams(temperature=1.0)
WARPED = SamplingParams(temperature=0.7, top_k=2)


class CanvasOracle:
    """A random law for every place of every canvas, with no joint law behind them; it answers chains."""

    def __init__(self, seed, num_words=2, length=3, attention="full"):
        self.seed, self.num_words, self.length = seed, num_words, length
        self.spec = DenoiserSpec(mask_id=num_words, attention=attention)
        self.vocab_size, self.max_length = num_words + 1, None
        self._known = {}

    def open(self, lengths, *, keeps_rows):
        return self

    def forward(self, queries):
        return [predict(self, query) for query in queries]

    def law(self, text, place):
        key = (*text.tolist(), place)
        if key not in self._known:
            logits = np.random.default_rng((self.seed, *key)).normal(0, 1.5, self.num_words)
            self._known[key] = np.exp(logits) / np.exp(logits).sum()
        return self._known[key]


class ChainOracle(JointOracle):
    """A joint law that answers chains as an any-order model should."""

    def __init__(self, probs):
        super().__init__(probs)
        self.spec = DenoiserSpec(mask_id=self.num_words, attention="any-order")

    def _predict(self, query):
        return predict(self, query)


def predict(oracle, query: Query) -> Prediction:
    """What an oracle's ``law`` tells, of a chain in its order."""
    first = len(query.token_ids) - oracle.length
    text = query.token_ids[first:].copy()
    places = query.wanted - first
    if query.chain is not None:
        places = query.chain - first
        revealed = text[places]
        text[places] = oracle.num_words
    logits = np.full((len(places), oracle.vocab_size), -np.inf)
    for row, place in enumerate(places):
        with np.errstate(divide="ignore"):
            logits[row, : oracle.num_words] = np.log(oracle.law(text, int(place)))
        if query.chain is not None:
            text[place] = revealed[row]
    return Prediction(places + first, torch.from_numpy(logits))


class ForkedDraw(Drawing):
    """Forks instead of drawing."""

    def __init__(self, params, forks):
        super().__init__(params)
        self.forks = forks

    def __call__(self, prediction):
        if self.is_greedy:
            return prediction
        laws = self.law(prediction.logits).tolist()
        return prediction.with_tokens(np.array([self.forks.choose(law) for law in laws], dtype=np.int64))

    def generator(self, position, stream):
        return self.forks


def write_forked(oracle, strategy, params, forks, limits=None) -> tuple[int, ...]:
    if isinstance(strategy, str):
        strategy = parse_strategy(strategy, oracle.spec)
    canvas = Canvas.after((), np.full(oracle.length, oracle.spec.mask_id))
    draw = ForkedDraw(params, forks)
    writing = Writing(canvas, strategy, draw, lambda positions, forward: positions, limits=limits)
    for _ in denoise(oracle, [writing]):
        pass
    return tuple(canvas.token_ids.tolist())


def law_of(oracle, strategy, params, monkeypatch, limits=None) -> dict[tuple[int, ...], float]:
    """text -> its probability"""
    forks = Forks()

    def choose(law, generator):
        return forks.choose((law / law.sum()).tolist()) if generator is forks else draw(law, generator)

    monkeypatch.setattr("hasten.diffusion.rejection.draw", choose)
    return forks.law_of(lambda: write_forked(oracle, strategy, params, forks, limits))


def law_in_order(oracle, order, params) -> dict[tuple[int, ...], float]:
    """text -> its probability where one place after the other is drawn, in this order"""
    warped, law = Drawing(params), {}
    for text in itertools.product(range(oracle.num_words), repeat=oracle.length):
        canvas, chance = np.full(oracle.length, oracle.num_words), 1.0
        for place in order:
            with np.errstate(divide="ignore"):
                logits = torch.from_numpy(np.log(oracle.law(canvas, place))[None])
            chance *= float(warped.law(logits)[0, text[place]])
            canvas[place] = text[place]
        law[text] = chance
    return law


def order_of(strategy, spec, length) -> list[int]:
    """The order in which a strategy's selector reveals a canvas."""
    canvas = Canvas.after((), np.full(length, spec.mask_id))
    return np.argsort(parse_strategy(strategy, spec).selector.start(canvas).ravel()[:length]).tolist()


def always_kept(monkeypatch, module) -> None:
    """The negative control: whatever was drafted is written."""
    monkeypatch.setattr(f"hasten.diffusion.{module}.weighed", lambda token_id, *others: token_id)


def require_law(texts, law, *, min_count=5) -> None:
    """Chi-square of counted texts against a law, at five standard deviations."""
    counts, total = Counter(texts), len(texts)
    assert all(law.get(text, 0) > 0 for text in counts)
    likely = {text: chance for text, chance in law.items() if chance * total >= min_count}
    rest = 1 - sum(likely.values())
    cells = [(counts[text], chance * total) for text, chance in likely.items()]
    if rest * total > 1:
        cells.append((total - sum(count for count, _ in cells), rest * total))
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    degrees = len(cells) - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5, (statistic, degrees)
