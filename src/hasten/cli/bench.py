"""``hasten bench``: all methods on the same prompts, in tables and in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from hasten.cli import options
from hasten.cli.bench_canvases import bench_canvases
from hasten.errors import ConfigError
from hasten.files import require_writable, write_text

if TYPE_CHECKING:
    from hasten.bench.models import OpenModel
    from hasten.bench.programs import Programs
    from hasten.bench.prompts import PromptSet
    from hasten.bench.runner import BenchConfig, Benchmark, Progress

_DISAGREE = 1


_ONLY_AUTOREGRESSIVE = {"baselines", "batch", "max_new_tokens", "ignore_eos", "policy", "num_draft_tokens"}
_ONLY_AUTOREGRESSIVE |= {
    "first_turns",
    "one_process",
    "is_cold",
    "shape",
    "forward",
    "index",
    "draft",
    "draft_device",
    "draft_vocab",
}


def bench(
    context: typer.Context,
    model: options.Model,
    *,
    prompts: Annotated[
        list[str],
        typer.Option(help=".jsonl files, demo, repeat, or random:N; several with commas, or repeat it."),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Drafters with commas, FILE.py:CLASS for your own, each alone or as DRAFTER/RULE; of a "
            "diffusion model policies such as threshold:0.9/dual, or all. Plain decoding, or one token a "
            "forward, is always among them."
        ),
    ] = "plain,auto",
    baselines: Annotated[
        str,
        typer.Option(
            help="transformers' own generate: hf, hf-compiled (on a GPU), hf-prompt-lookup, hf-assisted "
            "(with --draft); on the same weights also llamacpp, llamacpp-lookup, openvino-genai, dejavuu; "
            "'' for none."
        ),
    ] = "hf",
    batch: Annotated[
        str, typer.Option(help="Prompts answered side by side; several sizes with commas, as in 1,4,8.")
    ] = "1",
    max_new_tokens: options.MaxNewTokens = 128,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Write on after an end-of-text, all texts to the same length."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(help="This many prompts of each set, spread over it; as many more as fill the batches."),
    ] = None,
    temperature: options.Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Of the first prompt; the next one has the next seed.")] = 0,
    policy: options.PolicyName = "cost",
    num_draft_tokens: options.NumDraftTokens = None,
    is_cold: Annotated[bool, typer.Option("--cold", help="Drafters forget between prompts.")] = False,
    repeat: Annotated[int, typer.Option(help="Run everything so often; the median of a prompt counts.")] = 1,
    first_turns: Annotated[
        bool, typer.Option("--first-turns", help="Only the first turn of every conversation.")
    ] = False,
    shape: options.Shape = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
    threads: options.Threads = None,
    index: options.Index = None,
    draft: options.Draft = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
    canvas: Annotated[
        str, typer.Option(help="New tokens a text, of a diffusion model; several with commas.")
    ] = "32",
    spec: options.Spec = None,
    one_process: Annotated[
        bool,
        typer.Option(
            "--one-process",
            help="Baselines share hasten's process and one copy of the model: less memory, but they slow "
            "each other down.",
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the records here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write them here, a row each.")] = None,
) -> None:
    """Measure speed, and check that every text is plain decoding's. Exit code 1 where one is not.

    Diffusion models: what is promised to be exact is compared with one token a forward.
    """
    from hasten.models.checkpoints import is_denoiser

    sources = [name for entry in prompts for name in names(entry)]
    if is_denoiser(model, spec):
        options.require_default(context, _ONLY_AUTOREGRESSIVE, "is for autoregressive models", model)
        given = context.get_parameter_source("methods")
        bench_canvases(
            model,
            sources,
            methods=names(methods if given is not None and given.name != "DEFAULT" else "all"),
            canvas_sizes=whole_numbers("canvas", canvas),
            limit=limit,
            temperature=temperature,
            seed=seed,
            repeat=repeat,
            loading={"dtype": dtype, "device": device, "spec": spec},
            threads=threads,
            json_file=json_file,
        )
        return
    options.require_default(context, {"canvas", "spec"}, "is for diffusion models", model)
    from hasten.bench.models import open_model
    from hasten.bench.prompts import load_prompt_sets
    from hasten.bench.runner import BenchConfig

    choice = options.DraftChoice(draft, draft_device, draft_vocab)
    config = BenchConfig(
        methods=names(methods),
        baselines=_possible(names(baselines), choice, model),
        batch_sizes=whole_numbers("batch", batch),
        max_new_tokens=max_new_tokens,
        ignore_eos=ignore_eos,
        limit=limit,
        temperature=temperature,
        seed=seed,
        policy=policy,
        num_draft_tokens=num_draft_tokens,
        is_cold=is_cold,
        repeat=repeat,
        first_turns=first_turns,
    )
    options.set_threads(threads)
    options.quiet_loading()
    _require_use(choice, config)
    _say(f"{model} is opened")
    opened = open_model(
        model,
        dtype=dtype,
        device=device,
        forward=forward,
        shape=shape,
        index=index,
        **choice.arguments(),
    )
    sets = load_prompt_sets(sources, opened.language_model.target.vocab_size)
    _measure(opened, config, sets, _Files(json_file, csv_file), one_process=one_process)


def names(text: str) -> tuple[str, ...]:
    """The entries of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _possible(baselines: tuple[str, ...], draft: options.DraftChoice, model: str) -> tuple[str, ...]:
    """Those that can run, and a line for each that lacks its draft model or its checkpoint."""
    from hasten.bench.baselines import BASELINES
    from hasten.models.llamacpp.target import is_gguf

    if is_gguf(model):
        for name in baselines:
            typer.echo(f"{name} is left out: it starts from a transformers checkpoint", err=True)
        return ()
    wanting = {name for name in baselines if name in BASELINES and BASELINES[name].needs_draft}
    if draft.model is not None or not wanting:
        return baselines
    for name in sorted(wanting):
        typer.echo(f"{name} is left out: it needs a draft model, give one with --draft", err=True)
    return tuple(name for name in baselines if name not in wanting)


