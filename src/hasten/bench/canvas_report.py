"""Shows what diffusion strategies did, as tables; computes nothing that is not in the records."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_LEGEND = (
    "same text, same tokens: share of texts, and of positions, as the reference writes them, the first row: "
    "one token a forward, nothing cached. right: share of list tasks answered rightly. rows: positions "
    "computed a text. exact: promises the text of its reference, which has the same order and blocks. "
    "Seconds are means over the prompts."
)


_WIDE = 120
"""A terminal of so many columns shows all of them."""
_NARROW = ("method", "right", "same text", "forwards", "seconds", "speed-up")
COLUMNS = (
    "method",
    "guarantee",
    "right",
    "same text",
    "same tokens",
    "forwards",
    "rows",
    "tok/fwd",
    "seconds",
    "speed-up",
)


def print_canvas_report(
    console: Console, conditions: dict[str, Any], records: list[dict[str, Any]], *, by_set: bool = False
) -> None:
    """A table for every canvas size; with ``by_set`` also one for every prompt set."""
    rounds: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for record in records:
        rounds.setdefault((record["canvas"], record["prompt_set"]), []).append(record)
    several = {size for size, name in rounds if name == "all"}
    for (size, name), chosen in rounds.items():
        if name == "all" or by_set or size not in several:
            console.print(_table(size, name, chosen, COLUMNS if console.width >= _WIDE else _NARROW))
    line = ", ".join(f"{key} {value}" for key, value in conditions.items() if not isinstance(value, dict))
    console.print(line, style="dim", highlight=False)
    console.print(_LEGEND, style="dim", highlight=False)


def _table(size: int, name: str, records: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(title=f"{name}, canvas of {size}, {records[0]['texts']} texts", title_justify="left")
    for column in columns:
        is_text = column in {"method", "guarantee"}
        table.add_column(column, justify="left" if is_text else "right", no_wrap=is_text)
    for record in records:
        row = dict(zip(COLUMNS, cells(record), strict=True))
        table.add_row(*(row[column] for column in columns))
    return table


def cells(record: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    accuracy = record["accuracy"]
    return (
        record["method"],
        record["guarantee"],
        "-" if accuracy is None else f"{accuracy:.2f}",
        f"{record['same_text']:.2f}",
        f"{record['same_tokens']:.2f}",
        f"{record['forwards']:.1f}",
        f"{record['rows']:.0f}",
        f"{record['tokens_per_forward']:.2f}",
        f"{record['seconds']:.3f}",
        f"{record['speedup']:.2f}×",
    )
