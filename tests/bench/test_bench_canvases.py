"""Diffusion strategies are measured against the reference, and a promise that is broken is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import build_model
from hasten.bench.canvases import (
    CanvasBenchConfig,
    CanvasBenchmark,
    CanvasPrompt,
    canvas_records,
    expand_methods,
    read_asked,
)
from hasten.bench.parallel import LIMITS, closed_form, parallel_points
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.engine import DiffusionModel
from hasten.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [CanvasPrompt("ids", [5, 6, 7]), CanvasPrompt("ids", [8, 9, 10, 11])]


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    module = build_model("llama", dtype=torch.float64, is_causal=False)
    return DiffusionModel(MaskedLM(module, DenoiserSpec(mask_id=96, eos_ids=(1,))))


def measured(model: DiffusionModel, *methods: str, **changes: Any) -> list[dict[str, Any]]:
    benchmark = CanvasBenchmark(model, CanvasBenchConfig(methods=methods, canvas_sizes=(8,), **changes))
    benchmark.run(PROMPTS)
    return canvas_records(benchmark)


def test_the_reference_comes_first_and_is_measured_once(model: DiffusionModel) -> None:
    records = measured(model, "static:2", "static", "exact", repeat=2)
    assert [record["method"] for record in records] == ["static", "static:2", "exact"]
    first, by_two, exact = records
    assert first["forwards"] == 8
    assert first["speedup"] == first["same_text"] == first["same_tokens"] == 1
    assert by_two["forwards"] == 4
    assert by_two["tokens_per_forward"] == 2
    assert exact["same_text"] == 1
    assert exact["texts"] == 4


def test_only_what_promises_this_reference_can_break_it(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = measured(model, "static:order=margin", "static:2")
    assert [record["broken_promises"] for record in records] == [0, 0, 0]
    monkeypatch.setattr("hasten.diffusion.selectors.static.Static.guarantee", "exact")
    monkeypatch.setattr("hasten.diffusion.selectors.static.Static.reference", property(lambda self: self))
    broken = CanvasBenchmark(model, CanvasBenchConfig(methods=("static:2",), canvas_sizes=(8,)))
    broken.run(PROMPTS)
    assert not broken.promises_the_reference("static:2")


def test_a_text_that_breaks_an_exact_promise_is_counted(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = CanvasBenchmark(model, CanvasBenchConfig(methods=("static:2",), canvas_sizes=(8,)))
    benchmark.run(PROMPTS)
    monkeypatch.setattr(CanvasBenchmark, "promises_the_reference", lambda self, method: True)
    assert [record["broken_promises"] > 0 for record in canvas_records(benchmark)] == [False, True]


def test_all_leaves_out_what_a_model_cannot_do(model: DiffusionModel) -> None:
    said: list[str] = []
    kept = expand_methods(("all", "static:3"), model, (32,), said.append)
    assert kept[0] == "static:3"
    assert "threshold:0.9/dual" in kept
    assert "learn2pd" not in kept
    assert any("hasten train filter" in line for line in said)


def test_list_tasks_are_asked_by_name(model: DiffusionModel) -> None:
    asked = read_asked(["lists:sort"], model, 3)
    assert [one.prompt_set for one in asked] == ["sort"] * 3
    assert len(read_asked(["lists"], model, 1)) == 10
    with pytest.raises(ConfigError, match="list task 'fold' does not exist"):
        read_asked(["lists:fold"], model, 1)


@pytest.mark.parametrize(
    "changes", [{"canvas_sizes": ()}, {"canvas_sizes": (0,)}, {"repeat": 0}, {"limit": 0}]
)
def test_a_benchmark_that_cannot_be_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot work"):
        CanvasBenchConfig(methods=("auto",), **changes)


def test_closed_forms_are_certain_one_by_one_and_worst_at_once() -> None:
    for task in LIMITS:
        chances = [chance for _, chance in closed_form(task, 8)]
        assert chances[0] == pytest.approx(1)
        assert chances[-1] == min(chances) < 0.5


def test_parallel_points_refuse_what_does_not_exist(model: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="family 'luck'"):
        parallel_points(model, ("luck",))
    with pytest.raises(ConfigError, match="size=99"):
        parallel_points(model, size=99)


def test_markdown_tables_come_from_the_records(tmp_path: Path) -> None:
    record = {
        "canvas": 32,
        "method": "static",
        "guarantee": "exact",
        "same_text": 1.0,
        "same_tokens": 1.0,
        "forwards": 32.0,
        "rows": 64.0,
        "tokens_per_forward": 1.0,
        "seconds": 0.5,
        "speedup": 1.0,
        "texts": 1,
    }
    names = ("model", "parameters", "dtype", "device", "threads", "processor", "git_revision")
    rows = [
        {**record, "prompt_set": name, "accuracy": right} for name, right in (("copy", 1.0), ("all", 0.5))
    ]
    place = tmp_path / "lists.json"
    place.write_text(json.dumps({"conditions": dict.fromkeys(names, "x"), "records": rows}))
    command = [sys.executable, str(ROOT / "bench" / "canvas_tables.py"), str(place)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "**canvas 32**" in shown
    assert "| static | exact | 0.50 | 1.00 | 1.00 | 32.0 | 64 | 1.00 | 0.500 | 1.00× | 1.00 |" in shown
