"""The logits of a tree's rows as verification and drafters read them: what was found in them, and themselves.

With real vocabularies the logits of a step are megabytes, and nearly always only their best tokens are
wanted. So whoever reads logits asks for those, and a pass that was told beforehand (``Draw``, ``top_k``) has
found them while it computed the logits. As a whole they are there for whoever reads them.

``Logits`` is the reference: it holds a tensor and looks through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import LogitRows, TokenSampler, TopCandidates
from hasten.finding import NO_NOISE, Found, Search, look_through, nothing_found
from hasten.noise import NoiseKey, gumbel_noise
from hasten.transfers import staged, to_host


@dataclass(frozen=True, slots=True)
class Draw:
    """How the tokens of some rows are drawn, where that is known before their logits are.

    The token of a row has the largest logit / temperature + noise of its position. Where ``num_best`` is
    given, only that many of the best tokens take part, and those that equal the last of them. Temperature 0
    is greedy.
    """

    positions: NDArray[np.int64]
    """[rows], of the tokens that are drawn"""
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0
    num_best: int | None = None

    @property
    def is_noisy(self) -> bool:
        """Whether every token of the vocabulary has its noise."""
        return self.temperature > 0 and self.num_best is None

    def key(self, row: int) -> NoiseKey:
        return NoiseKey(self.seed, self.sample, int(self.positions[row]))


GREEDY = Draw(np.empty(0, np.int64))
"""Of rows anywhere."""


@runtime_checkable
class ForeseenSampler(TokenSampler, Protocol):
    """A sampler that can tell before a pass how it will draw."""

    def foresee(self, positions: NDArray[np.int64]) -> Draw | None:
        """How tokens at these positions [rows] are drawn; None where that takes the logits as a whole."""
        ...


class Tokens(NamedTuple):
    """Tokens and their scores, best first; a row whose logits hold NaN has scores that are NaN."""

    token_ids: NDArray[np.int64]
    scores: NDArray[np.floating]


class Logits:
    """Logits of the rows of one tree, root first.

    Args:
        rows: [rows, vocab], or a function that gives them; then ``shape`` says their shape.
    """

    def __init__(
        self, rows: torch.Tensor | Callable[[], torch.Tensor], shape: tuple[int, int] | None = None
    ) -> None:
        self._rows = rows
        self.shape: tuple[int, int] = shape or tuple(rows.shape)  # type: ignore[union-attr]
        self._best: Tokens | None = None
        self._top: Tokens | None = None
        self._candidates: TopCandidates | None = None
        self._drawn: tuple[Draw, Tokens] | None = None
        self.hidden: dict[int, torch.Tensor] = {}
        """[rows, hidden] of each layer that the pass was asked for, counted as transformers counts hidden
        states: 0 is what the first layer is given, the last is what the head reads"""

    @staticmethod
    def of(logits: LogitRows) -> Logits:
        """As they are, or a tensor [rows, vocab] to be looked through."""
        if isinstance(logits, torch.Tensor):
            return Logits(logits)
        assert isinstance(logits, Logits)
        return logits

    def whole(self) -> torch.Tensor:
        """[rows, vocab], on the target's device; to be read before the next pass."""
        if not isinstance(self._rows, torch.Tensor):
            self._rows = self._rows()
        return self._rows

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | list[int] | slice) -> torch.Tensor:
        return self.whole()[rows]

    def best(self) -> Tokens:
        """[rows]: the likeliest token of each row, of equal ones that with the smallest id, and its logit."""
        if self._best is None:
            self._best = _largest(self.whole(), wait=True)
        return self._best

    def top(self, k: int) -> Tokens:
        """[rows, k]: the k likeliest tokens of each row (all, where there are fewer) and their logits."""
        if self._top is None or self._top.token_ids.shape[1] < min(k, self.shape[1]):
            self._top = _likeliest(self.whole(), k, wait=True)
        return Tokens(self._top.token_ids[:, :k], self._top.scores[:, :k])

    def candidates(self, k: int) -> TopCandidates:
        """The k likeliest tokens of each row and their probabilities."""
        found = self._candidates
        if found is None or found.token_ids.shape[1] < min(k, self.shape[1]):
            found = self._candidates = top_candidates(self.whole(), k)
        return TopCandidates(found.token_ids[:, :k], found.probs[:, :k])

    def drawn(self, row: int, key: NoiseKey, temperature: float) -> tuple[int, float]:
        """The token with the largest logit / temperature + noise, and that score; NaN if there is a NaN."""
        if self._drawn is not None:
            draw, found = self._drawn
            if draw.key(row) == key and draw.temperature == temperature:
                return int(found.token_ids[row]), float(found.scores[row])
        draw = Draw(np.array([key.position]), temperature, key.seed, key.sample)
        found = _with_noise(self.whole()[row][None], draw, wait=True)
        return int(found.token_ids[0]), float(found.scores[0])

    def ask(self, draw: Draw | None) -> None:
        """Start to find what this draw will read, without waiting for the device."""
        if draw is None:
            return
        if draw.is_noisy:
            self._drawn = draw, _with_noise(self.whole(), draw, wait=False)
        elif draw.num_best is None:
            self._best = _largest(self.whole(), wait=False)
        else:
            self._top = _likeliest(self.whole(), draw.num_best + 1, wait=False)


