"""What memory allows: the arithmetic, what is counted, and where it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench_runner import SMALL, bench
from typer.testing import CliRunner

from hasten.bench import memory_limit
from hasten.bench.memory_limit import (
    MemoryLimit,
    cache_bytes_per_token,
    least_milliseconds,
    one_copy,
    read_bandwidth,
)
from hasten.bench.models import open_model
from hasten.bench.report import limit_sentence
from hasten.cli import app


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "read_bandwidth", lambda device, num_threads: 2e9)


def limit(**changes: Any) -> MemoryLimit:
    known: dict[str, Any] = {
        "bytes_per_second": 20e9,
        "weight_bytes": 100 * 2**20,
        "held_bytes": 150 * 2**20,
        "cache_bytes_per_token": 3072,
        "least_ms": 5.0,
        "forward_ms": {1: 6.0, 16: 10.0},
        "stock_forward_ms": None,
    }
    return MemoryLimit(**(known | changes))


def test_the_least_time_is_that_of_reading_once() -> None:
    assert least_milliseconds(20_000_000_000, 20e9) == 1000
    assert least_milliseconds(200_000_000, 20e9) == pytest.approx(10)


def test_every_weight_counts_once() -> None:
    assert one_copy(200, 50, torch.bfloat16) == 100  # a second copy is held
    assert one_copy(40, 50, torch.bfloat16) == 40  # quantized
    assert one_copy(200, 50, torch.float32) == 200
    assert one_copy(40, 0, torch.float32) == 40


def test_the_cache_of_a_token(targets: Any) -> None:
    assert cache_bytes_per_token(targets("llama")) == 2 * 2 * 2 * 8 * 4
    assert cache_bytes_per_token(targets("llama", torch.float64)) == 2 * 2 * 2 * 8 * 8
    assert cache_bytes_per_token(targets("gpt2")) is not None
    assert cache_bytes_per_token(targets("rwkv")) is None


def test_passes_are_multiples_of_the_least_time() -> None:
    found = limit(stock_forward_ms={1: 20.0, 16: 25.0}).as_json()
    assert found["forward_ms"] == {"1": 6.0, "16": 10.0}
    assert found["forward_times_least"] == {"1": 1.2, "16": 2.0}
    assert found["stock_forward_times_least"] == {"1": 4.0, "16": 5.0}
    assert json.loads(json.dumps(found)) == found


def test_the_sentence() -> None:
    assert limit_sentence(limit().as_json(), "packed", 1.5) == (
        "Memory is read at 20.0 GB/s, so the weights (100 MiB) take at least 5.00 ms. A pass of the packed "
        "forward takes 6.00 ms for 1 row (1.20×, 83 % of that speed), 10.00 ms for 16 rows (2.00×, 50 % of "
        "that speed). It was ready after 1.50 s and holds 1.50× the weights, and 3.0 KiB for each "
        "cached token."
    )
    found = limit_sentence(
        limit(stock_forward_ms={1: 20.0}, cache_bytes_per_token=None).as_json(), "stock", 0.0
    )
    assert "; transformers' own 20.00 ms for 1 row (4.00×, 25 % of that speed). It was" in found
    assert found.endswith("holds 1.50× the weights.")


def test_bandwidth_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "_MIN_BYTES", 2**22)
    monkeypatch.setattr(memory_limit, "_last_cache_bytes", lambda: 0)
    read_bandwidth.cache_clear()
    found = read_bandwidth(torch.device("cpu"), 1)
    assert found > 1e6
    assert read_bandwidth(torch.device("cpu"), 1) == found
    read_bandwidth.cache_clear()


def test_more_is_read_than_caches_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in (("index0", "32K"), ("index3", "262144K")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    monkeypatch.setattr(memory_limit, "_CPU_CACHES", tmp_path)
    assert memory_limit._bytes_to_read(torch.device("cpu")) == 4 * 2**28
    monkeypatch.setattr(memory_limit, "_CPU_CACHES", tmp_path / "nothing")
    assert memory_limit._bytes_to_read(torch.device("cpu")) == 2**28


def test_bench_and_info_say_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench("--prompts", "demo", "--limit", "1", "--methods", "plain", "--json", str(path))
    assert result.exit_code == 0, result.output
    conditions = json.loads(path.read_text())["conditions"]
    found = conditions["memory_limit"]
    assert found["weight_bytes"] == found["held_bytes"] == 4 * conditions["parameters"]
    assert found["least_ms"] == pytest.approx(found["weight_bytes"] / 2e6, rel=1e-3)
    assert set(found["forward_ms"]) == set(found["stock_forward_ms"]) == {"1", "16"}
    assert found["cache_bytes_per_token"] == 2 * 6 * 2 * 64 * 4
    assert conditions["startup_seconds"] >= 0
    assert "Memory is read at 2.0 GB/s" in result.stdout
    arguments = ["info", "demo", *SMALL[:-2], "--json"]
    facts = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert facts["memory_limit"]["stock_forward_ms"] is None
    assert facts["memory_limit"]["forward_ms"]["16"] == facts["cost_ms"]["16"]
    assert "startup_seconds" in facts["forward"]


def test_a_packed_model_holds_more_than_it_reads() -> None:
    opened = open_model("demo", dtype="float32", device="cpu", forward="packed")
    found = memory_limit.measure_limit(opened, cost={1: 1.0, 2: 1.5, 16: 2.0})
    assert found.weight_bytes == 4 * opened.num_parameters < found.held_bytes
    assert found.forward_ms == {1: 1.0, 16: 2.0}
