"""Runs all methods on the same prompts, one after the other in changing order, and keeps every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.bench.agreement import REPLAY_ROWS, Agreement, LogitsAfter, compare, is_exact, replay
from hasten.bench.methods import BASELINES, PLAIN, Answer, HastenMethod, Method, TransformersMethod
from hasten.bench.models import OpenModel
from hasten.bench.prompts import USER_STOP, Conversation, PromptSet, chat_prompt, spread
from hasten.core import SamplingParams
from hasten.engine import LanguageModel
from hasten.errors import ConfigError, PromptError
from hasten.models.causal_lm import CausalLM

_WARM_UP_TOKENS = 32

Progress = Callable[[str, int, int], None]
"""(name of the prompt set, conversations done, conversations)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """What is measured. Plain decoding always is, as all others are judged by it."""

    methods: tuple[str, ...] = (PLAIN, "auto")
    baselines: tuple[str, ...] = ("hf",)
    max_new_tokens: int = 128
    limit: int | None = None
    temperature: float = 0.0
    seed: int = 0
    is_cold: bool = False
    repeat: int = 1

    def __post_init__(self) -> None:
        SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)
        for name, value in (("repeat", self.repeat), ("limit", 1 if self.limit is None else self.limit)):
            if value < 1:
                raise ConfigError(f"{name}={value} cannot work; it must be at least 1")
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ConfigError(f"baseline {unknown[0]!r} is unknown; choose {', '.join(BASELINES)}")
        object.__setattr__(self, "methods", tuple(dict.fromkeys((PLAIN, *self.methods))))
        object.__setattr__(self, "baselines", tuple(dict.fromkeys(self.baselines)))


@dataclass(frozen=True, slots=True)
class PromptResult:
    """All methods' answers to one prompt. An agreement is None where there is nothing to agree with."""

    prompt_set: str
    prompt: tuple[int, int]
    """index of the conversation and of the turn"""
    repetition: int
    answers: dict[str, Answer]
    agreements: dict[str, Agreement | None]


@dataclass(slots=True)
class Benchmark:
    """One run; ``results`` and ``left_out`` are up to date whenever it is interrupted.

    Raises ConfigError for an unknown method.
    """

    opened: OpenModel
    config: BenchConfig
    stock: tuple[Any, Any] | None = None
    """transformers' own model and tokenizer; needed for baselines"""
    results: list[PromptResult] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """prompts that do not fit into the context with their answer, per prompt set"""
    _methods: list[Method] = field(default_factory=list)
    _ways: dict[bool, list[LogitsAfter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target, tokenizer = self._target, self._language_model.tokenizer
        names, is_cold = self.config.methods, self.config.is_cold
        self._methods = [HastenMethod(name, target, tokenizer, is_cold=is_cold) for name in names]
        self._ways[False] = [replay(target, num_rows) for num_rows in REPLAY_ROWS]
        if self.config.baselines:
            if self.stock is None:
                raise ConfigError("baselines need a second, stock copy of the model; give stock=")
            self._methods += [TransformersMethod(name, *self.stock) for name in self.config.baselines]
            self._ways[True] = [self._ways[False][0], replay(CausalLM(self.stock[0]), 1)]

    def run(self, prompt_sets: AbstractSequence[PromptSet], progress: Progress | None = None) -> None:
        """Sets have different names. Raises PromptError when no prompt of a set fits into the context."""
        for prompt_set in prompt_sets:
            conversations = self._choose(prompt_set)
            for repetition in range(self.config.repeat):
                self._start(conversations[0])
                for index, conversation in enumerate(conversations):
                    self._converse(prompt_set.name, index, repetition, conversation)
                    if progress:
                        done = repetition * len(conversations) + index + 1
                        progress(prompt_set.name, done, len(conversations) * self.config.repeat)

    @property
    def _language_model(self) -> LanguageModel:
        return self.opened.language_model

    @property
    def _target(self) -> CausalLM:
        return self.opened.language_model.target

    def _choose(self, prompt_set: PromptSet) -> list[Conversation]:
        fitting = [one for one in prompt_set.conversations if self._fits(self._prompt_ids(one, [], 0))]
        self.left_out[prompt_set.name] = len(prompt_set.conversations) - len(fitting)
        if not fitting:
            raise PromptError(
                f"no prompt of {prompt_set.name} leaves room for {self.config.max_new_tokens} new tokens in "
                f"the context of {self._target.max_length}; lower --max-new-tokens or choose other prompts"
            )
        return spread(fitting, self.config.limit)

    def _fits(self, prompt_ids: list[int]) -> bool:
        limit = self._target.max_length
        return limit is None or len(prompt_ids) + self.config.max_new_tokens <= limit

    def _prompt_ids(self, conversation: Conversation, answers: list[str], turn: int) -> list[int]:
        """Token ids, however many; what does not fit into the context is the caller's to judge."""
        if conversation.token_ids:
            return list(conversation.token_ids)
        tokenizer = self._language_model.tokenizer
        if tokenizer is None:
            raise PromptError("this model has no tokenizer, so it takes only random:N prompts")
        prompt: str | list[int] = conversation.turns[turn]
        if conversation.is_chat:
            messages = []
            for asked, answer in zip(conversation.turns, answers, strict=False):
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            messages.append({"role": "user", "content": conversation.turns[turn]})
            prompt = chat_prompt(tokenizer, messages)
        return list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt

    def _start(self, conversation: Conversation) -> None:
        prompt_ids = self._prompt_ids(conversation, [], 0)
        params = self._params(0)
        for method in self._methods:
            method.start(
                prompt_ids, replace(params, max_new_tokens=min(_WARM_UP_TOKENS, params.max_new_tokens))
            )

    def _params(self, index: int) -> SamplingParams:
        """One seed a prompt, the same for all methods."""
        return SamplingParams(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=self.config.seed + index,
        )

    def _converse(self, name: str, index: int, repetition: int, conversation: Conversation) -> None:
        """Every turn by every method; later turns contain plain decoding's answers to the earlier ones."""
        answers: list[str] = []
        for turn in range(max(1, len(conversation.turns))):
            prompt_ids = self._prompt_ids(conversation, answers, turn)
            if not self._fits(prompt_ids):
                self.left_out[name] += 1
                return
            result = self._answer(name, (index, turn), repetition, prompt_ids)
            self.results.append(result)
            answers.append(result.answers[PLAIN].text.split(USER_STOP)[0].strip() or "(no answer)")

    def _answer(
        self, name: str, prompt: tuple[int, int], repetition: int, prompt_ids: list[int]
    ) -> PromptResult:
        params = self._params(prompt[0])
        first = (sum(prompt) + repetition) % len(self._methods)
        order = self._methods[first:] + self._methods[:first]
        answers = {method.name: method.answer(prompt_ids, params) for method in order}
        plain_ids = answers[PLAIN].token_ids
        agreements = {
            method: self._agreement(method, prompt_ids, plain_ids, answer.token_ids, params)
            for method, answer in answers.items()
        }
        return PromptResult(name, prompt, repetition, answers, agreements)

    def _agreement(
        self,
        method: str,
        prompt_ids: list[int],
        plain_ids: list[int],
        token_ids: list[int],
        params: SamplingParams,
    ) -> Agreement | None:
        is_baseline = method in BASELINES
        if is_baseline and params.temperature > 0:
            return None  # transformers runs greedily, so its text is another one
        return compare(
            prompt_ids,
            plain_ids,
            token_ids,
            ways=self._ways[is_baseline],
            params=params,
            seed=params.seed or 0,
            least_noise=self._target.probe.noise,
            is_exact=is_exact(self._target.dtype),
        )
