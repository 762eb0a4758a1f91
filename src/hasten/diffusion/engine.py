"""Load a masked-diffusion model, generate, infill, stream: everything around the diffusion loop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from hasten.calls import (
    Asked,
    answer,
    asked_texts,
    interruptible,
    require_one_output,
    require_one_sample,
    stop_token_ids,
)
from hasten.constraints.base import Constraint
from hasten.core import FinishReason, Guarantee, SamplingParams, sampling_params
from hasten.detokenising import Detokeniser, GrowingText
from hasten.diffusion.auto import auto_strategy, exact_strategy
from hasten.diffusion.base import Helpers, Strategy
from hasten.diffusion.canvas import Block, Canvas, Denoiser
from hasten.diffusion.denoisers.guide import load_guide
from hasten.diffusion.denoisers.loading import load_denoiser
from hasten.diffusion.drawing import Drawing, noise_source
from hasten.diffusion.limits import Limits
from hasten.diffusion.loop import Writing, denoise
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.prompts import CanvasReader, Gap, Template, Text, parse_template
from hasten.diffusion.trace import DiffusionStats, Record
from hasten.diffusion.trained import find_filter, find_sampler
from hasten.diffusion.transforms.no_eos import NoEos
from hasten.errors import PromptError
from hasten.prompts import read_prompts
from hasten.stopping import TextStream
from hasten.values import at_least_one

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Trace = Callable[[Record], None]


class CanvasOptions(TypedDict, total=False):
    """How canvases are written; see ``DiffusionModel.generate``."""

    strategy: str | Strategy
    constraint: Constraint | None
    batch_size: int
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class DiffusionOutput:
    """One finished text. ``text`` is empty for a model without a tokenizer.

    ``guarantee`` is to the reference, one token a forward with nothing cached: "exact" is its text,
    "distribution" one of its law, "approximate" neither. ``strategy`` names what wrote it.
    """

    text: str
    token_ids: list[int]
    """to the first end-of-text token, that one included; of an infill, the whole canvas"""
    gaps: list[str]
    """of an infill: what was written into each gap"""
    finish_reason: FinishReason
    stats: DiffusionStats
    seed: int
    prompt_ids: list[int]
    guarantee: Guarantee
    strategy: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A canvas after one forward pass, as it is streamed."""

    segments: list[tuple[str, bool]]
    """pieces of the new text in order, and whether each is committed; others are the model's present guess"""
    records: list[Record]
    """what was written in this pass"""
    output: DiffusionOutput | None = None
    """set on the last one"""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    writing: Writing
    params: SamplingParams
    seed: int
    gaps: list[Block]
    """empty for a text that goes on after its prompt"""
    stop_token_ids: frozenset[int]


