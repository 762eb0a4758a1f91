"""Decides whether texts are what the model writes, and whether two that differ part by rounding only.

One row and many rows are multiplied in a different order, so their logits differ in the last bits, and at a
near tie texts part. The judge is transformers' own, untouched model, in the texts' dtype and in a wider one:
how far the two are apart is the rounding. A text is right where each of its tokens, read by the judge after
those before it, is the best one up to the rounding, in both dtypes; where two texts part, also by the passes
of the program that wrote them. A broken pass is thereby no judge of itself. Errors too small to be caught by
one token are caught by their number: a method whose texts part more often than the rounding explains has
failed, whatever its excuses (``most_partings``).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hasten.core import Acceptance, SamplingParams
from hasten.models.target import Target
from hasten.sampling import Sampler
from hasten.tree import DraftTree

Verdict = Literal["same", "near tie", "different"]

LogitsAfter = Callable[[list[int], list[int]], Tensor]
"""(prompt token ids, written token ids) -> float32 [vocab], the logits of the next token"""

Scores = Callable[[list[int], list[int], int], Tensor]
"""(prompt token ids, written token ids, count) -> [count, vocab], after each of the last ``count`` tokens"""

OWN_ROWS = (1, 16)
"""Rows of the passes by which a program is asked for its own scores: plain decoding's, and a draft tree's."""

_NUM_CANDIDATES = 256
"""The rounding is measured over so many of the best tokens: the others are never chosen."""
_DEVIATIONS = 5
"""A gap between two tokens of so many standard deviations is no rounding."""
_MOST_OF_EXACT = 1e-4
"""Of the largest logit: what is excused at most in float32 and float64, whatever was measured."""
_ROUGH = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
"""dtype -> the wider one; float64 for all others"""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a text agrees with another one, or with what the judge would write.

    Where they differ: since which position; how far a token is below the best one there, by the score that is
    hardest on it; and how much of that rounding explains.
    """

    verdict: Verdict
    position: int | None = None
    gap: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of consecutive positions of a text: logits, and their rounding."""

    precise: Tensor
    """float64 [positions, vocab], in the wider dtype"""
    rounded: Tensor
    """the same in the dtype of the texts"""
    noise: Tensor
    """float64 [positions]: the standard deviation of one logit's rounding"""


@dataclass(frozen=True, slots=True)
class Check:
    """One text, read by the judge."""

    agreement: Agreement
    """with what the judge would write in the wider dtype; "different" where a token is not excused"""
    chance: float
    """that rounding alone makes another text part from this one"""


class Judging(Protocol):
    """A Judge, or one in another process."""

    def judge(self, prompt_ids: list[int], written: list[int], count: int = 1) -> Judgement: ...

    def check(self, prompt_ids: list[int], text: list[int], params: SamplingParams, seed: int) -> Check: ...


@dataclass(frozen=True, slots=True)
class Judge:
    """A stock model, which shares nothing with what is judged, and the same in a wider dtype."""

    dtype: torch.dtype
    """of the texts"""
    rounded: Scores
    """in the dtype of the texts"""
    precise: Scores
    """in float32; for float32 in float64"""

    def judge(self, prompt_ids: list[int], written: list[int], count: int = 1) -> Judgement:
        """Of the token after these and of the ``count - 1`` before it; teacher-forced."""
        precise = self.precise(prompt_ids, written, count).double()
        rounded = self.rounded(prompt_ids, written, count).double()
        best = precise.topk(min(_NUM_CANDIDATES, precise.shape[-1]), -1).indices
        noise = (rounded - precise).gather(-1, best).std(-1, correction=0)
        if is_exact(self.dtype):
            largest = precise.abs().amax(-1)
            step = torch.finfo(self.dtype).eps * largest
            noise = torch.minimum(torch.maximum(noise, step), largest * _MOST_OF_EXACT / _DEVIATIONS)
        return Judgement(precise, rounded, noise)

    def check(self, prompt_ids: list[int], text: list[int], params: SamplingParams, seed: int) -> Check:
        """Whether every token of a text is the one that the stock model writes after those before it.

        For the chance to part: at every position the best two tokens are apart by a gap, which two passes
        change by independent normal errors; texts part where one pass changes the order and the other does
        not.

        Args:
            params, seed: how the text was drawn; tokens are judged by the scores with their noise.
        """
        if not text:
            return Check(Agreement("same"), 0.0)
        found = self.judge(prompt_ids, text[:-1], len(text))
        noises = (found.noise / (params.temperature or 1.0)).tolist()
        sampler, stays, result = Sampler(params, seed, 0), 1.0, Agreement("same")
        for row, (token_id, noise) in enumerate(zip(text, noises, strict=True)):
            before = [*prompt_ids, *text[:row]]
            precise, rounded = (
                sampler.scores(logits[row].float(), before) for logits in (found.precise, found.rounded)
            )
            best = precise.topk(2).values
            flip = _chance_of_flip(float(best[0] - best[1]), noise)
            stays *= 1 - 2 * flip * (1 - flip)
            gap = max(_below_best(precise, token_id), _below_best(rounded, token_id))
            if not gap <= _allowed(noise):
                if result.verdict != "different":
                    result = Agreement("different", row, gap, _allowed(noise))
            elif result.verdict == "same" and int(precise.argmax()) != token_id:
                result = Agreement("near tie", row, gap, _allowed(noise))
        return Check(result, 1 - stays)


