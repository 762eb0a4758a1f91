"""Checks hasten's texts on a model against transformers' own ``generate``: every forward, drafter and batch.

Two paths of hasten that agree may both be wrong, so what judges here is another program. Its text is written
by its own loop, greedy or with hasten's noise added by a logits processor. Where a text parts from it, every
token from there on is judged by passes of transformers over the text itself: it has to be the best one up to
rounding, which is measured as the distance between the scores of this precision and those of float32.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from hasten.core import Acceptance, SamplingParams
from hasten.engine import LanguageModel, load
from hasten.errors import ConfigError, HastenError
from hasten.models.target import Target
from hasten.sampling import Sampler
from hasten.tree import DraftTree

PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "Once upon a time, in a small village by the sea, there lived",
    "Question: A train travels 60 miles in 1.5 hours. What is its average speed?\nAnswer:",
    "The main differences between a list and a tuple in Python are:\n1.",
)
FORWARDS = ("stock", "packed", "compiled")
DRAFTERS = ("off", "auto", "suffix", "token-recycling", "lookahead")
SAMPLINGS = {"greedy": 0.0, "T=0.8": 0.8}
"""name -> temperature"""
BATCHES = (1, 4)

_ROUNDING_UNITS = 8.0
"""Of the root mean square of what rounding does to a score: where more lie between two tokens, which of
them is better is no matter of rounding. Over a vocabulary of 262,144, the largest error is 5 of them."""
_MOST_NOISE = 1.5
"""A forward may be so many times as far from float32 as transformers' own layers of this precision are."""
_MOST_PARTED = 0.5
_EXACT_NOISE = 1e-4
"""By how much float32 scores may differ, as a share of how much they vary over the vocabulary."""
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One way to write the texts."""

    dtype: str
    forward: str
    drafter: str
    sampling: str
    batch: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a case; ``problem`` is empty where its texts are right."""

    case: Case
    num_texts: int
    num_same: int
    """texts equal to those of transformers, token for token"""
    worst_gap: float
    """the furthest that a token was from the best one, in units of the rounding noise there"""
    problem: str = ""


