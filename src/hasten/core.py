"""The nouns every layer shares; knows no model, no drafter and no tokenizer.

Glossary (used in names, docs and reports)
    target            the model whose output is promised
    draft tree        guesses for the next tokens, fed to the target in one forward pass
    accepted token    a drafted token that the target would have written itself
    recovered token   the target's own token where the draft was wrong
    bonus token       the target's own token after the whole path was right
    step              one forward pass over a draft tree; gains accepted tokens plus one
    mean acceptance length   tokens gained per step, the recovered or bonus token included
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from hasten.errors import ConfigError
from hasten.params import (
    LogitsProcessor as LogitsProcessor,  # noqa: PLC0414
    SamplingParams as SamplingParams,  # noqa: PLC0414
    prompt_seeds as prompt_seeds,  # noqa: PLC0414
    sampling_params as sampling_params,  # noqa: PLC0414
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SPEC_FILE = "denoiser_spec.json"
"""Beside the weights of a denoiser: what it was trained for."""

FinishReason = Literal["stop", "length", "interrupted"]
Guarantee = Literal["exact", "distribution", "approximate"]
Proposals = Literal["coupled", "distinct", "independent", "chosen"]
"""How a model's draft tokens come about, as the verification rule wants them: "coupled": with the noise the
target draws that position with; "distinct" and "independent": siblings sampled without and with replacement,
their laws recorded; "chosen": the likeliest, whatever the temperature."""
SAMPLED: frozenset[Proposals] = frozenset({"distinct", "independent"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Who drafts for a text, how much of it is verified, and by which rule.

    Names and objects are those of ``hasten.LanguageModel.generate``: a drafter by name, as an object, or None
    for the model's default; a rule by name or as a Verifier; a policy by name or as an object, or a fixed
    number of tokens in its place.
    """

    drafter: Any = None
    verify: Any = "follow"
    policy: Any = "cost"
    num_draft_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, how its tokens are drawn, and how they are drafted."""

    prompt: Any
    params: SamplingParams = field(default_factory=SamplingParams)
    drafting: Drafting = field(default_factory=Drafting)


@dataclass(frozen=True, slots=True)
class TopCandidates:
    """The target's best next tokens after each of several positions."""

    token_ids: NDArray[np.int64]
    """int64 [positions, k], best first"""
    probs: NDArray[np.float32]
    """float32 [positions, k], softmax of the raw logits (temperature 1, no processors)"""
    positions: NDArray[np.int64] | None = None
    """int64 [positions], rising: after which tokens of the prompt; None: after every one, or node by node"""

    def rows(self, start: int, end: int) -> TopCandidates:
        """Those of positions start .. end - 1."""
        return TopCandidates(self.token_ids[start:end], self.probs[start:end])


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one written token, from the softmax of the raw logits (``hasten.logprobs``)."""

    token_id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)
    """the likeliest tokens and theirs, best first, as many as ``SamplingParams.logprobs`` says"""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What one step gained for one sequence: ``len(token_ids) == len(path) + 1``.

    ``path`` holds the accepted nodes of the draft tree, root to leaf; ``token_ids`` their tokens and then the
    recovered or bonus token. Both are already cut at the first stop and at the length limit.
    """

    path: list[int]
    token_ids: list[int]
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class DecodeStats:
    """Counters of one request. Times are wall-clock milliseconds of the steps the request took part in."""

    num_steps: int = 0
    num_tokens: int = 0
    num_draft_tokens: int = 0
    acceptance_histogram: Counter[int] = field(default_factory=Counter)
    """tokens gained in a step (bonus included) -> number of steps"""
    tokens_per_source: Counter[str] = field(default_factory=Counter)
    """who proposed each written token; "target" for recovered and bonus tokens"""
    resting_steps: Counter[str] = field(default_factory=Counter)
    """drafter -> steps it was left out for, because it had not paid"""
    rule_steps: Counter[str] = field(default_factory=Counter)
    rule_tokens: Counter[str] = field(default_factory=Counter)
    """kind of proposals -> steps, and tokens they gained, where the rule chose between several"""
    num_known_tokens: int = 0
    """of the prompt, that were not read again, because an earlier text that began so had cached them"""
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    forward_ms: float = 0.0
    verify_ms: float = 0.0
    other_ms: float = 0.0

    @property
    def num_accepted_tokens(self) -> int:
        return self.num_tokens - self.num_steps

    @property
    def mean_acceptance_length(self) -> float:
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def total_ms(self) -> float:
        return self.prefill_ms + self.draft_ms + self.forward_ms + self.verify_ms + self.other_ms

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, derived values included."""
        counters = {"num_known_tokens", "num_steps", "num_tokens", "num_draft_tokens", "num_accepted_tokens"}
        times = {"prefill_ms", "draft_ms", "forward_ms", "verify_ms", "other_ms"}
        return {
            **{name: getattr(self, name) for name in sorted(counters)},
            "mean_acceptance_length": round(self.mean_acceptance_length, 4),
            "acceptance_rate": round(self.acceptance_rate, 4),
            "acceptance_histogram": {str(k): v for k, v in sorted(self.acceptance_histogram.items())},
            "tokens_per_source": dict(self.tokens_per_source.most_common()),
            "resting_steps": dict(self.resting_steps),
            "rule_steps": dict(self.rule_steps),
            "rule_tokens": dict(self.rule_tokens),
            **{name: round(getattr(self, name), 3) for name in sorted(times)},
        }


class LogitRows(Protocol):
    """Logits [rows, vocab] of one draft tree, root first: a tensor, or what a pass found in them."""

    def __getitem__(self, rows: Any, /) -> torch.Tensor: ...

    def __len__(self) -> int: ...


class TokenSampler(Protocol):
    """Turns logits into tokens for one sequence."""

    def draws(self, logits: LogitRows) -> Callable[[int, list[int]], int]:
        """A function (row, token_ids) -> the token written after ``token_ids``, prompt included.

        Rows are drawn lazily and in the order
        of the written text: each written token calls the function exactly once.
        """
        ...

    def guess(self, logits: torch.Tensor, position: int) -> int:
        """The token that logits [vocab] would give at a position, logits processors left out.

        For drafters: it is drawn with the noise the target will draw that position with, so a draft from
        similar logits mostly agrees. Changes nothing.
        """
        ...

    def noisy(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """float32 [vocab], whose arg-max is the guess: the warped logits with the noise of the position."""
        ...


@runtime_checkable
class LawSampler(TokenSampler, Protocol):
    """A sampler that also tells the laws it draws from, for rules that weigh a draft's law against them."""

    @property
    def is_greedy(self) -> bool:
        """Whether every law holds one token."""
        ...

    def law(self, logits: torch.Tensor, token_ids: list[int] | None = None) -> NDArray[np.float64]:
        """float64 [vocab]: the law of the token after ``token_ids``, from its logits [vocab]; greedy: one 1.

        A written position is asked for once and in order, as with ``draws``. Without ``token_ids`` logits
        processors are left out and nothing changes, as with ``guess``.
        """
        ...

    def generator(self, position: int, stream: int) -> np.random.Generator:
        """Random numbers of a position. Streams 1, 2, ... are independent of each other and of ``draws``."""
        ...

    def fork(self, sample: int | None = None) -> LawSampler:
        """One that goes on from here by itself; changes nothing here.

        sample: another number has noise of its own, so that the two write different texts.
        """
        ...


