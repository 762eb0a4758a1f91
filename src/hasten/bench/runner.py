"""Runs all methods on the same prompts, one after the other in changing order, and keeps every answer.

Prompts are answered in groups, side by side; a single prompt is a group of one. A group of one is a whole
conversation, turn after turn; of larger groups only the first turns are answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.bench.agreement import OWN_ROWS, Agreement, Check, Judging, compare, replay
from hasten.bench.baselines import BASELINES
from hasten.bench.methods import PLAIN, Answer, HastenMethod, Method, parts_of_method
from hasten.bench.models import OpenModel
from hasten.bench.programs import Checkpoint, FastestDtype, Programs, programs_for
from hasten.bench.prompts import Conversation, PromptSet, batches, spread
from hasten.chat import USER_STOP, chat_prompt
from hasten.core import SamplingParams
from hasten.errors import ConfigError, PromptError
from hasten.models.target import Target
from hasten.policies import check_policy
from hasten.text.engine import LanguageModel

_WARM_UP_TOKENS = 32

Progress = Callable[[str, int, int], None]
"""(name of the prompt set, conversations done, conversations), every batch size and repetition counted"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """What is measured. Plain decoding always is, as all others are judged by it."""

    methods: tuple[str, ...] = (PLAIN, "auto")
    baselines: tuple[str, ...] = ("hf",)
    batch_sizes: tuple[int, ...] = (1,)
    """how many prompts are answered side by side; one round for each"""
    max_new_tokens: int = 128
    ignore_eos: bool = False
    """every text has exactly max_new_tokens tokens"""
    limit: int | None = None
    temperature: float = 0.0
    seed: int = 0
    policy: str = "cost"
    num_draft_tokens: int | None = None
    """a fixed size of every tree; None lets the policy choose"""
    is_cold: bool = False
    repeat: int = 1
    first_turns: bool = False
    """of conversations too, a single one"""

    def __post_init__(self) -> None:
        SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)
        limit = 1 if self.limit is None else self.limit
        sizes = [("batch", size) for size in self.batch_sizes or (0,)]
        for name, value in (("repeat", self.repeat), ("limit", limit), *sizes):
            if value < 1:
                raise ConfigError(f"{name}={value} cannot work; it must be at least 1")
        check_policy(self.policy, self.num_draft_tokens)
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            known = [name for name in BASELINES if not name.startswith("dejavuu-")]
            raise ConfigError(
                f"baseline {unknown[0]!r} is unknown; choose {', '.join(known)}, or dejavuu-METHOD[-chain]"
            )
        one_by_one = [name for name in self.baselines if BASELINES[name].is_one_by_one]
        if one_by_one and max(self.batch_sizes) > 1:
            raise ConfigError(f"{one_by_one[0]} takes one prompt at a time; leave it out, or use batch 1")
        object.__setattr__(self, "batch_sizes", tuple(dict.fromkeys(self.batch_sizes)))
        object.__setattr__(self, "methods", tuple(dict.fromkeys((PLAIN, *self.methods))))
        object.__setattr__(self, "baselines", tuple(dict.fromkeys(self.baselines)))


@dataclass(frozen=True, slots=True)
class GroupResult:
    """All methods' answers to prompts that were answered side by side."""

    prompt_set: str
    batch_size: int
    place: tuple[int, int]
    """index of the group and of the turn"""
    repetition: int
    answers: dict[str, Answer]
    agreements: dict[str, list[Agreement]]
    """one a prompt: plain decoding's with the judge, others with plain decoding; none where there is nothing
    to agree with"""
    chances: list[float]
    """one a prompt: that rounding alone makes a text part from plain decoding's"""
    order: list[str]
    """the methods as they took their turns"""


