"""``hasten compare A.json B.json``: what changed between two runs of ``hasten bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A file of hasten bench --json.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another one, of the same prompts.")],
) -> None:
    """Tokens a second of B over those of A, a prompt at a time: the median, and whether it is noise."""
    from hasten.bench.comparison import CONFIDENCE, compare_runs, differing_conditions, read_run

    one, other = read_run(before), read_run(after)
    table = Table(title=f"{after.name} over {before.name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("prompt set")
    table.add_column("method", no_wrap=True)
    for column in ("prompts", "median", f"{100 * CONFIDENCE:.0f} %", "repetitions", ""):
        table.add_column(column, justify="right")
    for row in compare_runs(one, other):
        batch = f", batch {row.batch_size}" if row.batch_size > 1 else ""
        table.add_row(
            row.prompt_set + batch,
            row.method,
            str(row.num_prompts),
            f"{row.median:.3f}×",
            f"{row.low:.3f} to {row.high:.3f}",
            f"± {100 * (row.spread - 1):.1f} %",
            "noise" if row.is_noise else "faster" if row.median > 1 else "slower",
        )
    console = Console()
    console.print(table)
    for name, (first, second) in differing_conditions(one, other).items():
        console.print(f"{name}: {first} in {before.name}, {second} in {after.name}", highlight=False)
    console.print(
        "median: over the prompts, with the interval it lies in. repetitions: how far the times of one "
        "prompt are apart. noise: 1 lies in the interval, or no further away than repetitions are.",
        style="dim",
        highlight=False,
    )
