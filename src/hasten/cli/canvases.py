"""What ``generate`` and ``infill`` do with a diffusion model: load it, write, show the canvas as it fills."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hasten.cli.live import print_outputs
from hasten.cli.options import quiet_loading
from hasten.cli.prompt_files import read_prompts
from hasten.errors import ConfigError, GenerationInterrupted
from hasten.files import read_text, writing

if TYPE_CHECKING:
    from hasten.constraints.base import Constraint
    from hasten.core import SamplingParams
    from hasten.diffusion.engine import DiffusionModel, DiffusionOutput, Snapshot, Trace
    from hasten.diffusion.trace import Record


@dataclass(frozen=True, slots=True)
class DiffusionChoice:
    """A diffusion model as it is named on the command line."""

    model: str
    dtype: str
    device: str | None
    spec: str | None
    guide: str | None
    filter: Path | None
    sampler: Path | None

    def load(self) -> DiffusionModel:
        from hasten.diffusion.engine import load_diffusion

        quiet_loading()
        return load_diffusion(
            self.model,
            dtype=self.dtype,
            device=self.device,
            spec=self.spec,
            guide=self.guide,
            filter=self.filter,
            sampler=self.sampler,
        )


@dataclass(frozen=True, slots=True)
class ConstraintChoice:
    """A language that the text shall be in. Raises ConfigError for more than one."""

    regex: str | None = None
    json_schema: Path | None = None
    grammar: Path | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.regex, self.json_schema, self.grammar)) > 1:
            raise ConfigError("give one of --regex, --json-schema and --grammar; together they cannot work")

    def constraint(self, tokenizer: Any) -> Constraint | None:
        """Raises ConfigError for a file that cannot be read or a language that cannot be used."""
        from hasten.constraints import grammar_constraint, json_schema_constraint, regex_constraint

        if self.regex is not None:
            return regex_constraint(self.regex, tokenizer)
        if self.json_schema is not None:
            return json_schema_constraint(read_text(self.json_schema, ConfigError), tokenizer)
        return (
            None
            if self.grammar is None
            else grammar_constraint(read_text(self.grammar, ConfigError), tokenizer)
        )


def write_canvases(
    model: DiffusionModel,
    rules: ConstraintChoice,
    prompts: list[str] | Path,
    params: SamplingParams,
    *,
    strategy: str,
    batch: int,
    as_json: bool,
    trace: Path | None,
) -> None:
    """Texts after prompts; a single one is shown while it is written."""
    if isinstance(prompts, Path):
        prompts = read_prompts(prompts, model.tokenizer, model.denoiser.vocab_size)
    arguments: dict[str, Any] = {"strategy": strategy, "constraint": rules.constraint(model.tokenizer)}
    with traced(trace, model) as tracer:
        if len(prompts) == 1 and not as_json:
            show(model, model.stream(prompts[0], params, trace=tracer, **arguments))
            return
        try:
            outputs = model.generate_all(prompts, params, batch_size=batch, trace=tracer, **arguments)
        except GenerationInterrupted as interrupted:
            print_outputs(prompts, interrupted.outputs, summary, as_dict if as_json else None)
            raise
        print_outputs(prompts, outputs, summary, as_dict if as_json else None)


def show(model: DiffusionModel, snapshots: Iterator[Snapshot]) -> None:
    """A terminal sees the canvas fill, what is only guessed dimmed; a file gets the finished text."""
    if model.tokenizer is None:
        raise ConfigError("this model has no tokenizer, so there is no text to show; use --json")
    console = Console(file=sys.stdout, highlight=False)
    output = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for snapshot in snapshots:
            if console.is_terminal:
                live.update(_canvas(snapshot), refresh=True)
            output = snapshot.output
    assert output is not None
    typer.echo(output.text)
    typer.secho(f"{summary(output)}, seed {output.seed}", err=True, dim=True)


def _canvas(snapshot: Snapshot) -> Text:
    text = Text()
    for piece, is_committed in snapshot.segments:
        text.append(piece, "" if is_committed else "dim italic")
    return text


def summary(output: DiffusionOutput) -> str:
    """One line of numbers for a finished text."""
    stats = output.stats
    ahead = f" and {stats.num_ahead} steps foreseen" if stats.num_ahead else ""
    return (
        f"{stats.num_tokens} tokens in {stats.num_forwards} forwards{ahead}, "
        f"{stats.tokens_per_forward:.2f} tokens a forward, {stats.num_rows} rows, "
        f"{stats.total_ms / 1000:.2f} s, {output.strategy}: {output.guarantee}"
    )


def as_dict(prompt: Any, output: DiffusionOutput) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "prompt": prompt,
        "text": output.text,
        "token_ids": output.token_ids,
        "gaps": output.gaps,
        "finish_reason": output.finish_reason,
        "seed": output.seed,
        "strategy": output.strategy,
        "guarantee": output.guarantee,
        "stats": output.stats.as_dict(),
    }


@contextmanager
def traced(path: Path | None, model: DiffusionModel) -> Iterator[Trace | None]:
    """A trace that writes one JSON line a step, at once. Raises ConfigError for a file it cannot write."""
    if path is None:
        yield None
        return
    with writing(path, "trace"):
        file = path.open("w", encoding="utf-8")

    def write(record: Record) -> None:
        tokens = None
        if model.tokenizer is not None:
            tokens = [str(model.tokenizer.decode([one])) for one in record.token_ids.tolist()]
        file.write(json.dumps(record.as_dict() | {"tokens": tokens}, ensure_ascii=False) + "\n")

    with file:
        yield write
