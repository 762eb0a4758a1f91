"""Checks hasten's texts on a model against transformers' own ``generate``: every forward, drafter and batch.

Two paths of hasten that agree may both be wrong, so another program writes what they are compared with:
greedy, or with hasten's noise added by a logits processor. Texts that part are judged by agreement.py.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from hasten.bench.agreement import Agreement, compare, judge_of, most_partings, replayed
from hasten.core import SamplingParams
from hasten.errors import ConfigError, HastenError
from hasten.sampling import Sampler
from hasten.text.engine import LanguageModel
from hasten.text.loading import load

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

_MOST_NOISE = 1.5
"""A forward may be so many times as far from float32 as transformers' own layers of this precision are."""
_EXACT_NOISE = 1e-4
"""By how much float32 scores may differ, as a share of how much they vary over the vocabulary."""
_ROWS = 8
"""of the passes by which a forward is asked for its scores"""


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
    worst: float
    """the furthest that a token, or the scores, are off, as a share of what rounding explains"""
    problem: str = ""


class Transformers:
    """What transformers itself writes, and its judgement of other texts.

    Args:
        folder: a checkpoint.
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, folder: str, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.judge = judge_of(
            self.model, lambda wider: AutoModelForCausalLM.from_pretrained(folder, dtype=wider)
        )
        self._texts: dict[tuple[Any, ...], list[int]] = {}
        self._chances: dict[tuple[Any, ...], float] = {}

    @torch.inference_mode()
    def text(self, prompt_ids: list[int], params: SamplingParams, seed: int) -> list[int]:
        """The new tokens of ``generate``, with its loop, caches and masks; noise is added to its scores."""
        key = _key(prompt_ids, params, seed)
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

    def chance_to_part(self, prompt_ids: list[int], params: SamplingParams, seed: int) -> float:
        """That rounding alone makes another text part from this one."""
        key = _key(prompt_ids, params, seed)
        if key not in self._chances:
            text = self.text(prompt_ids, params, seed)
            self._chances[key] = self.judge.check(prompt_ids, text, params, seed).chance
        return self._chances[key]


def _key(prompt_ids: list[int], params: SamplingParams, seed: int) -> tuple[Any, ...]:
    """What a text depends on."""
    return *prompt_ids, params.temperature, params.max_new_tokens, seed if params.temperature else None


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
            language_model = load(self.folder, dtype=self.dtype, forward=forward, prefix_cache=0)
        except ConfigError as refusal:
            yield Finding(Case(self.dtype, forward, "refused", str(refusal), 0), 0, 0, 0.0)
            return
        yield self._scores(language_model, forward)
        for drafter, sampling, batch in itertools.product(drafters, samplings, batches):
            yield self._finding(language_model, Case(self.dtype, forward, drafter, sampling, batch))
        del language_model
        gc.collect()

    def _scores(self, language_model: LanguageModel, forward: str) -> Finding:
        """Chains along the text of transformers: how far are the scores of this forward from wider ones?"""
        prompt_ids = self.prompt_ids[0]
        text = self.reference.text(prompt_ids, self._params, 0)
        judged = self.reference.judge.judge(prompt_ids, text[:-1], len(text))
        own = replayed(language_model.target, _ROWS)(prompt_ids, text[:-1], len(text))
        error = _rms(own - judged.precise)
        if self.dtype == "float32":
            allowed = _EXACT_NOISE * float(judged.precise.std(-1).mean())
        else:
            allowed = _MOST_NOISE * _rms(judged.rounded - judged.precise)
        mode = language_model.target.probe.mode
        case = Case(self.dtype, forward, "scores", f"mode {mode}", 1)
        problem = (
            "" if error <= allowed else f"scores are off by {error:.3g}, rounding explains {allowed:.3g}"
        )
        return Finding(case, 0, 0, error / allowed, problem)

    def _finding(self, language_model: LanguageModel, case: Case) -> Finding:
        params = replace(self._params, temperature=SAMPLINGS[case.sampling], seed=7)
        found: list[Agreement] = []
        texts: list[tuple[list[int], int]] = []
        try:
            for at in range(0, len(self.prompt_ids), case.batch):
                prompts = self.prompt_ids[at : at + case.batch]
                outputs = language_model.generate(
                    prompts, params, drafter=case.drafter, batch_size=case.batch
                )
                for prompt_ids, output in zip(prompts, outputs, strict=True):
                    texts.append((prompt_ids, output.seed))
                    found.append(self._agreement(prompt_ids, output.token_ids, params, output.seed))
        except HastenError as error:
            return Finding(case, len(self.prompt_ids), 0, 0.0, f"{type(error).__name__}: {error}")
        num_same = sum(agreement.verdict == "same" for agreement in found)
        worst = max((each.gap / each.noise for each in found if each.noise), default=0.0)
        wrong = next((each for each in found if each.verdict == "different"), None)
        problem = ""
        if wrong is not None:
            problem = (
                f"token {wrong.position}: {wrong.gap:.3g} below the best, rounding explains {wrong.noise:.3g}"
            )
        elif num_same < len(found):  # as many as this, by rounding?
            chances = [self.reference.chance_to_part(ids, params, seed) for ids, seed in texts]
            most = most_partings(chances)
            if len(found) - num_same > most:
                problem = f"{len(found) - num_same} of {len(found)} texts part, rounding explains {most:.1f}"
        return Finding(case, len(found), num_same, worst, problem)

    def _agreement(
        self, prompt_ids: list[int], token_ids: list[int], params: SamplingParams, seed: int
    ) -> Agreement:
        expected = self.reference.text(prompt_ids, params, seed)
        judge = self.reference.judge
        return compare(prompt_ids, expected, token_ids, judge=judge, params=params, seed=seed)


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