class Transformers:
    """What transformers itself writes, and how it scores a text.

    Args:
        folder: a checkpoint.
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, folder: str, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._texts: dict[tuple[Any, ...], list[int]] = {}

    @torch.inference_mode()
    def text(self, prompt_ids: list[int], params: SamplingParams, seed: int) -> list[int]:
        """The new tokens of ``generate``, with its loop, caches and masks; noise is added to its scores."""
        key = (
            *prompt_ids,
            None,
            params.temperature,
            params.max_new_tokens,
            seed if params.temperature else 0,
        )
        if key not in self._texts:
            input_ids = torch.tensor([prompt_ids])
            written = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=params.max_new_tokens,
                logits_processor=[_Noise(params, seed)] if params.temperature else [],
                pad_token_id=0,
            )
            self._texts[key] = written[0, len(prompt_ids) :].tolist()
        return self._texts[key]

    @torch.inference_mode()
    def logits(self, prompt_ids: list[int], token_ids: list[int]) -> torch.Tensor:
        """float32 [tokens, vocab]: one plain pass over prompt and text."""
        every = torch.tensor([prompt_ids + token_ids[:-1]])
        found: torch.Tensor = self.model(every, use_cache=False, logits_to_keep=len(token_ids)).logits
        return found[0, -len(token_ids) :].float()


class _Noise:
    """A logits processor that makes greedy decoding of transformers draw with hasten's noise."""

    def __init__(self, params: SamplingParams, seed: int) -> None:
        self._temperature = params.temperature
        self._sampler = Sampler(replace(params, temperature=1.0), seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = self._sampler.scores(torch.zeros_like(scores[0]), input_ids[0].tolist())
        return scores / self._temperature + noise


class Checker:
    """All cases of one checkpoint in one precision.

    Args:
        folder: a transformers checkpoint.
        dtype: "float32" or "bfloat16".
        prompts: texts to go on from.
        max_new_tokens: of each text.
    """

    def __init__(
        self, folder: str, dtype: str, prompts: AbstractSequence[str] = PROMPTS, max_new_tokens: int = 24
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype={dtype!r} cannot be checked; choose float32 or bfloat16")
        self.folder, self.dtype, self.prompts = folder, dtype, list(prompts)
        self._params = SamplingParams(max_new_tokens=max_new_tokens)
        self.reference = Transformers(folder, dtype)

    @cached_property
    def _precise(self) -> Transformers:
        return self.reference if self.dtype == "float32" else Transformers(self.folder, "float32")

    @cached_property
    def prompt_ids(self) -> list[list[int]]:
        return [list(self.reference.tokenizer(prompt)["input_ids"]) for prompt in self.prompts]

    def run(
        self,
        forward: str,
        drafters: AbstractSequence[str] = DRAFTERS,
        samplings: AbstractSequence[str] = tuple(SAMPLINGS),
        batches: AbstractSequence[int] = BATCHES,
    ) -> Iterator[Finding]:
        """Findings of one forward, the first about its scores; a refusal to run the model is no problem."""
        try:
            language_model = load(self.folder, dtype=self.dtype, forward=forward)
        except ConfigError as refusal:
            yield Finding(Case(self.dtype, forward, "refused", str(refusal), 0), 0, 0, 0.0)
            return
        yield self._scores(language_model, forward)
        for drafter, sampling, batch in itertools.product(drafters, samplings, batches):
            yield self._finding(language_model, Case(self.dtype, forward, drafter, sampling, batch))
        del language_model
        gc.collect()

    def _scores(self, language_model: LanguageModel, forward: str) -> Finding:
        """Trees along the text of transformers: how far are the scores of this forward from it?"""
        prompt_ids = self.prompt_ids[0]
        token_ids = self.reference.text(prompt_ids, self._params, 0)
        precise = self._precise.logits(prompt_ids, token_ids)
        own = scores_along(language_model.target, prompt_ids, token_ids)
        error = _rms(own - precise)
        if self.dtype == "float32":
            allowed = _EXACT_NOISE * float(precise.std(-1).mean())
        else:
            allowed = _MOST_NOISE * _rms(self.reference.logits(prompt_ids, token_ids) - precise)
        mode = language_model.target.probe.mode
        case = Case(self.dtype, forward, "scores", f"mode {mode}", 1)
        problem = (
            "" if error <= allowed else f"scores are {error:.3g} from float32's, {allowed:.3g} is allowed"
        )
        return Finding(case, 0, 0, error / allowed * _ROUNDING_UNITS, problem)

    def _finding(self, language_model: LanguageModel, case: Case) -> Finding:
        params = replace(self._params, temperature=SAMPLINGS[case.sampling], seed=7)
        num_same, worst = 0, 0.0
        groups = [self.prompt_ids[at : at + case.batch] for at in range(0, len(self.prompt_ids), case.batch)]
        try:
            for prompts in groups:
                outputs = language_model.generate(
                    prompts, params, drafter=case.drafter, batch_size=case.batch
                )
                for prompt_ids, output in zip(prompts, outputs, strict=True):
                    gap = self._gap(prompt_ids, output.token_ids, params, output.seed)
                    num_same += gap is None
                    worst = max(worst, gap or 0.0)
        except HastenError as error:
            return Finding(case, len(self.prompt_ids), num_same, worst, f"{type(error).__name__}: {error}")
        total = len(self.prompt_ids)
        problem = (
            "" if worst <= _ROUNDING_UNITS else f"a token is {worst:.3g} units of rounding from the best"
        )
        if not problem and self.dtype == "float32" and num_same < _MOST_PARTED * total:
            problem = f"{total - num_same} of {total} texts part in float32"
        return Finding(case, total, num_same, worst, problem)

    def _gap(
        self, prompt_ids: list[int], token_ids: list[int], params: SamplingParams, seed: int
    ) -> float | None:
        """None for the text of transformers; else how far its tokens are from the best ones."""
        expected = self.reference.text(prompt_ids, params, seed)
        if token_ids == expected:
            return None
        parted = next(
            (at for at, pair in enumerate(zip(expected, token_ids, strict=False)) if pair[0] != pair[1]), None
        )
        if parted is None:
            return float("inf")  # one ends where the other goes on
        coarse, precise = (one.logits(prompt_ids, token_ids) for one in (self.reference, self._precise))
        sampler = Sampler(params, seed)
        worst = 0.0
        for at in range(parted, len(token_ids)):
            before = [*prompt_ids, *token_ids[:at]]
            unit = max(_rms(coarse[at] - precise[at]), _EXACT_NOISE * float(precise[at].std()))
            scores = [sampler.scores(one[at], before) for one in (coarse, precise)]
            gap = max(float(one.max() - one[token_ids[at]]) for one in scores)
            worst = max(worst, gap * (params.temperature or 1.0) / unit)
        return worst


def scores_along(target: Target, prompt_ids: list[int], token_ids: list[int]) -> torch.Tensor:
    """float32 [tokens, vocab]: logits over a known text, in draft chains of 8 rows as decoding has them."""
    session = target.open()
    session.prefill([prompt_ids])
    found = []
    done = 0
    while done < len(token_ids):
        known = token_ids[done : done + _ROWS]
        tree = session.fit(DraftTree.chain(known[:-1]))
        found.append(session.forward([tree])[0][: len(tree) + 1].float().clone())
        gained = known[: len(tree) + 1]
        session.keep([Acceptance(list(range(len(tree))), gained)])
        done += len(gained)
    return torch.cat(found)[: len(token_ids)]


def _rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def check(
    folder: str,
    *,
    dtypes: AbstractSequence[str] = ("float32", "bfloat16"),
    forwards: AbstractSequence[str] = FORWARDS,
    drafters: AbstractSequence[str] = DRAFTERS,
    prompts: AbstractSequence[str] = PROMPTS,
    max_new_tokens: int = 24,
    report: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Every case of a checkpoint, reported as it is found.

    Raises ConfigError for a precision that is not float32 or bfloat16.
    """
    found = []
    for dtype in dtypes:
        checker = Checker(folder, dtype, prompts, max_new_tokens)
        for forward in forwards:
            for finding in checker.run(forward, drafters):
                report(finding)
                found.append(finding)
        del checker
        gc.collect()
    return found