@runtime_checkable
class VeiledSampler(LawSampler, Protocol):
    """A sampler that can keep the noise of later positions from drafters."""

    guess_end: int | None
    """``guess``, ``noisy`` and ``noise`` take the target's noise for positions before this one only, and from
    it on other noise, independent of everything; None: there is no such position"""


@runtime_checkable
class NoisySampler(TokenSampler, Protocol):
    """A sampler whose noise is a function of the position, so that drafts may add it to laws of their own."""

    @property
    def temperature(self) -> float:
        """What scores are divided by before the noise is added; 0 when greedy."""
        ...

    def noise_words(self, position: int) -> NDArray[np.uint32]:
        """uint32 [5]: the key of the noise of the guess at a position (``hasten.noise``)."""
        ...


class StopRule(Protocol):
    """Sees every written token once, in order, and says when the sequence ends."""

    def after(self, token_id: int) -> FinishReason | None: ...


@runtime_checkable
class ForkingStopRule(StopRule, Protocol):
    """A stop rule whose text may go on twice."""

    def fork(self) -> ForkingStopRule:
        """One that has seen the same tokens; changes nothing here."""
        ...


class LogprobRecord(Protocol):
    """Keeps the log-probabilities of a text's tokens."""

    tokens: list[TokenLogprob]
    """of those written so far"""

    def add(self, logits: LogitRows, acceptance: Acceptance) -> None:
        """What a step wrote; logits: [nodes + 1, vocab] of its tree, root first."""
        ...

    def fork(self) -> LogprobRecord:
        """One that goes on from here by itself."""
        ...


