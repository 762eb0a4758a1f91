"""Markdown tables of docs/benchmarks.md from the JSON records of ``hasten bench`` on diffusion models.

python bench/canvas_tables.py out/diffusion/lists.json out/diffusion/text.json ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hasten.bench.canvas_report import COLUMNS, cells

EASY = ("copy", "reverse", "sort", "remove_index", "replace_index", "insert_index")
"""tasks with one right answer, whose positions are independent given the question"""


def main(files: list[str]) -> None:
    if not files:
        raise SystemExit("usage: python bench/canvas_tables.py JSON...")
    for file in files:
        run = json.loads(Path(file).read_text(encoding="utf-8"))
        print(f"## {Path(file).stem}\n\n{conditions(run['conditions'])}")
        for size in dict.fromkeys(record["canvas"] for record in run["records"]):
            chosen = [record for record in run["records"] if record["canvas"] == size]
            print(f"\n**canvas {size}**\n\n{canvas_table(chosen)}")


def conditions(found: dict[str, Any]) -> str:
    names = ("model", "parameters", "dtype", "device", "threads", "processor", "git_revision")
    return ", ".join(f"{name} {found[name]}" for name in names) + "."


def canvas_table(records: list[dict[str, Any]]) -> str:
    """Every method over all prompt sets, and its accuracy on the easy tasks where there are list tasks."""
    names = {record["prompt_set"] for record in records}
    whole = [record for record in records if record["prompt_set"] == "all"] or records
    has_easy = bool(names & set(EASY))
    header = [*COLUMNS, *(["right, easy"] if has_easy else [])]
    lines = [header, ["---"] * len(header)]
    for record in whole:
        row = [*cells(record)]
        if has_easy:
            row.append(f"{easy_accuracy(records, record['method']):.2f}")
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def easy_accuracy(records: list[dict[str, Any]], method: str) -> float:
    own = [record for record in records if record["method"] == method and record["prompt_set"] in EASY]
    return float(sum(record["accuracy"] for record in own) / len(own))


if __name__ == "__main__":
    main(sys.argv[1:])
