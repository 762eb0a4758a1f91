"""``hasten parallelbench``: accuracy against parallelism on list tasks, as a table and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hasten.cli import options
from hasten.cli.bench import names
from hasten.files import require_writable, write_text

if TYPE_CHECKING:
    from hasten.bench.parallel import Point


def parallelbench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A diffusion model that knows the list tasks.")
    ] = "demo-lists",
    *,
    families: Annotated[
        str | None,
        typer.Option(
            help="With commas: confidence, margin, entropy, random, threshold, factor, entropy-bound."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="With commas. Default: all ten list tasks.")] = None,
    size: Annotated[int, typer.Option(help="Items in a list.")] = 10,
    questions: Annotated[int, typer.Option(help="Questions a task.")] = 20,
    temperature: options.Temperature = 0.0,
    plot: Annotated[Path | None, typer.Option(help="Draw here: a .png, .svg or .pdf.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the points here.")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """How many right answers are left when more tokens are written at once."""
    from hasten.bench.parallel import FAMILIES, parallel_points
    from hasten.bench.parallel_plot import draw_points, require_plot
    from hasten.diffusion.engine import load_diffusion
    from hasten.diffusion.list_tasks import TASKS

    options.set_threads(threads)
    options.quiet_loading()
    if plot is not None:
        require_plot(plot)
    for file in (plot, json_file):
        if file is not None:
            require_writable(file, "report")
    opened = load_diffusion(model, dtype=dtype, device=device)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("list tasks", total=None)
        points = parallel_points(
            opened,
            names(families) if families else tuple(FAMILIES),
            tasks=names(tasks) if tasks else tuple(TASKS),
            size=size,
            num_questions=questions,
            temperature=temperature,
            progress=lambda name, done, total: bar.update(task, completed=done, total=total),
        )
    Console().print(_table([point for point in points if point.task == "mean"], points, size, questions))
    if json_file is not None:
        text = json.dumps([point.as_dict() for point in points], indent=2)
        write_text(json_file, text + "\n", "report")
    if plot is not None:
        draw_points(points, size, plot, f"{model}: lists of {size}, temperature {temperature:g}")
        typer.echo(f"drawn: {plot}")


def _table(means: list[Point], points: list[Point], size: int, questions: int) -> Table:
    from hasten.bench.parallel import LIMITS, TOKENS

    tasks = list(dict.fromkeys(point.task for point in points if point.task != "mean"))
    table = Table(title=f"right answers, lists of {size}, {questions} questions a task", title_justify="left")
    table.add_column("method")
    for column in ("tok/fwd", "mean", *tasks):
        table.add_column(column, justify="right")
    for mean in means:
        own = [point for point in points if point.method == mean.method and point.task != "mean"]
        table.add_row(
            mean.method,
            f"{mean.tokens_per_forward:.2f}",
            f"{mean.accuracy:.2f}",
            *(f"{point.accuracy:.2f}" for point in own),
        )
    for tokens in TOKENS:
        limits = {task: LIMITS[task](size, tokens) for task in tasks if task in LIMITS}
        if limits and tokens <= size:
            row = (f"{limits[task]:.2f}" if task in limits else "" for task in tasks)
            table.add_row(f"ideal, random:{tokens}", f"{tokens:.2f}", "", *row, style="dim")
    return table
