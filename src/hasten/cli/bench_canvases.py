"""What ``hasten bench`` does with a diffusion model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import Progress

from hasten.cli import options
from hasten.files import require_writable, write_text

if TYPE_CHECKING:
    from hasten.bench.canvases import CanvasBenchmark

_DISAGREE = 1
_PRECISE = ("float32", "float64")


def bench_canvases(
    model: str,
    sources: list[str],
    *,
    methods: tuple[str, ...],
    canvas_sizes: tuple[int, ...],
    limit: int | None,
    temperature: float,
    seed: int,
    repeat: int,
    loading: dict[str, str | None],
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Exit code 1 where a method that promises the reference's text wrote another one.

    In half precision that is only said: passes over one canvas and over several round differently there, and
    candidates tie often.
    """
    from hasten.bench.canvases import CanvasBenchConfig, CanvasBenchmark, expand_methods, read_asked
    from hasten.diffusion.engine import load_diffusion

    options.set_threads(threads)
    options.quiet_loading()
    if json_file is not None:
        require_writable(json_file, "report")
    opened = load_diffusion(model, **loading)  # type: ignore[arg-type]
    config = CanvasBenchConfig(
        methods=expand_methods(methods, opened, canvas_sizes, lambda line: typer.echo(line, err=True)),
        canvas_sizes=canvas_sizes,
        limit=limit,
        temperature=temperature,
        seed=seed,
        repeat=repeat,
    )
    benchmark = CanvasBenchmark(opened, config)
    asked = read_asked(sources, opened, limit)
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            tasks = {f"canvas {size}": bar.add_task(f"canvas {size}", total=None) for size in canvas_sizes}
            benchmark.run(
                asked, lambda name, done, total: bar.update(tasks[name], completed=done, total=total)
            )
    except KeyboardInterrupt:
        if benchmark.results:
            typer.echo("interrupted; this is what was complete:", err=True)
            _report(model, benchmark, json_file)
        raise
    records = _report(model, benchmark, json_file)
    if not any(record["broken_promises"] for record in records):
        return
    dtype = str(next(opened.module.parameters()).dtype).removeprefix("torch.")
    if dtype in _PRECISE:
        typer.echo("error: a method that is called exact wrote another text than the reference", err=True)
        raise typer.Exit(_DISAGREE)
    typer.echo(
        f"an exact method parted from the reference, as near ties do in {dtype}; try float32", err=True
    )


def _report(model: str, benchmark: CanvasBenchmark, json_file: Path | None) -> list[dict[str, Any]]:
    from hasten.bench.canvas_report import print_canvas_report
    from hasten.bench.canvases import canvas_records
    from hasten.bench.conditions import describe_canvases

    records = canvas_records(benchmark)
    conditions = describe_canvases(model, benchmark.model.module)
    print_canvas_report(Console(), conditions, records)
    if json_file is not None:
        text = json.dumps({"conditions": conditions, "records": records}, indent=2)
        write_text(json_file, text + "\n", "report")
    return records
