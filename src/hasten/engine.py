"""Load a model, generate, stream: everything around the loop."""

from __future__ import annotations

import hashlib
import operator
import os
import secrets
from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any, cast

from hasten.core import DecodeStats, FinishReason, SamplingParams, Sequence
from hasten.decode import Step, decode
from hasten.drafters import Drafter, make_drafter
from hasten.drafters.store import load_store, save_store
from hasten.errors import ConfigError, GenerationInterrupted, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.models.loading import load_pretrained
from hasten.models.packed import pack_linears
from hasten.policies import CostPolicy, DraftPolicy, FixedPolicy, ForwardCost
from hasten.sampling import Sampler
from hasten.stopping import StopConditions, TextStream

Prompt = str | AbstractSequence[int]
Trace = Callable[[Step], None]

FORWARDS = ("auto", "stock", "packed")


@dataclass(frozen=True, slots=True)
class Output:
    """One finished text. ``text`` is empty for a model loaded without a tokenizer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: DecodeStats
    seed: int
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """One written token, as it is streamed.

    ``text`` may be empty while a character or a stop string is unfinished; ``source`` names who proposed the
    token, "target" for the model itself; ``output`` is set on the last piece.
    """

    text: str
    token_id: int
    source: str
    output: Output | None = None


def load(
    model: Any = "demo",
    *,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    drafter: str | Drafter = "auto",
    store: str | os.PathLike[str] | None = None,
    forward: str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model to write with.

    Args:
        model: a bundled name ("demo", "demo-draft"), a local folder, a hub id, or a transformers model.
        tokenizer: only for a transformers model; without one, prompts are token ids.
        dtype: "auto" (the checkpoint's), "float32", "float64", "bfloat16" or "float16".
        device: such as "cpu" or "cuda:0"; by default the GPU where there is one.
        drafter: the default for this model's calls; see ``LanguageModel.generate``.
        store: a file written by ``save_store``, to start with what earlier runs learnt.
        forward: "stock" runs transformers' own layers, "packed" CPU-packed linear layers, "auto" packs where
            a quick measurement says it pays. A transformers model given as an object is never changed.
        trust_remote_code: allow a hub repository to run its own code.

    Raises:
        ConfigError, ModelError, StoreError, IncompatibleModels: see hasten.errors.
    """
    if forward not in FORWARDS:
        raise ConfigError(f"forward={forward!r} is unknown; choose {', '.join(FORWARDS)}")
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ConfigError("tokenizer= goes with a transformers model; a name or folder brings its own")
        model, tokenizer = load_pretrained(
            os.fspath(model), dtype, device, trust_remote_code=trust_remote_code
        )
        if forward != "stock":
            pack_linears(model, always=forward == "packed")
    elif dtype != "auto" or device is not None or forward != "auto":
        raise ConfigError(
            "dtype, device and forward go with a name or folder; convert a model object yourself"
        )
    language_model = LanguageModel(CausalLM(model), tokenizer, drafter=drafter)
    if store is not None:
        language_model.load_store(store)
    return language_model