def load_diffusion(
    model: str | os.PathLike[str] = "demo-diffusion",
    *,
    dtype: str = "auto",
    device: str | None = None,
    spec: str | None = None,
    guide: str | os.PathLike[str] | None = None,
    filter: str | os.PathLike[str] | None = None,
    sampler: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> DiffusionModel:
    """Load a masked-diffusion model to write with.

    Args:
        model: a bundled name ("demo-diffusion", "demo-lists"), a local folder or a hub id.
        dtype, device: as for ``hasten.load``.
        spec: what the checkpoint does not say, such as "mask_id=126336,attention=full".
        guide: an autoregressive model of the same tokenizer for the selector "guided", by name.
        filter: a file of ``hasten train filter`` for the selector "learn2pd".
        sampler: a file of ``hasten train joint`` for the selector "joint".
        trust_remote_code: allow a hub repository to run its own code.

    Raises:
        ConfigError, ModelError, IncompatibleModels: see hasten.errors.
    """
    name = os.fspath(model)
    denoiser, tokenizer = load_denoiser(name, dtype, device, spec=spec, trust_remote_code=trust_remote_code)
    helpers = Helpers(
        filter=find_filter(denoiser, name, None if filter is None else Path(filter)),
        sampler=find_sampler(denoiser, None if sampler is None else Path(sampler)),
        delimiter_ids=_line_ends(tokenizer),
    )
    if guide is not None:
        opened = load_guide(
            guide,
            denoiser=denoiser,
            denoiser_tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        helpers = replace(helpers, guide=opened)
    return DiffusionModel(denoiser, tokenizer, helpers)


class DiffusionModel:
    """A denoiser with its tokenizer. One call at a time: instances are not thread-safe."""

    def __init__(
        self,
        denoiser: Denoiser,
        tokenizer: PreTrainedTokenizerBase | None = None,
        helpers: Helpers = Helpers(),
    ) -> None:
        self.denoiser = denoiser
        self.tokenizer = tokenizer
        self._detokeniser = Detokeniser(tokenizer)
        self.helpers = helpers
        self.reader = CanvasReader(tokenizer, denoiser.spec, denoiser.vocab_size, denoiser.max_length)

    @property
    def module(self) -> torch.nn.Module:
        """The torch module behind the denoiser."""
        module: torch.nn.Module = self.denoiser.model
        return module

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well
        self, prompts: Text, params: SamplingParams | None = None, **options: Unpack[CanvasOptions]
    ) -> DiffusionOutput: ...

    @overload
    def generate(
        self,
        prompts: AbstractSequence[Text],
        params: SamplingParams | None = None,
        **options: Unpack[CanvasOptions],
    ) -> list[DiffusionOutput]: ...

    def generate(
        self,
        prompts: Text | AbstractSequence[Text],
        params: SamplingParams | None = None,
        *,
        strategy: str | Strategy = "auto",
        constraint: Constraint | None = None,
        batch_size: int = 16,
        trace: Trace | None = None,
    ) -> DiffusionOutput | list[DiffusionOutput]:
        """Write after one prompt (a DiffusionOutput) or several (a list, ``params.n`` outputs a prompt).

        Args:
            prompts: texts, or token ids. A text that spells the mask token is read as ordinary characters.
            params: ``max_new_tokens`` is the size of the canvas. Stop strings cut the finished text.
            strategy: "auto"; "exact", the text of the reference in fewer passes; a line such as
                "threshold:0.8+credit/dual", see ``hasten systems``; or a Strategy.
            constraint: a language that every text shall be in, see ``hasten.constraints``.
            batch_size: how many canvases are written side by side. No text depends on it.
            trace: called with a Record for each step of each canvas.

        Raises:
            PromptError, ConfigError: before the first forward pass.
            GenerationInterrupted: by Ctrl-C, with what was written.
        """
        several, is_single = read_prompts(prompts, getattr(self.tokenizer, "pad_token_id", None))
        if is_single:
            require_one_output(sampling_params(params))
        arguments: dict[str, Any] = {"strategy": strategy, "constraint": constraint}
        outputs = self.generate_all(several, params, batch_size=batch_size, trace=trace, **arguments)
        return answer(outputs, is_single=is_single)

    def generate_all(
        self,
        prompts: AbstractSequence[Text],
        params: SamplingParams | None = None,
        *,
        strategy: str | Strategy = "auto",
        constraint: Constraint | None = None,
        batch_size: int = 16,
        trace: Trace | None = None,
    ) -> list[DiffusionOutput]:
        """``generate`` for a list of prompts, always with a list of outputs."""
        jobs = self._jobs(prompts, sampling_params(params), strategy, constraint)
        return self._run(jobs, batch_size, trace)

    def check(
        self,
        prompts: AbstractSequence[Text | Template],
        params: SamplingParams | None = None,
        *,
        strategy: str | Strategy = "auto",
        constraint: Constraint | None = None,
    ) -> list[Strategy]:
        """The strategy of each text. Raises what ``generate`` would raise before its first forward pass."""
        jobs = self._jobs(prompts, sampling_params(params), strategy, constraint)
        return [job.writing.strategy for job in jobs]

    def infill(
        self,
        template: str | Template,
        params: SamplingParams | None = None,
        *,
        strategy: str | Strategy = "auto",
        constraint: Constraint | None = None,
        trace: Trace | None = None,
    ) -> DiffusionOutput:
        """Write the gaps of one text, which end-of-text tokens cannot shorten.

        Args:
            template: a text such as "def f(x):<gap:20>return y", or a list of texts and ``Gap``s.
            params, strategy, constraint, trace: as for ``generate``; ``max_new_tokens`` does not count.
                Each gap's text shall be in the constraint's language, filling the gap.

        Raises as ``generate``; PromptError for a template without a gap.
        """
        params = sampling_params(params)
        require_one_sample(params, "infilled at once", "call infill once a sample")
        [job] = self._jobs([_pieces(template)], params, strategy, constraint)
        [output] = self._run([job], 1, trace)
        return output

    def stream(
        self,
        prompt: Text | Template,
        params: SamplingParams | None = None,
        *,
        strategy: str | Strategy = "auto",
        constraint: Constraint | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Snapshot]:
        """Write one text, a Snapshot a forward pass; arguments as for ``generate``.

        A list with a Gap among its pieces is infilled.
        """
        params = sampling_params(params)
        require_one_sample(params, "streamed", "use generate, or one stream a sample")
        [job] = self._jobs([prompt], params, strategy, constraint)
        return self._stream(job, trace)

    def _stream(self, job: _Job, trace: Trace | None) -> Iterator[Snapshot]:
        shown: list[Record] = []
        for records in denoise(self.denoiser, [job.writing]):
            _report(records, trace)
            shown += records
            if records and job.writing.canvas.num_open:
                yield Snapshot(self._segments(job, records[-1]), shown)
                shown = []
        output = self._output(job)
        yield Snapshot([(output.text, True)], shown, output)

    def _run(self, jobs: list[_Job], batch_size: int, trace: Trace | None) -> list[DiffusionOutput]:
        batch_size = at_least_one(batch_size, "batch_size")
        with interruptible(lambda: [self._output(job) for job in jobs]):
            for first in range(0, len(jobs), batch_size):
                batch = jobs[first : first + batch_size]
                for index, job in enumerate(batch):
                    job.writing.sequence = index
                for records in denoise(self.denoiser, [job.writing for job in batch]):
                    _report(records, trace)
        return [self._output(job) for job in jobs]

    def _jobs(
        self,
        prompts: AbstractSequence[Any],
        params: SamplingParams,
        strategy: str | Strategy,
        constraint: Constraint | None,
    ) -> list[_Job]:
        """Everything that can be wrong is found here, before the first forward pass."""
        return [self._job(asked, strategy, constraint) for asked in asked_texts(prompts, params)]

    def _job(self, asked: Asked[Any], wanted: str | Strategy, constraint: Constraint | None) -> _Job:
        spec, vocab_size = self.denoiser.spec, self.denoiser.vocab_size
        noise = noise_source(spec, vocab_size, asked.seed, asked.sample)
        gaps: list[Block] = []
        if _has_gap(asked.prompt):
            canvas, gaps = self.reader.with_gaps(asked.prompt, noise)
        else:
            canvas = self.reader.after(asked.prompt, asked.params.max_new_tokens, noise)
        strategy = self._strategy(wanted, canvas).constrained(constraint)
        if gaps and spec.eos_ids and constraint is None:  # which would not let a gap end early either
            no_eos = NoEos(eos_ids=spec.eos_ids)
            strategy = replace(strategy, transforms=(*strategy.transforms, no_eos))
        strategy.check(spec)
        strategy.check_canvas(canvas)
        own_stops = () if gaps else spec.eos_ids
        limits = None
        if constraint is not None:
            spans = gaps or [Block(canvas.prompt_length, len(canvas))]
            limits = Limits(constraint, spans, own_stops, vocab_size)
        draw = Drawing(asked.params, asked.seed, asked.sample)
        writing = Writing(canvas, strategy, draw, noise, limits=limits)
        stops = stop_token_ids(asked.params, self.tokenizer, vocab_size, own_stops)
        return _Job(writing, asked.params, asked.seed, gaps, stops)

    def _strategy(self, wanted: str | Strategy, canvas: Canvas) -> Strategy:
        if isinstance(wanted, Strategy):
            return wanted
        if wanted == "auto":
            return auto_strategy(self.denoiser.spec, canvas)
        if wanted == "exact":
            return exact_strategy(self.denoiser.spec, canvas)
        return parse_strategy(wanted, self.denoiser.spec, self.helpers)

    def _output(self, job: _Job) -> DiffusionOutput:
        canvas, strategy = job.writing.canvas, job.writing.strategy
        ids = canvas.token_ids.tolist()
        reason: FinishReason = "length"
        begin = 0 if job.gaps else canvas.prompt_length
        written = ids[begin:]
        if canvas.num_open:  # what was written before an interrupt, up to the first hole
            reason = "interrupted"
            written = ids[begin : canvas.first_open]
        ends = [place for place, token_id in enumerate(written) if token_id in job.stop_token_ids]
        if ends and not job.gaps:
            written, reason = written[: ends[0] + 1], "stop"
        text = TextStream(self._detokeniser, job.params.stop_strings)
        text.push(written)
        text.finish()
        if text.stopped:
            reason = "stop"
        return DiffusionOutput(
            text=text.text,
            token_ids=written,
            gaps=[self._detokeniser.text(ids[gap.start : gap.end]) for gap in job.gaps],
            finish_reason=reason,
            stats=job.writing.stats,
            seed=job.seed,
            prompt_ids=ids[:begin],
            guarantee=strategy.guarantee,
            strategy=strategy.name,
        )

    def _segments(self, job: _Job, record: Record) -> list[tuple[str, bool]]:
        """The new text as it stands, up to a committed end of text."""
        begin = 0 if job.gaps else job.writing.canvas.prompt_length
        ids, is_open = record.canvas_ids[begin:].tolist(), record.is_open[begin:].tolist()
        growing = GrowingText(
            self._detokeniser
        )  # they join as in the whole text, characters across two included
        segments = []
        for is_guess, group in itertools.groupby(zip(ids, is_open, strict=True), key=lambda one: one[1]):
            segments.append(("".join(growing.push(token_id) for token_id, _ in group), not is_guess))
        text, is_committed = segments[-1]
        return [*segments[:-1], (text + growing.finish(), is_committed)]


def _line_ends(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that hold the end of a line, which byte-level tokenizers spell with a letter of their own."""
    if tokenizer is None:
        return ()
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted(token_id for token, token_id in vocabulary.items() if {"\n", "Ċ"} & set(token)))


def _report(records: list[Record], trace: Trace | None) -> None:
    if trace is not None:
        for record in records:
            trace(record)


def _has_gap(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and any(isinstance(piece, Gap) for piece in prompt)


def _pieces(template: str | Template) -> Template:
    if isinstance(template, str):
        return parse_template(template)
    if not _has_gap(template):
        raise PromptError("the template has no gap; give a list with a Gap among the texts")
    return template