@dataclass(slots=True)
class Benchmark:
    """One run; ``results`` and ``left_out`` are up to date whenever it is interrupted.

    Raises ConfigError for an unknown method.
    """

    opened: OpenModel
    config: BenchConfig
    programs: Programs | None = None
    """where baselines and the judge come from; by default stock copies of the model, by its name"""
    results: list[GroupResult] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """prompts that do not fit into the context with their answer, per prompt set"""
    skipped: dict[str, str] = field(default_factory=dict)
    """peers that cannot run here, and why"""
    num_conversations: dict[str, int] = field(default_factory=dict)
    """how many are asked, per prompt set: as many as asked for, up to full batches"""
    _methods: list[Method] = field(default_factory=list)
    _judge: Judging | None = field(default=None, init=False)
    _checks: dict[tuple[tuple[int, ...], tuple[int, ...], int], Check] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target, tokenizer = self._target, self._language_model.tokenizer
        options: dict[str, Any] = {"policy": self.config.policy, "is_cold": self.config.is_cold}
        options["num_draft_tokens"] = self.config.num_draft_tokens
        if index := self._language_model.resources.index:
            options["index"] = index.path
        options["draft"] = self._language_model.resources.draft
        self._methods = [HastenMethod(name, target, tokenizer, **options) for name in self.config.methods]
        if self.programs is None:
            word = str(target.dtype).removeprefix("torch.")
            stock = Checkpoint(self.opened.name, word, str(target.device), self.opened.shape)
            self.programs = programs_for(stock)
        if self.config.baselines:
            made, self.skipped = self.programs.baselines(self.config.baselines)
            self._methods += made

    def run(self, prompt_sets: AbstractSequence[PromptSet], progress: Progress | None = None) -> None:
        """Sets have different names. Raises PromptError when no prompt of a set fits into the context."""
        for prompt_set in prompt_sets:
            conversations = self._choose(prompt_set)
            total = len(conversations) * len(self.config.batch_sizes) * self.config.repeat
            done = 0
            for batch_size in self.config.batch_sizes:
                for repetition in range(self.config.repeat):
                    groups = batches(conversations, batch_size)
                    self._start(groups[0])
                    for index, group in enumerate(groups):
                        self._converse(prompt_set.name, index, repetition, group)
                        if progress:
                            progress(prompt_set.name, min(total, done + (index + 1) * batch_size), total)
                    done += len(conversations)

    @property
    def _language_model(self) -> LanguageModel:
        return self.opened.language_model

    @property
    def _target(self) -> Target:
        return self.opened.language_model.target

    def _choose(self, prompt_set: PromptSet) -> list[Conversation]:
        fitting = [one for one in prompt_set.conversations if self._fits(self._prompt_ids(one, [], 0))]
        self.left_out[prompt_set.name] = len(prompt_set.conversations) - len(fitting)
        if not fitting:
            raise PromptError(
                f"no prompt of {prompt_set.name} leaves room for {self.config.max_new_tokens} new tokens in "
                f"the context of {self._target.max_length}; lower --max-new-tokens or choose other prompts"
            )
        asked = min(len(fitting), self.config.limit or len(fitting))
        count = self.num_conversations[prompt_set.name] = self._full(asked, len(fitting))
        return spread(fitting, count)

    def _full(self, asked: int, available: int) -> int:
        """So many that batches of every size are full without asking any twice, where there are enough."""
        unit = math.lcm(*self.config.batch_sizes)
        rounded = min(math.ceil(asked / unit), available // unit) * unit
        return rounded or available

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

    def _start(self, group: list[Conversation]) -> None:
        prompts = [self._prompt_ids(conversation, [], 0) for conversation in group]
        params = self._params(0)
        params = replace(params, max_new_tokens=min(_WARM_UP_TOKENS, params.max_new_tokens))
        for method in self._methods:
            method.start(prompts, params)

    def _params(self, index: int) -> SamplingParams:
        """One seed a group, the same for all methods."""
        return SamplingParams(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=self.config.seed + index,
            ignore_eos=self.config.ignore_eos,
        )

    def _converse(self, name: str, index: int, repetition: int, group: list[Conversation]) -> None:
        """Every turn by every method; later turns contain plain decoding's answers to the earlier ones."""
        answers: list[str] = []
        all_turns = len(group) == 1 and not self.config.first_turns
        for turn in range(max(1, len(group[0].turns)) if all_turns else 1):
            prompts = [self._prompt_ids(conversation, answers, turn) for conversation in group]
            if not all(map(self._fits, prompts)):
                self.left_out[name] += not repetition
                return
            result = self._answer(name, (index, turn), repetition, prompts)
            self.results.append(result)
            answers.append(result.answers[PLAIN].texts[0].split(USER_STOP)[0].strip() or "(no answer)")

    def _answer(
        self, name: str, place: tuple[int, int], repetition: int, prompts: list[list[int]]
    ) -> GroupResult:
        params = self._params(place[0])
        first = (sum(place) + repetition) % len(self._methods)
        order = self._methods[first:] + self._methods[:first]
        answers = {method.name: method.answer(prompts, params) for method in order}
        plain = answers[PLAIN]
        checks = [
            self._check(*row, params) for row in zip(prompts, plain.token_ids, plain.seeds, strict=True)
        ]
        agreements = {
            method: self._agreements(method, prompts, plain, answer, params)
            for method, answer in answers.items()
            if method != PLAIN
        }
        agreements[PLAIN] = [found.agreement for found in checks]
        chances = [found.chance for found in checks]
        names = [method.name for method in order]
        return GroupResult(name, len(prompts), place, repetition, answers, agreements, chances, names)

    def _agreements(
        self, method: str, prompts: list[list[int]], plain: Answer, answer: Answer, params: SamplingParams
    ) -> list[Agreement]:
        if not _promises_the_text(method, params.temperature):
            return []
        return [
            compare(
                prompt_ids,
                plain.token_ids[row],
                answer.token_ids[row],
                judge=self.judge,
                own=[replay(self._target, rows, prompts[:row] + prompts[row + 1 :]) for rows in OWN_ROWS],
                params=params,
                seed=plain.seeds[row],
            )
            for row, prompt_ids in enumerate(prompts)
        ]

    def _check(self, prompt_ids: list[int], text: list[int], seed: int, params: SamplingParams) -> Check:
        """Of plain decoding's text, which mostly is the same in every repetition."""
        key = tuple(prompt_ids), tuple(text), seed
        if key not in self._checks:
            self._checks[key] = self.judge.check(prompt_ids, text, params, seed)
        return self._checks[key]

    @property
    def baseline_dtypes(self) -> dict[str, dict[str, Any]]:
        """What each baseline computes in, and the tokens a second of those it was chosen from."""
        return {
            method.name: {"dtype": method.dtype, "tokens_per_second": method.tried}
            for method in self._methods
            if isinstance(method, FastestDtype)
        }

    @property
    def judge(self) -> Judging:
        """Who knows what the model writes; loaded when first asked."""
        if self._judge is None:
            assert self.programs is not None
            self._judge = self.programs.judge(self._target)
        return self._judge


def _promises_the_text(method: str, temperature: float) -> bool:
    """Whether a method is to write plain decoding's text, not only one of the same law.

    transformers samples with random numbers of its own. Rules of the same law have no choice when greedy.
    """
    if method in BASELINES:
        return temperature == 0
    guarantee = parts_of_method(method)[1].guarantee
    return guarantee == "exact" or (guarantee == "distribution" and temperature == 0)