def _require_use(draft: options.DraftChoice, config: BenchConfig) -> None:
    """Raises ConfigError where nothing that is measured would ask the draft model."""
    from hasten.bench.methods import parts_of_method

    if not _uses_stock_draft(config):
        draft.require_use(*(parts_of_method(name)[0] for name in config.methods))


def _uses_stock_draft(config: BenchConfig) -> bool:
    from hasten.bench.baselines import BASELINES

    return any(BASELINES[name].needs_draft for name in config.baselines)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Of a list with commas. Raises ConfigError."""
    try:
        return tuple(int(number) for number in names(text))
    except ValueError:
        raise ConfigError(
            f"{option}={text!r} cannot work; give whole numbers with commas, as in 1,4,8"
        ) from None


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the records go; None: nowhere."""

    json: Path | None
    csv: Path | None

    def require_writable(self) -> None:
        """Raises WriteError."""
        for path in (self.json, self.csv):
            if path is not None:
                require_writable(path, "report")

    def write(self, conditions: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Raises WriteError."""
        from hasten.bench.records import as_csv

        if self.json is not None:
            text = json.dumps({"conditions": conditions, "records": records}, indent=2)
            write_text(self.json, text + "\n", "report")
        if self.csv is not None:
            write_text(self.csv, as_csv(records), "report")


def _measure(
    opened: OpenModel,
    config: BenchConfig,
    sets: list[PromptSet],
    files: _Files,
    *,
    one_process: bool,
) -> None:
    from hasten.bench.memory_limit import ROWS, measure_limit
    from hasten.bench.runner import Benchmark

    with closing(_programs(opened, config, apart=bool(config.baselines) and not one_process)) as programs:
        _say(f"{len(config.baselines)} baselines get ready" if config.baselines else "")
        benchmark = Benchmark(opened, config, programs)
        for name, reason in benchmark.skipped.items():
            typer.echo(f"{name} is left out: {reason}", err=True)
        files.require_writable()
        _say("passes are measured")
        stock_ms = programs.stock_passes(ROWS) if config.baselines else None
        limit = measure_limit(opened, stock_ms).as_json()
        try:
            with _progress([one.name for one in sets]) as progress:
                benchmark.run(sets, progress)
        except KeyboardInterrupt:
            if benchmark.results:
                typer.echo("interrupted; this is what was complete:", err=True)
                _report(benchmark, sets, {"memory_limit": limit}, files)
            raise
        found = {"memory_limit": limit, "idle_processor_share": programs.idle_shares()}
    _require_same_texts(_report(benchmark, sets, found, files))


def _say(what: str) -> None:
    """Where the run is, with the time of day, where standard error is a log; a terminal has a bar."""
    if what and not sys.stderr.isatty():
        typer.echo(f"{datetime.now():%H:%M:%S} {what}", err=True)


@contextmanager
def _progress(names: list[str]) -> Iterator[Progress]:
    """How far every prompt set is: a bar in a terminal, elsewhere a line for each group of prompts."""
    if not sys.stderr.isatty():
        yield lambda name, done, total: _say(f"{name}: {done} of {total}")
        return
    with Bar(console=Console(stderr=True), transient=True, refresh_per_second=1) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in names}
        yield lambda name, done, total: bar.update(tasks[name], completed=done, total=total)


def _require_same_texts(records: list[dict[str, Any]]) -> None:
    """Ends with exit code 1 where a text is not what it should be, and says why."""
    from hasten.bench.methods import PLAIN
    from hasten.bench.report import failure

    failed = [record for record in records if record["identical"] is False and not record["is_peer"]]
    for record in failed:
        what = "what transformers' own model writes" if record["method"] == PLAIN else "plain decoding's"
        place = f"{record['method']} on {record['prompt_set']}"
        typer.echo(f"error: {place}: another text than {what}: {failure(record)}", err=True)
    if failed:
        raise typer.Exit(_DISAGREE)


def _programs(opened: OpenModel, config: BenchConfig, *, apart: bool) -> Programs:
    """Stock copies of the model and of the draft model, loaded when and where they are needed."""
    from hasten.bench.programs import Checkpoint, programs_for

    target, draft = opened.language_model.target, opened.language_model.resources.draft
    stock_draft = None
    if _uses_stock_draft(config):
        assert draft is not None
        word = str(draft.model.dtype).removeprefix("torch.")
        stock_draft = Checkpoint(draft.name, word, str(draft.model.device))
    word = str(target.dtype).removeprefix("torch.")
    stock = Checkpoint(opened.name, word, str(target.device), opened.shape)
    return programs_for(stock, stock_draft, apart=apart)


def _report(
    benchmark: Benchmark, sets: list[PromptSet], found: dict[str, Any], files: _Files
) -> list[dict[str, Any]]:
    from hasten.bench.conditions import describe
    from hasten.bench.models import shape_sentence
    from hasten.bench.records import config_of, records_of
    from hasten.bench.report import print_report

    records = records_of(benchmark)
    conditions = describe(benchmark.opened) | config_of(benchmark) | found
    print_report(Console(), conditions, records, shape_sentence(benchmark.opened))
    for one in sets:
        if num_left_out := benchmark.left_out.get(one.name, 0):
            typer.echo(f"{one.name}: {num_left_out} prompts do not fit into the context and were left out")
        _explain_batches(one.name, benchmark)
    files.write(conditions, records)
    return records


def _explain_batches(name: str, benchmark: Benchmark) -> None:
    """Which prompts full batches are made of, where they are not simply those that were asked for."""
    sizes, count = benchmark.config.batch_sizes, benchmark.num_conversations.get(name)
    if count is None or max(sizes) == 1:
        return
    limit = benchmark.config.limit
    asked = "" if limit is None else f" for --limit {limit}"
    typer.echo(f"{name}: {count} conversations{asked}, to fill batches of {', '.join(map(str, sizes))}")
    for size in sizes:
        if missing := -count % size:
            typer.echo(f"{name}, batch {size}: {missing} of them a second time, to fill the last batch")
