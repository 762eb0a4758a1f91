"""Shows records as tables; computes nothing that is not in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hasten.bench.methods import PLAIN
from hasten.bench.records import Record, geometric_mean
from hasten.bench.summary import LOOPING, Promise, promises

_WIDE = 130
"""A terminal of so many columns shows speed and times side by side."""

_LEGEND = (
    "draft, forward, verify, other: milliseconds a step. a node: milliseconds of drafting for each node of "
    "the draft trees. outside: share of the step outside the forward pass. repeated: share of the written "
    "8-grams that stood earlier in the same answer. Texts that repeat themselves are easy to draft. "
    "expected: tokens that the draft trees promised over those gained. Prefill is in tokens/s, not in "
    "decoding; warm-up is in neither. Baselines sample where the others do, by the same law but with random "
    "numbers of their own: texts to compare by speed only. Greedy texts of other programs than transformers "
    "may differ, as their kernels round differently."
)
_BATCH_LEGEND = (
    "batch: prompts answered side by side, first turns only, in full batches. A step is one pass over the "
    "whole batch; tokens a step are those of one text. Every batch size starts with empty stores."
)

_MOST_IDLE_SHARE = 0.05

_Column = tuple[str, Callable[[Record], str]]


def print_report(console: Console, conditions: dict[str, Any], records: list[Record], note: str) -> None:
    """A table for every prompt set and batch size, the means over all sets, and what the numbers mean."""
    caption = conditions_line(conditions)
    groups = [_SPEED + _TIMES] if console.width >= _WIDE else [_SPEED, _TIMES]
    rounds: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        rounds.setdefault((record["prompt_set"], record["batch_size"]), []).append(record)
    for chosen in rounds.values():
        for columns in groups:
            console.print(_round_table(chosen, columns, caption if columns is groups[-1] else None))
    names = list(dict.fromkeys(name for name, _ in rounds))
    if len(names) > 1:
        for batch_size in dict.fromkeys(size for _, size in rounds):
            chosen = [record for record in records if record["batch_size"] == batch_size]
            console.print(_mean_table(names, chosen, caption))
    if kept := promises(records):
        console.print(_promise_table(kept))
    if limit := conditions.get("memory_limit"):
        sentence = limit_sentence(limit, conditions["forward"], conditions["startup_seconds"])
        console.print(sentence, highlight=False)
    for sentence in (baseline_sentence(conditions), idle_sentence(conditions), note):
        if sentence:
            console.print(sentence, highlight=False)
    console.print(_LEGEND, style="dim", highlight=False)
    if any(record["batch_size"] > 1 for record in records):
        console.print(_BATCH_LEGEND, style="dim", highlight=False)


def identical_word(record: Record) -> str:
    """What the column "identical" says."""
    if record["identical"] is None:
        return "-"
    if not record["identical"] and record.get("is_peer"):
        return f"{record['different']} of {record['compared']} differ"
    if not record["identical"]:
        return f"[bold red]NO[/], {failure(record)}"
    ties = record["near_ties"]
    return "yes" if not ties else f"yes, {ties} near tie{'s' * (ties > 1)}"


def repeated_word(record: Record) -> str:
    """The share of repeated 8-grams, marked where texts loop."""
    share = record["repeated_8grams"]
    return f"{100 * share:.0f} %{', loops' if share >= LOOPING else ''}"


def failure(record: Record) -> str:
    """Why the texts of a method are not plain decoding's."""
    if record["different"]:
        return f"{record['different']} of {record['compared']} differ"
    return f"{record['parted']} part where rounding explains {record['parted_expected']:.1f}"


def conditions_line(conditions: dict[str, Any]) -> str:
    """Model, machine and settings in a sentence."""
    sampling = f"temperature {conditions['temperature']}" if conditions["temperature"] else "greedy"
    model = conditions["model"]
    if conditions["shape"]:
        model += f" at the cost of {conditions['shape'].upper()}"
    draft = conditions.get("draft")  # older records have none
    return (
        f"{model} ({conditions['parameters'] / 1e6:.1f} M parameters), {conditions['dtype']}, "
        f"{'draft model ' + draft['model'] + ', ' if draft else ''}"
        f"threads: {conditions['threads']}, {conditions['processor']}, {sampling}, "
        f"{conditions['max_new_tokens']} new tokens{' exactly' if conditions['ignore_eos'] else ''}, "
        f"{'cold' if conditions['is_cold'] else 'learning'} stores"
    )


