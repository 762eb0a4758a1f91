"""Shows records as tables; computes nothing that is not in them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.bench.methods import PLAIN
from hasten.bench.records import Record, geometric_mean

_COLUMNS = (
    ("method", "left"),
    ("prompts", "right"),
    ("tokens", "right"),
    ("tokens/s", "right"),
    ("× plain", "right"),
    ("× hf", "right"),
    ("tokens a step", "right"),
    ("identical", "left"),
    ("draft", "right"),
    ("forward", "right"),
    ("verify", "right"),
    ("other", "right"),
    ("outside", "right"),
    ("repeated", "right"),
)


def print_report(console: Console, conditions: dict[str, Any], records: list[Record], note: str) -> None:
    """A table for every prompt set, the means over all sets, and what the numbers mean."""
    names = list(dict.fromkeys(record["prompt_set"] for record in records))
    caption = _caption(conditions)
    for name in names:
        chosen = [record for record in records if record["prompt_set"] == name]
        console.print(_set_table(name, chosen, caption))
    if len(names) > 1:
        console.print(_mean_table(names, records, caption))
    if note:
        console.print(note, highlight=False)
    console.print(
        "draft, forward, verify, other: milliseconds a step. outside: share of the step outside the forward "
        "pass. repeated: share of the written 8-grams that stood earlier in the same answer. Texts that "
        "repeat themselves are easy to draft. Prefill is in tokens/s, warm-up is not.",
        style="dim",
        highlight=False,
    )


def identical_word(record: Record) -> str:
    """What the column "identical" says."""
    if record["identical"] is None:
        return "-"
    if not record["identical"]:
        return "[bold red]NO[/]"
    ties = record["near_ties"]
    return "yes" if not ties else f"yes, {ties} near tie{'s' * (ties > 1)}"


def _caption(conditions: dict[str, Any]) -> str:
    sampling = f"temperature {conditions['temperature']}" if conditions["temperature"] else "greedy"
    model = conditions["model"]
    if conditions["shape"]:
        model += f" at the cost of {conditions['shape'].upper()}"
    return (
        f"{model} ({conditions['parameters'] / 1e6:.1f} M parameters), {conditions['dtype']}, "
        f"{conditions['threads']} threads, {conditions['processor']}, {sampling}, "
        f"{conditions['max_new_tokens']} new tokens, {'cold' if conditions['is_cold'] else 'learning'} stores"
    )


def _set_table(name: str, records: list[Record], caption: str) -> Table:
    table = Table(title=name, caption=caption, title_justify="left", caption_justify="left")
    for column, justify in _COLUMNS:
        table.add_column(
            column, justify="right" if justify == "right" else "left", no_wrap=column == "method"
        )
    for record in records:
        table.add_row(
            record["method"],
            str(record["prompts"]),
            str(record["tokens"]),
            f"{record['tokens_per_second']:.1f}",
            _times(record["speedup"]),
            _times(record["speedup_hf"]),
            f"{record['mean_acceptance_length']:.2f}",
            identical_word(record),
            *(_milliseconds(record[f"{phase}_ms"]) for phase in ("draft", "forward", "verify", "other")),
            "-" if record["outside_forward"] is None else f"{record['outside_forward']:.1f} %",
            f"{100 * record['repeated_8grams']:.0f} %",
        )
    return table


def _mean_table(names: list[str], records: list[Record], caption: str) -> Table:
    """Speed-ups over transformers where it was measured, else over plain decoding."""
    key = "speedup_hf" if all(record["speedup_hf"] for record in records) else "speedup"
    title = f"geometric mean of the speed-up over {'hf' if key == 'speedup_hf' else PLAIN}"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right", style="bold")
    speedups: dict[str, dict[str, float]] = {}
    for record in records:
        speedups.setdefault(record["method"], {})[record["prompt_set"]] = record[key]
    for method, by_set in speedups.items():
        cells = [_times(by_set.get(name)) for name in names]
        table.add_row(method, *cells, _times(geometric_mean(by_set.values())))
    return table


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}×"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