class LanguageModel:
    """A target model with its tokenizer, its drafters and what they have learnt.

    Drafters learn across calls; what they learnt changes the speed of later calls, never their text. One
    call at a time: instances are not thread-safe.
    """

    def __init__(self, target: CausalLM, tokenizer: Any = None, *, drafter: str | Drafter = "auto") -> None:
        self.target = target
        self.tokenizer = tokenizer
        self._default_drafter = drafter
        self._drafters: dict[str, Drafter] = {}
        self._policies: dict[tuple[str, int], DraftPolicy] = {}
        self._cost = ForwardCost()
        self._fingerprint: str | None = None
        self.drafter(drafter)

    def generate(
        self,
        prompts: Prompt | AbstractSequence[Prompt],
        params: SamplingParams | None = None,
        *,
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
        batch_size: int = 16,
        trace: Trace | None = None,
    ) -> Any:
        """Write texts.

        Args:
            prompts: a text, token ids, or a list of such.
            params: how to sample and when to stop.
            drafter: "auto", "off" (plain decoding), a system's name, several joined by "+", or an object.
            num_draft_tokens: a fixed tree size; None lets the cost policy choose.
            batch_size: how many sequences are decoded side by side.
            trace: called with every decoding step.

        Returns:
            An Output for one prompt and ``n=1``; else a list, the samples of a prompt side by side.

        Raises:
            PromptError: an empty prompt, one longer than the context, or token ids outside the vocabulary.
            ModelError: the model gave NaN.
            GenerationInterrupted: Ctrl-C; carries what was written so far.
        """
        params = params or SamplingParams()
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} cannot work; it must be at least 1")
        single = _is_single(prompts)
        jobs = self._jobs(cast(list[Prompt], [prompts] if single else prompts), params)
        try:
            for start in range(0, len(jobs), batch_size):
                batch = [job.sequence for job in jobs[start : start + batch_size]]
                for step in self._decode(batch, drafter, num_draft_tokens):
                    if trace:
                        trace(step)
        except KeyboardInterrupt:
            raise GenerationInterrupted([self._output(job) for job in jobs]) from None
        outputs = [self._output(job) for job in jobs]
        return outputs[0] if single and params.n == 1 else outputs

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Piece]:
        """Write one text, a Piece a token; arguments as for ``generate``.

        Closing the iterator, or Ctrl-C, ends the request; what was learnt stays.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise ConfigError(f"n={params.n} cannot be streamed; use generate, or one stream a sample")
        [job] = self._jobs([prompt], params)
        return self._stream(job, params, drafter, num_draft_tokens, trace)

    def _stream(
        self,
        job: _Job,
        params: SamplingParams,
        drafter: str | Drafter | None,
        num_draft_tokens: int | None,
        trace: Trace | None,
    ) -> Iterator[Piece]:
        text = TextStream(self._detokenise, params.stop_strings)
        for step in self._decode([job.sequence], drafter, num_draft_tokens):
            if trace:
                trace(step)
            [gain] = step.gains
            written = list(zip(gain.acceptance.token_ids, gain.sources(), strict=True))
            for index, (token_id, source) in enumerate(written):
                text.push([token_id])
                if job.sequence.finish_reason and index == len(written) - 1:
                    yield Piece(text.take() + text.finish(), token_id, source, self._output(job))
                else:
                    yield Piece(text.take(), token_id, source)

    def drafter(self, name: str | Drafter | None = None) -> Drafter:
        """The drafter of that name, with everything it has learnt here; the default one for None."""
        chosen = self._default_drafter if name is None else name
        if not isinstance(chosen, str):
            return chosen
        if chosen not in self._drafters:
            self._drafters[chosen] = make_drafter(chosen, self.target.vocab_size)
        return self._drafters[chosen]

    def save_store(self, path: str | os.PathLike[str], drafter: str | None = None) -> None:
        """Save what a drafter learnt, to be given to ``load(store=...)``. Raises StoreError."""
        save_store(path, self.drafter(drafter), self.fingerprint)

    def load_store(self, path: str | os.PathLike[str], drafter: str | None = None) -> None:
        """Replace what a drafter learnt by a saved store. Raises StoreError, IncompatibleModels."""
        load_store(path, self.drafter(drafter), self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Identifies the vocabulary: stores and draft models fit only the same one."""
        if self._fingerprint is None:
            if self.tokenizer is None:
                self._fingerprint = f"token-ids-{self.target.vocab_size}"
            else:
                pairs = sorted(self.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
                self._fingerprint = hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]
        return self._fingerprint

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked against vocabulary and context. Raises PromptError."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PromptError("this model was loaded without a tokenizer: give token ids, or tokenizer=")
            if not prompt:
                raise PromptError(
                    "the prompt is empty; to start from nothing, give the token id of a start token"
                )
            prompt = self.tokenizer(prompt)["input_ids"]
        try:
            token_ids = [operator.index(token_id) for token_id in cast(AbstractSequence[int], prompt)]
        except TypeError as problem:
            raise PromptError(f"a prompt is a text or token ids, which are integers: {problem}") from None
        vocab_size, limit = self.target.vocab_size, self.target.max_length
        if not token_ids:
            raise PromptError("the prompt has no tokens; give at least one")
        if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
            raise PromptError(f"token id {wrong} is outside the vocabulary of {vocab_size} tokens")
        if limit is not None and len(token_ids) >= limit:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens, the context holds {limit}; shorten the prompt"
            )
        return token_ids

    def _jobs(self, prompts: AbstractSequence[Prompt], params: SamplingParams) -> list[_Job]:
        if not prompts:
            raise PromptError("no prompts were given")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        encoded = [self.encode(prompt) for prompt in prompts]
        return [self._job(ids, params, seed, sample) for ids in encoded for sample in range(params.n)]

    def _job(self, prompt_ids: list[int], params: SamplingParams, seed: int, sample: int) -> _Job:
        room = (self.target.max_length or len(prompt_ids) + params.max_new_tokens) - len(prompt_ids)
        max_tokens = min(params.max_new_tokens, room)
        stream = TextStream(self._detokenise, params.stop_strings) if params.stop_strings else None
        if stream is not None and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; use stop_token_ids, or load with tokenizer=")
        own = frozenset() if params.ignore_eos else self.target.stop_token_ids
        stop_rule = StopConditions(own | frozenset(params.stop_token_ids), max_tokens, stream)
        sequence = Sequence(
            token_ids=list(prompt_ids),
            prompt_length=len(prompt_ids),
            max_length=len(prompt_ids) + max_tokens,
            sampler=Sampler(params, seed, sample),
            stop_rule=stop_rule,
        )
        return _Job(sequence, seed, stream)

    def _decode(
        self, sequences: list[Sequence], drafter: str | Drafter | None, num_draft_tokens: int | None
    ) -> Iterator[Step]:
        chosen = self.drafter(drafter)
        policy: DraftPolicy
        if num_draft_tokens is not None or chosen.name == "off":
            policy = FixedPolicy(num_draft_tokens or 0)
        elif chosen is self._drafters.get(chosen.name):
            policy = self._policies.setdefault((chosen.name, len(sequences)), CostPolicy(self._cost))
        else:
            policy = CostPolicy(self._cost)
        return decode(self.target, chosen, policy, sequences)

    def _output(self, job: _Job) -> Output:
        sequence = job.sequence
        text = job.stream
        if text is None or sequence.finish_reason is None:  # a stream may be ahead of an interrupted sequence
            text = TextStream(self._detokenise)
            text.push(sequence.new_token_ids)
        text.finish()
        reason = sequence.finish_reason or "interrupted"
        prompt_ids = sequence.token_ids[: sequence.prompt_length]
        return Output(text.text, sequence.new_token_ids, reason, sequence.stats, job.seed, prompt_ids)

    def _detokenise(self, token_ids: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        return str(
            self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A sequence on its way to an Output."""

    sequence: Sequence
    seed: int
    stream: TextStream | None


def _is_single(prompts: Prompt | AbstractSequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (
        len(prompts) > 0 and not isinstance(prompts[0], str | AbstractSequence)
    )