def limit_sentence(limit: dict[str, Any], forward: str, startup_seconds: float) -> str:
    """What the memory allows, what a pass takes, and what is held."""

    def passes(name: str) -> str:
        times = limit[f"{name}_times_least"]
        cells = [
            f"{spent:.2f} ms for {rows} rows ({times[rows]:.2f}×, {100 / times[rows]:.0f} % of that speed)"
            for rows, spent in limit[f"{name}_ms"].items()
        ]
        return ", ".join(cells).replace("1 rows", "1 row")

    cache = limit["cache_bytes_per_token"]
    stock = f"; transformers' own {passes('stock_forward')}" if limit["stock_forward_ms"] else ""
    return (
        f"Memory is read at {limit['bytes_per_second'] / 1e9:.1f} GB/s, so the weights "
        f"({limit['weight_bytes'] / 2**20:.0f} MiB) take at least {limit['least_ms']:.2f} ms. A pass of the "
        f"{forward} forward takes {passes('forward')}{stock}. It was ready after {startup_seconds:.2f} s and "
        f"holds {limit['held_bytes'] / limit['weight_bytes']:.2f}× the weights"
        f"{f', and {cache / 1024:.1f} KiB for each cached token' if cache else ''}."
    )


def baseline_sentence(conditions: dict[str, Any]) -> str:
    """What the baselines compute in, where they ran in processes of their own."""
    cells = []
    for name, found in conditions.get("baseline_dtypes", {}).items():
        tried = ", ".join(f"{dtype} {speed:.1f}" for dtype, speed in found["tokens_per_second"].items())
        cells.append(f"{name} in {found['dtype']}" + (f" (tokens/s: {tried})" if tried else ""))
    return f"Each program in a process of its own; {', '.join(cells)}." if cells else ""


def idle_sentence(conditions: dict[str, Any]) -> str:
    """A warning about processes that worked while others had their turn; empty where none did."""
    shares = conditions.get("idle_processor_share", {})
    busy = [f"{name} {100 * share:.0f} %" for name, share in shares.items() if share > _MOST_IDLE_SHARE]
    return f"While others had their turn, of a processor: {', '.join(busy)}." if busy else ""


def _round_table(records: list[Record], columns: list[_Column], caption: str | None) -> Table:
    title = f"{records[0]['prompt_set']}, {records[0]['prompts']} prompts"
    table = _table(title + _batch_words(records[0]), caption)
    for column, _ in columns:
        table.add_column(column, justify="left" if column == "identical" else "right")
    for record in records:
        table.add_row(record["method"], *(cell(record) for _, cell in columns))
    return table


def _table(title: str, caption: str | None) -> Table:
    """Its first column is the method. Without lines between columns, as a terminal of 80 must hold it."""
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("method", no_wrap=True)
    return table


def _batch_words(record: Record) -> str:
    return f", batch {record['batch_size']}" if record["batch_size"] > 1 else ""


def _mean_table(names: list[str], records: list[Record], caption: str) -> Table:
    """Speed-ups over transformers where it was measured, else over plain decoding."""
    key = "speedup_hf" if all(record["speedup_hf"] for record in records) else "speedup"
    title = f"geometric mean of the speed-up over {'hf' if key == 'speedup_hf' else PLAIN}"
    table = _table(title + _batch_words(records[0]), caption)
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


def _promise_table(found: list[Promise]) -> Table:
    table = _table("what auto shall do, prefill counted; geometric means over the sets", None)
    for column in ("measured", "wanted", ""):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(one.name, f"{one.value:.2f}{one.unit}", one.wanted, "yes" if one.is_kept else "no")
    return table


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}×"


def _milliseconds(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


_SPEED: list[_Column] = [
    ("tokens", lambda record: str(record["tokens"])),
    ("tokens/s", lambda record: f"{record['tokens_per_second']:.1f}"),
    ("decoding", lambda record: _milliseconds(record["decode_tokens_per_second"], 1)),
    ("× plain", lambda record: _times(record["speedup"])),
    ("× hf", lambda record: _times(record["speedup_hf"])),
    ("tokens a step", lambda record: f"{record['mean_acceptance_length']:.2f}"),
    ("identical", identical_word),
]
_TIMES: list[_Column] = [
    ("draft", lambda record: _milliseconds(record["draft_ms"])),
    ("a node", lambda record: _milliseconds(record["draft_ms_per_token"], 3)),
    ("forward", lambda record: _milliseconds(record["forward_ms"])),
    ("verify", lambda record: _milliseconds(record["verify_ms"])),
    ("other", lambda record: _milliseconds(record["other_ms"])),
    ("outside", lambda record: _percent(record["outside_forward"])),
    ("expected", lambda record: _milliseconds(record["expected_over_actual"])),
    ("repeated", repeated_word),
]