def search_for(
    draws: AbstractSequence[Draw | None], counts: AbstractSequence[int], top_k: int, vocab_size: int
) -> Search:
    """What a pass has to look for: its first ``counts[0]`` rows are drawn as ``draws[0]`` says, and so on."""
    size = max(1, top_k, *(1 + draw.num_best for draw in draws if draw and draw.num_best))
    places: dict[NoiseKey, int] = {}
    noises, temperatures = np.full(sum(counts), NO_NOISE, np.int64), np.ones(sum(counts), np.float32)
    start = 0
    for draw, count in zip(draws, counts, strict=True):
        if draw is not None and draw.is_noisy:
            keys = (draw.key(row) for row in range(count))
            noises[start : start + count] = [places.setdefault(key, len(places)) for key in keys]
            temperatures[start : start + count] = draw.temperature
        start += count
    words = [key.words() for key in places]
    return Search(
        size=min(size, vocab_size),
        weighs=top_k > 0,
        vocab_size=vocab_size,
        noises=noises,
        temperatures=temperatures,
        keys=np.stack(words) if words else np.empty((0, 5), np.uint32),
    )


def found_by(
    search: Search, found: Found, rows: slice, draw: Draw | None, read: Callable[[], torch.Tensor]
) -> Logits:
    """Logits of some rows of a pass that looked for something; ``read`` gives them as a whole."""
    token_ids, values = found.token_ids[0, rows], found.values[0, rows]
    logits = Logits(read, (len(token_ids), search.vocab_size))
    logits._best, logits._top = Tokens(token_ids[:, 0], values[:, 0]), Tokens(token_ids, values)
    if search.weighs:
        logits._candidates = TopCandidates(token_ids, found.probs[rows])
    if draw is not None and draw.is_noisy:
        logits._drawn = draw, Tokens(found.noisy_ids[0, rows], found.noisy_values[0, rows])
    return logits


def ask_all(logits: list[Logits], draws: AbstractSequence[Draw | None], top_k: int) -> None:
    """Start to find what a step will read of a batch; it is there when the device has been waited for."""
    for one, draw in zip(logits, draws, strict=True):
        one.ask(draw)
    if not top_k:
        return
    rows = [one.whole() for one in logits]
    found = top_candidates(torch.cat(rows) if len(rows) > 1 else rows[0], top_k, wait=False)
    start = 0
    for one in logits:
        one._candidates = found.rows(start, start + len(one))
        start += len(one)


def top_candidates(logits: torch.Tensor, k: int, *, wait: bool = True) -> TopCandidates:
    """The k best tokens and their probabilities for every row of logits [rows, vocab].

    Without ``wait``, what a GPU computes is there once it has been waited for.
    """
    size = min(k, logits.shape[-1])
    if logits.device.type == "cpu":
        search = search_for([None], [len(logits)], size, logits.shape[-1])
        found = _look_through(logits, search)
        return TopCandidates(found.token_ids[0], found.probs)
    logits = logits.float()
    token_ids = torch.topk(logits, size, dim=-1).indices
    probs = torch.softmax(logits, -1).gather(-1, token_ids)
    return TopCandidates(to_host(token_ids, wait=wait).numpy(), to_host(probs, wait=wait).numpy())


def _largest(scores: torch.Tensor, *, wait: bool) -> Tokens:
    best = scores.max(-1)  # a NaN anywhere in a row is its maximum
    values = best.values.float() if best.values.dtype == torch.bfloat16 else best.values
    return Tokens(to_host(best.indices, wait=wait).numpy(), to_host(values, wait=wait).numpy())


def _likeliest(logits: torch.Tensor, k: int, *, wait: bool) -> Tokens:
    size = min(k, logits.shape[-1])
    if logits.device.type == "cpu":
        search = search_for([None], [len(logits)], size, logits.shape[-1])._replace(weighs=False)
        found = _look_through(logits, search)
        return Tokens(found.token_ids[0], found.values[0])
    best = torch.topk(logits.float(), size, dim=-1)
    return Tokens(to_host(best.indices, wait=wait).numpy(), to_host(best.values, wait=wait).numpy())


def _with_noise(logits: torch.Tensor, draw: Draw, *, wait: bool) -> Tokens:
    if logits.device.type == "cpu":
        found = _look_through(logits, search_for([draw], [len(logits)], 0, logits.shape[-1]))
        return Tokens(found.noisy_ids[0], found.noisy_values[0])
    distinct, noises = np.unique(draw.positions, return_inverse=True)
    noise = np.stack([gumbel_noise(draw.seed, draw.sample, int(one), logits.shape[-1]) for one in distinct])
    of_positions, index = (
        staged(each, logits.device).to(logits.device, non_blocking=True) for each in (noise, noises)
    )
    return _largest(logits.float() / draw.temperature + of_positions[index], wait=wait)


def _look_through(logits: torch.Tensor, search: Search) -> Found:
    found = nothing_found(search)
    look_through(logits.detach().float().contiguous().numpy(), search, found)
    return found