def judge_of(rounded: Any, load_precise: Callable[[torch.dtype], Any]) -> Judge:
    """A judge by transformers' model and what is loaded in the wider dtype, when it is first asked."""
    load = functools.cache(load_precise)
    dtype: torch.dtype = rounded.dtype
    return Judge(
        dtype,
        lambda prompt_ids, written, count: teacher_forced(rounded, [*prompt_ids, *written], count),
        lambda prompt_ids, written, count: teacher_forced(load(wider(dtype)), [*prompt_ids, *written], count),
    )


def own_judge(target: Target) -> Judge:
    """For models that transformers does not run: their own passes of one row, and of many, judge the rest."""
    return Judge(target.dtype, replayed(target, OWN_ROWS[-1]), replayed(target, OWN_ROWS[0]))


def wider(dtype: torch.dtype) -> torch.dtype:
    return _ROUGH.get(dtype, torch.float64)


def is_exact(dtype: torch.dtype) -> bool:
    """Whether the dtype leaves next to no room for rounding."""
    return torch.finfo(dtype).eps < 1e-5


def compare(
    prompt_ids: list[int],
    one: list[int],
    other: list[int],
    *,
    judge: Judging,
    own: AbstractSequence[LogitsAfter] = (),
    params: SamplingParams,
    seed: int,
) -> Agreement:
    """Compare two texts that should be the same; the first one is taken to be checked already.

    They may part where both tokens are the best ones up to the rounding, by the judge and by every way of
    ``own``; what the other text holds afterwards must be right by the judge.

    Args:
        one, other: their token ids.
        judge: stock transformers, by which the rounding is measured; asked only where the texts part.
        own: ways in which the programs that wrote the texts compute logits, as far as they can be asked.
        params, seed: how both texts were drawn.
    """
    position = first_difference(one, other)
    if position is None:
        return Agreement("same")
    if position == min(len(one), len(other)):  # one of them ended without a token of its own to say so
        return Agreement("different", position)
    common = one[:position]
    found = judge.judge(prompt_ids, common)
    noise = _allowed(float(found.noise) / (params.temperature or 1.0))
    sampler, gap = Sampler(params, seed, 0), 0.0
    for way in (lambda *_: found.precise[0], lambda *_: found.rounded[0], *own):
        scores = sampler.scores(way(prompt_ids, common).float(), [*prompt_ids, *common])
        gap = max(gap, *(_below_best(scores, text[position]) for text in (one, other)))
        if not gap <= noise:
            return Agreement("different", position, gap, noise)
    rest = judge.check(prompt_ids, other, params, seed).agreement
    return rest if rest.verdict == "different" else Agreement("near tie", position, gap, noise)


def _below_best(scores: Tensor, token_id: int) -> float:
    return float(scores.max() - scores[token_id])


def _allowed(noise: float) -> float:
    """A gap between two scores that their rounding explains; ``noise`` is the standard deviation of one."""
    return _DEVIATIONS * math.sqrt(2) * noise


def _chance_of_flip(gap: float, noise: float) -> float:
    """That normal errors of two scores turn the order of two tokens."""
    return 0.5 * math.erfc(gap / (2 * noise)) if noise else 0.5 * (gap == 0)


def first_difference(one: AbstractSequence[int], other: AbstractSequence[int]) -> int | None:
    """The first position at which two texts differ, one's end included; None for equal ones."""
    if list(one) == list(other):
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def most_partings(chances: AbstractSequence[float]) -> float:
    """How many of some texts may part at most, each of which does so by rounding with its chance.

    Three standard deviations above what is expected, and one text more, as the chances are estimates.
    """
    deviation = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    return sum(chances) + 3 * deviation + 1


def teacher_forced(model: Any, token_ids: list[int], count: int) -> Tensor:
    """Of a transformers model, [count, vocab]: logits after the last ``count`` tokens, in one pass."""
    options = {"logits_to_keep": count} if "logits_to_keep" in _parameters(type(model)) else {}
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids], device=model.device), use_cache=False, **options).logits
    found: Tensor = logits[0, -count:].cpu()
    return found


def _parameters(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)  # type: ignore[attr-defined]


def replay(target: Target, num_rows: int, companions: AbstractSequence[list[int]] = ()) -> LogitsAfter:
    """As ``replayed``, for the next token alone."""
    scores = replayed(target, num_rows, companions)
    return lambda prompt_ids, written: scores(prompt_ids, written, 1)[0]


def replayed(target: Target, num_rows: int, companions: AbstractSequence[list[int]] = ()) -> Scores:
    """The way to compute logits that decoding with ``num_rows`` rows a step takes, rows and cache alike.

    Args:
        companions: the prompts that were answered side by side with this one. They take part with the same
            tokens: what the other rows of a pass hold does not matter, how many there are does.
    """
    batch = 1 + len(companions)

    def scores(prompt_ids: list[int], written: list[int], count: int) -> Tensor:
        session = target.open()
        session.prefill([prompt_ids, *companions])
        rows: list[Tensor] = []
        while len(rows) < len(written):
            known = written[len(rows) : len(rows) + num_rows]
            tree = session.fit(DraftTree.chain(known[:-1]))
            gained = known[: len(tree) + 1]
            rows += session.forward([tree] * batch)[0][: len(gained)].float().cpu().unbind()
            session.keep([Acceptance(list(range(len(tree))), gained) for _ in range(batch)])
        longest = max(map(len, (prompt_ids, *companions))) + len(written)
        room = max(0, (target.max_length or longest + num_rows) - longest)
        filler = session.fit(DraftTree.chain([0] * min(num_rows - 1, room)))
        rows.append(session.forward([filler] * batch)[0][0].float().cpu())
        return torch.stack(rows[-count:])

    return scores
