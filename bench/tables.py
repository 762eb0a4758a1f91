"""Markdown tables of docs/benchmarks.md from the JSON records of ``hasten bench --json``.

python bench/tables.py out/bench/greedy.json out/bench/batch.json ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.bench.methods import ASSISTED, COMPILED, PLAIN
from hasten.bench.records import Record, geometric_mean
from hasten.bench.report import baseline_sentence, conditions_line, idle_sentence, limit_sentence
from hasten.bench.summary import LOOPING, Promise, promises

Cell = Callable[[Record], str]

REFERENCES = (ASSISTED, COMPILED, "llamacpp", "llamacpp-lookup", "openvino-genai")
"""methods that others are also compared with, where they were measured"""


def main(files: list[str]) -> None:
    if not files:
        raise SystemExit("usage: python bench/tables.py JSON...")
    runs = {Path(file).stem: json.loads(Path(file).read_text(encoding="utf-8")) for file in files}
    print("\n\n".join(run_section(name, run["conditions"], run["records"]) for name, run in runs.items()))
    print(f"\n## The same text?\n\n{agreement_table({name: run['records'] for name, run in runs.items()})}")


def run_section(name: str, conditions: Record, records: list[Record]) -> str:
    """Everything about one run: a line of conditions, then its tables."""
    parts = [f"## {name}", conditions_line(conditions) + "."]
    parts += [sentence for sentence in (baseline_sentence(conditions), idle_sentence(conditions)) if sentence]
    if "runs" in records[0] and (kept := promises(records)):  # older records have less to say
        parts += [
            "**What `auto` shall do** (prefill counted, geometric means over the sets)",
            promise_table(kept),
        ]
    if limit := conditions.get("memory_limit"):  # older records have none
        parts += [limit_sentence(limit, conditions["forward"], conditions["startup_seconds"])]
    sizes = values_of(records, "batch_size")
    for size in sizes:
        chosen = [record for record in records if record["batch_size"] == size]
        words = f", batch {size}" if len(sizes) > 1 or size > 1 else ""
        parts += [f"**{yardstick(records)} (mean acceptance length){words}**", speed_table(chosen)]
        if any("/" in record["method"] for record in chosen):
            parts += [f"**{yardstick(records)} (mean acceptance length), tree by rule{words}**"]
            parts += [rule_table(chosen)]
        parts += [f"**× plain, draft ms a step (µs a node){words}**", draft_cost_table(chosen)]
    if len(sizes) > 1:
        for prompt_set in values_of(records, "prompt_set"):
            chosen = [record for record in records if record["prompt_set"] == prompt_set]
            parts += [f"**{prompt_set}: tokens/s ({yardstick(records)}) by batch size**", batch_table(chosen)]
    auto = [record for record in records if record["method"] == "auto"]
    if auto:
        parts += ["**Where a step's time goes (`auto`)**", step_table(auto)]
    return "\n\n".join(parts)


def promise_table(kept: list[Promise]) -> str:
    """What was measured beside what is wanted."""
    rows = [
        [one.name, f"{one.value:.2f}{one.unit}", one.wanted, "yes" if one.is_kept else "**no**"]
        for one in kept
    ]
    return table(["", "measured", "wanted", "kept"], rows)


def looping_mark(record: Record) -> str:
    """Of texts that repeat themselves, which are easy to draft."""
    return " loops" if record["repeated_8grams"] >= LOOPING else ""


def speed_table(records: list[Record]) -> str:
    """Every method by every prompt set, with the geometric means over the sets."""
    key = speed_key(records)
    means = {yardstick(records): key, "× plain": "speedup"}  # one column where they are the same
    references = [name for name in REFERENCES if name in values_of(records, "method")]
    speeds = {(r["method"], r["prompt_set"]): r["speedup"] for r in records}

    def mean_cells(of_method: list[Record]) -> list[str]:
        values = [[record[name] for record in of_method] for name in means.values()]
        for name in references:
            pairs = [(record["speedup"], speeds.get((name, record["prompt_set"]))) for record in of_method]
            values.append([speed / reference for speed, reference in pairs if reference])
        return [f"{geometric_mean(each):.2f}" if each else "-" for each in values]

    return matrix(
        records,
        lambda record: f"{record[key]:.2f} ({record['mean_acceptance_length']:.2f}){looping_mark(record)}",
        [f"mean {name}" for name in (*means, *(f"× {name}" for name in references))],
        mean_cells,
    )


def rule_table(records: list[Record]) -> str:
    """Every tree of a draft model by every verification rule, means over the prompt sets."""
    key = speed_key(records)
    by_pair: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        tree, _, rule = record["method"].partition("/")
        by_pair.setdefault((tree, rule or "follow"), []).append(record)
    rules = list(dict.fromkeys(rule for _, rule in by_pair))
    trees = [tree for tree in dict.fromkeys(tree for tree, _ in by_pair) if (tree, rules[-1]) in by_pair]
    rows = []
    for tree in trees:
        cells = []
        for rule in rules:
            found = by_pair.get((tree, rule), [])
            length = sum(record["mean_acceptance_length"] for record in found) / max(1, len(found))
            speed = geometric_mean(record[key] for record in found) if found else 0.0
            cells.append(f"{speed:.2f} ({length:.2f})" if found else "-")
        rows.append([tree, *cells])
    return table(["tree", *rules], rows)


def draft_cost_table(records: list[Record]) -> str:
    """What drafting gains beside what it costs; transformers does not say what its drafting costs."""

    def cell(record: Record) -> str:
        node = "-" if record["draft_ms_per_token"] is None else f"{1000 * record['draft_ms_per_token']:.0f}"
        return f"{record['speedup']:.2f}, {record['draft_ms']:.2f} ({node})"

    drafted = [r for r in records if r["draft_ms"] is not None and r["method"] != PLAIN]
    return matrix(drafted, cell)


def batch_table(records: list[Record]) -> str:
    """Batch size by method, for one prompt set."""
    key = speed_key(records)
    methods = values_of(records, "method")
    rows = []
    for size in values_of(records, "batch_size"):
        by_method = {record["method"]: record for record in records if record["batch_size"] == size}
        cells = [
            f"{by_method[name]['tokens_per_second']:.1f} ({by_method[name][key]:.2f})" for name in methods
        ]
        rows.append([str(size), *cells])
    return table(["batch", *methods], rows)


def step_table(records: list[Record]) -> str:
    """Milliseconds a step of one method, for every prompt set and batch size."""
    columns: dict[str, Cell] = {
        "prompt set": lambda record: record["prompt_set"],
        "batch": lambda record: str(record["batch_size"]),
        "tokens": lambda record: str(record["tokens"]),
        "tokens/s": lambda record: f"{record['tokens_per_second']:.1f}",
        "× hf": lambda record: f"{record['speedup_hf']:.2f}" if record["speedup_hf"] else "-",
        "× plain": lambda record: f"{record['speedup']:.2f}",
        "tokens a step": lambda record: f"{record['mean_acceptance_length']:.2f}",
        "draft": lambda record: f"{record['draft_ms']:.2f}",
        "forward": lambda record: f"{record['forward_ms']:.1f}",
        "verify": lambda record: f"{record['verify_ms']:.2f}",
        "other": lambda record: f"{record['other_ms']:.2f}",
        "outside": lambda record: f"{record['outside_forward']:.1f} %",
        "repeated 8-grams": lambda record: f"{100 * record['repeated_8grams']:.0f} %",
        "near ties": lambda record: f"{record['near_ties']} of {record['compared']}",
    }
    return table(list(columns), [[cell(record) for cell in columns.values()] for record in records])


def agreement_table(runs: dict[str, list[Record]]) -> str:
    """How many texts of each run are plain decoding's; those of other programs need not be."""
    rows = []
    for name, records in runs.items():
        of_peers = [record for record in records if record.get("is_peer")]
        others = [r for r in records if r["method"] != PLAIN and not r.get("is_peer")]
        counts = [sum(record[key] for record in others) for key in ("compared", "near_ties", "different")]
        peers = [sum(record[key] for record in of_peers) for key in ("different", "compared")]
        cells = [*(str(count) for count in counts[:2]), str(counts[2] or "none")]
        rows.append([name, *cells, f"{peers[0]} of {peers[1]}" if peers[1] else "-"])
    header = [
        "run",
        "texts compared with plain decoding",
        "near ties",
        "different",
        "other programs' different",
    ]
    return table(header, rows)


def speed_key(records: list[Record]) -> str:
    """Over transformers where it was measured, else over plain decoding."""
    return "speedup_hf" if all(record["speedup_hf"] for record in records) else "speedup"


def yardstick(records: list[Record]) -> str:
    return "× hf" if speed_key(records) == "speedup_hf" else "× plain"


def matrix(
    records: list[Record],
    cell: Cell,
    extra: list[str] | None = None,
    extra_cells: Callable[[list[Record]], list[str]] = lambda of_method: [],
) -> str:
    """Method by prompt set; "-" where a run was interrupted before."""
    sets = values_of(records, "prompt_set")
    rows = []
    for method in values_of(records, "method"):
        by_set = {record["prompt_set"]: record for record in records if record["method"] == method}
        cells = [cell(by_set[name]) if name in by_set else "-" for name in sets]
        rows.append([method, *cells, *extra_cells(list(by_set.values()))])
    return table(["method", *sets, *(extra or [])], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def values_of(records: list[Record], key: str) -> list[Any]:
    """The different ones, in order."""
    return list(dict.fromkeys(record[key] for record in records))


if __name__ == "__main__":
    main(sys.argv[1:])