class Judge(Protocol):
    """A verification rule at one text, with what it keeps of it."""

    @property
    def guarantee(self) -> Guarantee:
        """What is promised of the text."""
        ...

    @property
    def proposals(self) -> Proposals:
        """What the next step wants of a model's drafts."""
        ...

    def verify(self, tree: Any, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """The path of a DraftTree that is kept, from logits [nodes + 1, vocab], root first."""
        ...

    def fork(self) -> Judge:
        """One that goes on from here by itself."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """One text being written. Invariant: every token but the last is in the target's cache."""

    token_ids: list[int]
    """prompt and committed tokens"""
    prompt_length: int
    max_length: int
    """prompt and new tokens together may not exceed this"""
    sampler: TokenSampler
    stop_rule: StopRule
    stats: DecodeStats = field(default_factory=DecodeStats)
    finish_reason: FinishReason | None = None
    source_ids: AbstractSequence[int] = ()
    """what an encoder-decoder model reads: the encoder's token ids"""
    source_features: torch.Tensor | None = None
    """what a speech model reads instead: float [mel bins, frames]"""
    judge: Judge | None = None
    """the rule that drafts are judged by; None until the text is admitted to a batch: ``follow``"""
    logprobs: LogprobRecord | None = None
    """None where none are asked for"""

    @property
    def guarantee(self) -> Guarantee:
        """What the verification rule promises: "distribution" rules use the laws that drafts were drawn from,
        "approximate" ones keep tokens the target was not asked about, so that what is written judges no
        draft."""
        return "exact" if self.judge is None else self.judge.guarantee

    @property
    def proposals(self) -> Proposals:
        """What the verification rule wants of a model's drafts."""
        return "coupled" if self.judge is None else self.judge.proposals

    @property
    def new_token_ids(self) -> list[int]:
        return self.token_ids[self.prompt_length :]

    @property
    def num_remaining(self) -> int:
        return self.max_length - len(self.token_ids)

    def fork(self, sample: int | None = None) -> Sequence:
        """A text that goes on from here by itself: what was written and counted so far is that of both.

        sample: its number among the samples of the prompt; with the same number it writes the same text.

        Raises ConfigError for a text whose sampler or stop rule cannot be copied, or that has ended.
        """
        if self.finish_reason is not None:
            raise ConfigError(f"a text that has ended ({self.finish_reason!r}) cannot be forked")
        if not isinstance(self.sampler, LawSampler) or not isinstance(self.stop_rule, ForkingStopRule):
            kinds = f"{type(self.sampler).__name__} and {type(self.stop_rule).__name__}"
            raise ConfigError(f"{kinds} follow one text and cannot be copied; start another text instead")
        return replace(
            self,
            token_ids=list(self.token_ids),
            sampler=self.sampler.fork(sample),
            stop_rule=self.stop_rule.fork(),
            stats=copy.deepcopy(self.stats),
            judge=None if self.judge is None else self.judge.fork(),
            logprobs=None if self.logprobs is None else self.logprobs.fork(),
        )


@dataclass(frozen=True, slots=True)
class System:
    """One published method, as `hasten systems` lists it."""

    name: str
    title: str
    arxiv: str
    kind: str
    guarantee: Guarantee
    module: str
    summary: str
