"""Generate, stream, chat: everything around the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence as AbstractSequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from hasten.calls import answer, interruptible, require_one_output, require_one_sample
from hasten.chat import Message, conversation_ids
from hasten.core import Drafting, SamplingParams, sampling_params
from hasten.drafters import Drafter, Resources, make_drafter
from hasten.drafters.corpus.corpus_index import open_index
from hasten.drafters.store import load_store, save_store
from hasten.errors import ConfigError, PromptError
from hasten.models.causal_lm import require_torch
from hasten.models.draft.draft_lm import DraftLM, load_draft
from hasten.models.sessions.prefix_cache import PrefixCache
from hasten.models.superposed import Completion, NgramTables, complete
from hasten.models.target import Target
from hasten.models.vocabulary import vocabulary_fingerprint
from hasten.policies import POLICIES, DraftPolicy, FixedPolicy, check_policy
from hasten.text.decode import Step
from hasten.text.drafting import Method
from hasten.text.pricing import Prices
from hasten.text.reading import Entry
from hasten.text.requests import Job, Output, Piece, Prompt, Prompts, Requests
from hasten.text.scheduler import Scheduler
from hasten.values import at_least_one, whole
from hasten.verify import Verifier, find_verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hasten.models.llamacpp.tokenizer import GgufTokenizer

_PREFIX_BYTES = 256 * 2**20
Trace = Callable[[Step], None]


class DraftingOptions(TypedDict, total=False):
    """How texts are drafted and watched; see ``LanguageModel.generate``."""

    drafter: str | Drafter | None
    num_draft_tokens: int | None
    policy: str | DraftPolicy
    verify: str | Verifier
    trace: Trace | None


class GenerateOptions(DraftingOptions, total=False):
    """What ``LanguageModel.generate`` takes besides prompts and params."""

    decoder_prompt: str | AbstractSequence[int] | None
    batch_size: int


class LanguageModel:
    """A target model with its tokenizer, its drafters and what they have learnt.

    Drafters learn across calls; what they learnt changes the speed of later calls, never their text. One
    call at a time: instances are not thread-safe.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: PreTrainedTokenizerBase | GgufTokenizer | None = None,
        *,
        drafter: str | Drafter = "auto",
        index: str | os.PathLike[str] | None = None,
        draft: str | os.PathLike[str] | PreTrainedModel | DraftLM | None = None,
        prefix_cache: int | str = 0,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self._requests = Requests(target, tokenizer)
        self._default_drafter = drafter
        self._drafters: dict[str, Drafter] = {}
        self._policies: dict[tuple[str, str], DraftPolicy] = {}
        self._fixed_sizes: dict[int, DraftPolicy] = {}
        self._fingerprint: str | None = None
        self._prefix_cache = _prefix_bytes(prefix_cache)
        opened = None if index is None else open_index(index, self.fingerprint)
        if draft is not None:
            draft = load_draft(draft, target=target, target_tokenizer=tokenizer)
        self.resources = Resources(target.vocab_size, target, opened, draft)
        self.drafter(drafter)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well
        self,
        prompts: str | AbstractSequence[int],
        params: SamplingParams | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompts: AbstractSequence[Prompt],
        params: SamplingParams | AbstractSequence[SamplingParams] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Output]: ...

    @overload
    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | AbstractSequence[SamplingParams] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Output | list[Output]: ...

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | AbstractSequence[SamplingParams] | None = None,
        *,
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
        policy: str | DraftPolicy = "cost",
        verify: str | Verifier = "follow",
        decoder_prompt: str | AbstractSequence[int] | None = None,
        batch_size: int = 16,
        trace: Trace | None = None,
    ) -> Output | list[Output]:
        """Write one text, or several.

        Args:
            prompts: a text, token ids, or several of such (see ``hasten.prompts.read_prompts``);
                what the encoder reads, where a model has one.
            params: how to sample and when to stop; or a list with one for each prompt, which is then written
                as it would be alone.
            drafter: "auto", "off" (plain decoding), a system's name, several joined by "+", or an object.
            num_draft_tokens: a fixed tree size; None lets the policy choose.
            policy: "cost" drafts what pays on this machine; "ems" and "bass" are published rules for batches;
                or a DraftPolicy of your own.
            verify: "follow" writes the text of plain decoding. By name only: "traversal", "block",
                "residual", "k-sequential" and others (``hasten.verify.VERIFIERS``) write texts of its law,
                with drafts weighed by the law they were drawn from, and "fastest" chooses among them;
                "typical", "tolerant" and "confident" are approximate. ``Output.guarantee`` says what was
                promised.
            decoder_prompt: what an encoder-decoder model's texts begin with, after its start token.
            batch_size: how many sequences are decoded side by side; where one ends, the next joins.
            trace: called with every decoding step.

        Returns:
            An Output for one prompt; a list for a list of prompts, the ``n`` samples of each side by side.

        Raises:
            ConfigError: a value that cannot work, ``n`` above 1 for a prompt outside of a list among them.
            PromptError: an empty prompt, one longer than the context, or token ids outside the vocabulary.
            ModelError: the model gave NaN.
            GenerationInterrupted: Ctrl-C; carries what was written so far.
        """
        batch_size = at_least_one(batch_size, "batch_size")
        drafting = Drafting(
            drafter=drafter, verify=find_verifier(verify), policy=policy, num_draft_tokens=num_draft_tokens
        )
        several, single = self._requests.read(prompts)
        params = _params_of(params, len(several))
        if single:
            require_one_output(params)
        jobs = self._requests.jobs(several, params, decoder_prompt)
        with interruptible(lambda: [self._requests.output(job) for job in jobs]):
            method = self.method(drafting)
            for step in self.decode_sequences([(job.sequence, method) for job in jobs], batch_size):
                if trace:
                    trace(step)
        return answer([self._requests.output(job) for job in jobs], is_single=single)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        drafter: str | Drafter | None = None,
        num_draft_tokens: int | None = None,
        policy: str | DraftPolicy = "cost",
        verify: str | Verifier = "follow",
        decoder_prompt: str | AbstractSequence[int] | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Piece]:
        """Write one text, a Piece a token; arguments as for ``generate``.

        Closing the iterator, or Ctrl-C, ends the request; what was learnt stays.
        """
        params = sampling_params(params)
        require_one_sample(params, "streamed", "use generate, or one stream a sample")
        prompts, _ = self._requests.read(prompt)
        if len(prompts) != 1:
            raise PromptError(f"{len(prompts)} prompts cannot be streamed at once; give one stream a prompt")
        [job] = self._requests.jobs(prompts, params, decoder_prompt)
        drafting = Drafting(
            drafter=drafter, verify=find_verifier(verify), policy=policy, num_draft_tokens=num_draft_tokens
        )
        return self._stream(job, params, drafting, trace)

    def _stream(
        self, job: Job, params: SamplingParams, drafting: Drafting, trace: Trace | None
    ) -> Iterator[Piece]:
        text = self._requests.text_stream(params)
        for step in self.decode_sequences([(job.sequence, self.method(drafting))], 1):
            if trace:
                trace(step)
            [gain] = step.gains
            token_ids, kept = gain.acceptance.token_ids, job.sequence.logprobs
            logprobs = kept.tokens[-len(token_ids) :] if kept is not None else [None] * len(token_ids)
            written = list(zip(token_ids, gain.sources(), logprobs, strict=True))
            for index, (token_id, source, logprob) in enumerate(written):
                text.push([token_id])
                shown, output = text.take(), None
                if job.sequence.finish_reason and index == len(written) - 1:
                    shown, output = shown + text.finish(), self._requests.output(job)
                yield Piece(shown, token_id, source, output, logprob)

    def chat(
        self,
        messages: AbstractSequence[Message],
        params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        template_options: Mapping[str, object] | None = None,
        **options: Unpack[DraftingOptions],
    ) -> Output:
        """Write the next answer of a conversation.

        Args:
            messages: its turns, such as [{"role": "user", "content": "Hello!"}]; nothing is remembered from
                call to call, so give all of them.
            params, options: as for ``generate``.
            chat_template, template_options: see ``chat_prompt``.

        Raises as ``generate`` and ``chat_prompt``.
        """
        prompt = self.chat_prompt(messages, chat_template=chat_template, template_options=template_options)
        return self.generate(prompt, params, **options)

    def stream_chat(
        self,
        messages: AbstractSequence[Message],
        params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        template_options: Mapping[str, object] | None = None,
        **options: Unpack[DraftingOptions],
    ) -> Iterator[Piece]:
        """``chat``, a Piece a token."""
        prompt = self.chat_prompt(messages, chat_template=chat_template, template_options=template_options)
        return self.stream(prompt, params, **options)

    def chat_prompt(
        self,
        messages: AbstractSequence[Message],
        *,
        chat_template: str | None = None,
        template_options: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where its next answer begins, each special token once.

        Args:
            chat_template: Jinja source, in place of the tokenizer's own.
            template_options: what the template or transformers' ``apply_chat_template`` knows besides, such
                as ``tools``, ``enable_thinking``, or ``continue_final_message``, which goes on with the last
                turn.

        Raises:
            ConfigError: there is no template.
            PromptError: there is no tokenizer, or the template refuses these messages.
        """
        return conversation_ids(
            self.tokenizer, messages, chat_template=chat_template, template_options=template_options
        )

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
        target = require_torch(self.target, "autocomplete")
        drafts = complete(target, self.encode(prompt), k=k, max_new_tokens=max_new_tokens, ngrams=ngrams)
        written = ((list(draft.token_ids), draft.score) for draft in drafts)
        return [Completion(self._requests.detokeniser.text(ids), ids, score) for ids, score in written]

    def drafter(self, name: str | Drafter | None = None) -> Drafter:
        """The drafter of that name, with everything it has learnt here; the default one for None."""
        chosen = self._default_drafter if name is None else name
        if not isinstance(chosen, str):
            if not hasattr(chosen, "propose"):
                raise ConfigError(
                    f"drafter={chosen!r} is no drafter; give a name, or an object that proposes"
                )
            return chosen
        if chosen not in self._drafters:
            self._drafters[chosen] = make_drafter(chosen, self.resources)
        return self._drafters[chosen]

    def save_store(self, path: str | os.PathLike[str], drafter: str | None = None) -> None:
        """Save what a drafter learnt, to be given to ``load(store=...)``. Raises StoreError."""
        save_store(path, self.drafter(drafter), self.fingerprint)

    def load_store(self, path: str | os.PathLike[str], drafter: str | None = None) -> None:
        """Replace what a drafter learnt by a saved store. Raises StoreError, IncompatibleModels."""
        load_store(path, self.drafter(drafter), self.fingerprint, self.target.vocab_size)

    def forget(self) -> None:
        """Drop all that was kept of prompts and texts so far; the next call starts as the first.

        Saved stores stay (``hasten store FILE --forget``), and so does what a Drafter object of yours learnt.
        """
        self._drafters.clear()
        self._policies.clear()
        if self._prefixes is not None:
            self._prefixes.clear()

    @property
    def fingerprint(self) -> str:
        """Identifies the vocabulary: stores and indexes fit only the same one."""
        if self._fingerprint is None:
            self._fingerprint = vocabulary_fingerprint(self.tokenizer, self.target.vocab_size)
        return self._fingerprint

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked against vocabulary and context. Raises PromptError."""
        return self._requests.encode(prompt)

    def decode_sequences(
        self, entries: AbstractSequence[Entry], batch_size: int
    ) -> Generator[Step, None, None]:
        """Write prepared sequences, for callers with samplers and stop rules of their own.

        At most ``batch_size`` are written side by side; where one ends, the next joins.
        """
        with closing(Scheduler(self.target, max_batch=batch_size, prefixes=self._prefixes)) as scheduler:
            for sequence, method in entries:
                scheduler.submit(sequence, method)
            while scheduler.has_work:
                step = scheduler.step()
                if step.gains:
                    yield step
        if self._has_prices:
            self._prices.keep()

    def method(self, drafting: Drafting) -> Method:
        """What the names of a drafting stand for here, with all that was learnt. Raises ConfigError."""
        check_policy(drafting.policy, drafting.num_draft_tokens)
        verifier = find_verifier(drafting.verify)
        drafter = self.drafter(drafting.drafter)
        return Method(drafter, self._policy(drafter, drafting), verifier)

    def _policy(self, drafter: Drafter, drafting: Drafting) -> DraftPolicy:
        """What it learnt of this drafter goes on from call to call, whatever the size of the batch."""
        if not isinstance(drafting.policy, str):
            own: DraftPolicy = drafting.policy
            return own
        if drafting.num_draft_tokens is not None or drafter.name == "off":
            size = drafting.num_draft_tokens or 0
            if size not in self._fixed_sizes:
                self._fixed_sizes[size] = FixedPolicy(size)
            return self._fixed_sizes[size]
        key = drafter.name, drafting.policy
        if drafter is not self._drafters.get(drafter.name):
            return POLICIES[drafting.policy](self._prices.cost)
        if key not in self._policies:
            self._policies[key] = POLICIES[drafting.policy](self._prices.cost)
        return self._policies[key]

    @cached_property
    def _prefixes(self) -> PrefixCache | None:
        """What texts cached. Raises ConfigError where it was asked for and cannot be had."""
        if not self._prefix_cache:
            return None
        kept = self.target.keeps_prefixes
        if self._prefix_cache == "auto":
            return PrefixCache(_PREFIX_BYTES) if kept == "exactly" else None
        if kept == "never":
            raise ConfigError(
                f"prefix_cache={self._prefix_cache} does not go with {self.target.architecture}, whose cache "
                "cannot be taken apart by tokens; leave it out"
            )
        return PrefixCache(int(self._prefix_cache))

    @property
    def _has_prices(self) -> bool:
        """Whether anything was drafted that has a price."""
        return "_prices" in vars(self)

    @cached_property
    def _prices(self) -> Prices:
        """Measured, unless an earlier run did, when the first text is drafted."""
        return Prices(self.target)


def _prefix_bytes(prefix_cache: int | str) -> int | str:
    """Raises ConfigError for anything but "auto" or a number of bytes."""
    if prefix_cache == "auto":
        return prefix_cache
    size = whole(prefix_cache, "prefix_cache", 'bytes, 0 or more, or "auto"')
    if size < 0:
        raise ConfigError(f'prefix_cache={size} cannot work; give bytes, 0 or more, or "auto"')
    return size


def _params_of(params: Any, num_prompts: int) -> SamplingParams | list[SamplingParams]:
    """Those of all prompts, or a list with one for each. Raises ConfigError for anything else."""
    if not isinstance(params, list | tuple):
        return sampling_params(params)
    if len(params) != num_prompts:
        raise ConfigError(
            f"params={params!r} holds {len(params)} SamplingParams for {num_prompts} prompts; give one for "
            "each prompt, or a single one for all"
        )
    return [sampling_params(own) for own in params]
