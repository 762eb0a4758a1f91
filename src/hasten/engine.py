"""Load a model, generate, stream: everything around the loop."""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import DecodeStats, FinishReason, Guarantee, SamplingParams, Sequence
from hasten.decode import Step, decode
from hasten.drafters import Drafter, Resources, make_drafter
from hasten.drafters.corpus_index import open_index
from hasten.drafters.store import load_store, save_store, vocabulary_fingerprint
from hasten.errors import ConfigError, GenerationInterrupted, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.models.loading import load_pretrained
from hasten.models.packed import pack_linears
from hasten.models.seq2seq_lm import Seq2SeqLM, target_of
from hasten.models.superposed import Completion, NgramTables, complete
from hasten.policies import POLICIES, DraftPolicy, FixedPolicy, ForwardCost, check_policy
from hasten.sampling import Sampler
from hasten.stopping import StopConditions, TextStream
from hasten.verify import VERIFIERS, Verifier, find_verifier

Prompt = str | AbstractSequence[int] | NDArray[np.floating] | torch.Tensor
"""A text, token ids, or for a speech model the mel features of one recording [mel bins, frames]."""
Trace = Callable[[Step], None]

FORWARDS = ("auto", "stock", "packed")


@dataclass(frozen=True, slots=True)
class Output:
    """One finished text. ``text`` is empty for a model loaded without a tokenizer.

    ``prompt_ids`` is what the text goes on from; for an encoder-decoder model, the decoder's beginning.
    ``guarantee``: "exact" is plain decoding's text, "distribution" one of its law, "approximate" neither.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: DecodeStats
    seed: int
    prompt_ids: list[int]
    guarantee: Guarantee = "exact"


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
    index: str | os.PathLike[str] | None = None,
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
        index: a corpus index made by ``hasten index``, for the drafters "auto", "rest" and "rasd".
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
    language_model = LanguageModel(target_of(model), tokenizer, drafter=drafter, index=index)
    if store is not None:
        language_model.load_store(store)
    return language_model


class LanguageModel:
    """A target model with its tokenizer, its drafters and what they have learnt.

    Drafters learn across calls; what they learnt changes the speed of later calls, never their text. One
    call at a time: instances are not thread-safe.
    """

    def __init__(
        self,
        target: CausalLM,
        tokenizer: Any = None,
        *,
        drafter: str | Drafter = "auto",
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self._default_drafter = drafter
        self._drafters: dict[str, Drafter] = {}
        self._policies: dict[tuple[str, str, int], DraftPolicy] = {}
        self._cost = ForwardCost()
        self._fingerprint: str | None = None
        opened = None if index is None else open_index(index, self.fingerprint)
        self.resources = Resources(target.vocab_size, target, opened)
        self.drafter(drafter)

    def generate(
        self,
        prompts: Prompt | AbstractSequence[Prompt],
        params: SamplingParams | None = None,
        *,
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
        policy: str = "cost",
        verify: str | Verifier = "follow",
        decoder_prompt: str | AbstractSequence[int] | None = None,
        batch_size: int = 16,
        trace: Trace | None = None,
    ) -> Any:
        """Write texts.

        Args:
            prompts: a text, token ids, or a list of such; what the encoder reads, where a model has one.
            params: how to sample and when to stop.
            drafter: "auto", "off" (plain decoding), a system's name, several joined by "+", or an object.
            num_draft_tokens: a fixed tree size; None lets the policy choose.
            policy: "cost" drafts what pays on this machine; "ems" and "bass" are published rules for batches.
            verify: "follow" writes the text of plain decoding. By name only: "residual" writes texts of its
                law, with drafts weighed by the law they were drawn from; "confident" keeps what a drafter
                is sure of and "tolerant" what the target nearly wrote, so that the text may differ.
                ``Output.guarantee`` says what was promised.
            decoder_prompt: what an encoder-decoder model's texts begin with, after its start token.
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
        verifier = find_verifier(verify)
        single = _is_single(prompts)
        jobs = self._jobs(cast(list[Prompt], [prompts] if single else prompts), params, decoder_prompt)
        try:
            for start in range(0, len(jobs), batch_size):
                batch = [job.sequence for job in jobs[start : start + batch_size]]
                for step in self._decode(batch, drafter, num_draft_tokens, policy, verifier):
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
        policy: str = "cost",
        verify: str | Verifier = "follow",
        decoder_prompt: str | AbstractSequence[int] | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Piece]:
        """Write one text, a Piece a token; arguments as for ``generate``.

        Closing the iterator, or Ctrl-C, ends the request; what was learnt stays.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise ConfigError(f"n={params.n} cannot be streamed; use generate, or one stream a sample")
        [job] = self._jobs([prompt], params, decoder_prompt)
        choices = {"num_draft_tokens": num_draft_tokens, "policy_name": policy}
        return self._stream(job, params, drafter, trace, verifier=find_verifier(verify), **choices)

    def _stream(
        self,
        job: _Job,
        params: SamplingParams,
        drafter: str | Drafter | None,
        trace: Trace | None,
        **choices: Any,
    ) -> Iterator[Piece]:
        text = TextStream(self._detokenise, params.stop_strings)
        for step in self._decode([job.sequence], drafter, **choices):
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

    def autocomplete(
        self, prompt: Prompt, *, k: int = 3, max_new_tokens: int = 10, ngrams: NgramTables | None = None
    ) -> list[Completion]:
        """At most k short suggestions for how a prompt goes on, best first, for the passes of one of them.

        Superposed Decoding (arXiv 2405.18400). Approximate: with k=1 and without n-grams the suggestion is
        greedy decoding's text, else each pass reads a mixture of all suggestions, and they drift away from
        what the model would write after 10 to 20 tokens. ``ngrams`` holds counts of a corpus in this model's
        tokens, which tell the suggestions apart.

        Raises:
            ConfigError: for a value that cannot work.
            PromptError: as ``generate``.
            ModelError: for a model that does not take input embeddings, or reads a source as well.
        """
        drafts = complete(self.target, self.encode(prompt), k=k, max_new_tokens=max_new_tokens, ngrams=ngrams)
        found = ((list(draft.token_ids), draft.score) for draft in drafts)
        return [Completion(self._detokenise(token_ids), token_ids, score) for token_ids, score in found]

    def drafter(self, name: str | Drafter | None = None) -> Drafter:
        """The drafter of that name, with everything it has learnt here; the default one for None."""
        chosen = self._default_drafter if name is None else name
        if not isinstance(chosen, str):
            return chosen
        if chosen not in self._drafters:
            self._drafters[chosen] = make_drafter(chosen, self.resources)
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
            self._fingerprint = vocabulary_fingerprint(self.tokenizer, self.target.vocab_size)
        return self._fingerprint

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked against vocabulary and context. Raises PromptError."""
        token_ids = self._token_ids(prompt)
        if not token_ids:
            raise PromptError("the prompt has no tokens; give at least one")
        self.target.check_prompt(token_ids)
        return token_ids

    def _token_ids(self, prompt: Prompt, **options: bool) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise PromptError("this model was loaded without a tokenizer: give token ids, or tokenizer=")
            if not prompt:
                raise PromptError(
                    "the prompt is empty; to start from nothing, give the token id of a start token"
                )
            prompt = self.tokenizer(prompt, **options)["input_ids"]
        try:
            return [operator.index(token_id) for token_id in cast(AbstractSequence[int], prompt)]
        except TypeError as problem:
            raise PromptError(f"a prompt is a text or token ids, which are integers: {problem}") from None

    def _jobs(
        self,
        prompts: AbstractSequence[Prompt],
        params: SamplingParams,
        decoder_prompt: str | AbstractSequence[int] | None = None,
    ) -> list[_Job]:
        if not len(prompts):
            raise PromptError("no prompts were given")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        starts = [self._start(prompt, decoder_prompt) for prompt in prompts]
        return [self._job(start, params, seed, sample) for start in starts for sample in range(params.n)]

    def _start(self, prompt: Prompt, decoder_prompt: str | AbstractSequence[int] | None) -> _Start:
        target = self.target
        if not isinstance(target, Seq2SeqLM):
            if decoder_prompt is not None:
                raise ConfigError("decoder_prompt= is for encoder-decoder models; put it into the prompt")
            return _Start(self.encode(prompt))
        if decoder_prompt is not None:
            decoder_prompt = self._token_ids(decoder_prompt, add_special_tokens=False)
        token_ids = target.start(decoder_prompt)
        if target.reads_features:
            return _Start(token_ids, source_features=target.check_features(prompt))
        return _Start(token_ids, self.encode(prompt))

    def _job(self, start: _Start, params: SamplingParams, seed: int, sample: int) -> _Job:
        length = len(start.token_ids)
        room = (self.target.max_length or length + params.max_new_tokens) - length
        max_tokens = min(params.max_new_tokens, room)
        stream = TextStream(self._detokenise, params.stop_strings) if params.stop_strings else None
        if stream is not None and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer; use stop_token_ids, or load with tokenizer=")
        own = frozenset() if params.ignore_eos else self.target.stop_token_ids
        stop_rule = StopConditions(own | frozenset(params.stop_token_ids), max_tokens, stream)
        if isinstance(self.target, Seq2SeqLM):
            processors = self.target.logits_processors(
                length, length + max_tokens, start.source_ids, params.logits_processors
            )
            params = replace(params, logits_processors=processors)
        sequence = Sequence(
            token_ids=list(start.token_ids),
            prompt_length=length,
            max_length=length + max_tokens,
            sampler=Sampler(params, seed, sample),
            stop_rule=stop_rule,
            source_ids=start.source_ids,
            source_features=start.source_features,
        )
        return _Job(sequence, seed, stream)

    def decode_sequences(
        self,
        sequences: list[Sequence],
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
    ) -> Generator[Step, None, None]:
        """Write prepared sequences side by side, for callers with samplers and stop rules of their own."""
        yield from self._decode(sequences, drafter, num_draft_tokens)

    def _decode(
        self,
        sequences: list[Sequence],
        drafter: str | Drafter | None,
        num_draft_tokens: int | None,
        policy_name: str = "cost",
        verifier: Verifier = VERIFIERS["follow"],
    ) -> Iterator[Step]:
        check_policy(policy_name, num_draft_tokens)
        chosen = self.drafter(drafter)
        policy: DraftPolicy
        if num_draft_tokens is not None or chosen.name == "off":
            policy = FixedPolicy(num_draft_tokens or 0)
        elif chosen is self._drafters.get(chosen.name):
            key = chosen.name, policy_name, len(sequences)
            policy = self._policies.setdefault(key, POLICIES[policy_name](self._cost))
        else:
            policy = POLICIES[policy_name](self._cost)
        for sequence in sequences:
            sequence.guarantee = verifier.guarantee
        return decode(self.target, chosen, policy, sequences, verifier.rule)

    def _output(self, job: _Job) -> Output:
        sequence = job.sequence
        text = job.stream
        if text is None or sequence.finish_reason is None:  # a stream may be ahead of an interrupted sequence
            text = TextStream(self._detokenise)
            text.push(sequence.new_token_ids)
        text.finish()
        reason = sequence.finish_reason or "interrupted"
        prompt_ids = sequence.token_ids[: sequence.prompt_length]
        return Output(
            text.text,
            sequence.new_token_ids,
            reason,
            sequence.stats,
            job.seed,
            prompt_ids,
            sequence.guarantee,
        )

    def _detokenise(self, token_ids: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        return str(
            self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """What a text goes on from, and what an encoder reads."""

    token_ids: list[int]
    source_ids: AbstractSequence[int] = ()
    source_features: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """A sequence on its way to an Output."""

    sequence: Sequence
    seed: int
    stream: TextStream | None


def _is_single(prompts: Prompt | AbstractSequence[Prompt]) -> bool:
    if isinstance(prompts, str) or _is_features(prompts):
        return True
    return len(prompts) > 0 and not isinstance(prompts[0], str | AbstractSequence | np.ndarray | torch.Tensor)


def _is_features(prompts: Any) -> bool:
    is_float = isinstance(prompts, np.ndarray) and prompts.dtype.kind == "f"
    is_float = is_float or (isinstance(prompts, torch.Tensor) and prompts.is_floating_point())
    return is_float and prompts.ndim == 2
