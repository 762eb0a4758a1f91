"""What a run says about the promises, and what changed between two runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_bench_runner import bench
from typer.testing import CliRunner

from hasten.bench.comparison import compare_runs, differing_conditions, read_run
from hasten.bench.records import Record, as_csv
from hasten.bench.summary import promises
from hasten.cli import app
from hasten.errors import ConfigError


def record(method: str, speed: float, prompt_set: str = "some", **changes: Any) -> Record:
    return {
        "prompt_set": prompt_set,
        "batch_size": 1,
        "method": method,
        "tokens": 100,
        "steps": 40,
        "tokens_per_second": speed,
        "outside_forward": 4.0,
        "repeated_8grams": 0.0,
        "expected_over_actual": 1.01,
        "runs": [{"place": [one, 0], "tokens": 10, "seconds": [10 / speed]} for one in range(5)],
        **changes,
    }


def test_promises_are_read_off_the_records() -> None:
    records = [
        *(
            record(name, speed)
            for name, speed in (("plain", 10), ("auto", 40), ("suffix", 20), ("lookahead", 5))
        ),
        *(record(name, speed) for name, speed in (("hf", 3), ("dejavuu", 10), ("dejavuu-pld-chain", 16))),
        *(record(name, speed, "more") for name, speed in (("plain", 10), ("auto", 9), ("suffix", 20))),
        *(record(name, speed, "more") for name, speed in (("dejavuu", 10), ("dejavuu-pld-chain", 9))),
        record("lookahead", 8, "more"),
        record("suffix+lookahead", 90, "more"),
    ]
    found = {one.name: one for one in promises(records)}
    assert found["auto × plain"].value == pytest.approx((4 * 0.9) ** 0.5)
    assert found["auto × plain on the worst set"].value == pytest.approx(0.9)
    assert found["auto × the best single source (suffix)"].value == pytest.approx((40 * 9 / 400) ** 0.5)
    assert found["auto × dejavuu's best (dejavuu-pld-chain)"].value == pytest.approx((40 / 16 * 1) ** 0.5)
    assert found["tokens a step, auto, sets that do not loop"].value == pytest.approx(2.5)
    kept = {name for name, one in found.items() if one.is_kept}
    assert kept == {
        "auto × dejavuu's best (dejavuu-pld-chain)",
        "outside the pass, auto, worst set",
        "tokens expected over gained, auto",
    }


def test_looping_sets_say_nothing_about_acceptance() -> None:
    records = [record("plain", 1), record("auto", 2, repeated_8grams=0.5)]
    assert not any("tokens a step" in one.name for one in promises(records))
    assert promises([record("plain", 1)]) == []


def run(tmp_path: Path, name: str, records: list[Record], **conditions: Any) -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"conditions": {"model": "demo", **conditions}, "records": records}))
    return path


def test_runs_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    steady = record("auto", 12.0)
    shaky = record("suffix", 10.0)
    for run_of, seconds in zip(shaky["runs"], ([0.8], [1.2], [1.0], [0.9], [1.1]), strict=True):
        run_of["seconds"] = seconds
    one = run(tmp_path, "a", [record("auto", 10.0), record("suffix", 10.0), record("hf", 1.0)])
    other = run(tmp_path, "b", [steady, shaky], model="other")
    before, after = read_run(one), read_run(other)
    auto, suffix = compare_runs(before, after)
    assert (auto.method, auto.num_prompts, auto.is_noise) == ("auto", 5, False)
    assert auto.median == pytest.approx(1.2)
    assert suffix.is_noise
    assert suffix.low < 1 < suffix.high
    assert differing_conditions(before, after) == {"model": ("demo", "other")}
    result = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert result.exit_code == 0, result.output
    for part in ("1.200×", "faster", "noise", "model: demo in a.json, other in b.json"):
        assert part in result.stdout


def test_repetitions_further_apart_than_the_runs_are_noise(tmp_path: Path) -> None:
    runs = [record("auto", 10.0), record("auto", 10.4)]
    for one in runs:
        for of_prompt in one["runs"]:
            of_prompt["seconds"] *= 3
            of_prompt["seconds"][0] *= 0.9
    paths = [run(tmp_path, str(number), [one]) for number, one in enumerate(runs)]
    [found] = compare_runs(*map(read_run, paths))
    assert found.low > 1
    assert found.is_noise


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    old = record("auto", 1.0)
    del old["runs"]
    (tmp_path / "text.json").write_text("no")
    for path in (tmp_path / "missing.json", tmp_path / "text.json", run(tmp_path, "old", [old])):
        with pytest.raises(ConfigError, match="hasten bench --json"):
            read_run(path)
    apart = [run(tmp_path, name, [record("auto", 1.0, name)]) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="in common"):
        compare_runs(*map(read_run, apart))


def test_a_row_a_record() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([record("auto", 2.0), record("hf", 1.0)]))))
    assert [row["method"] for row in rows] == ["auto", "hf"]
    assert "runs" not in rows[0]


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("out.json", "out.csv")]
    options = ("--baselines", "", "--limit", "2", "--json", str(paths[0]), "--csv", str(paths[1]))
    result = bench("--prompts", "demo", "--repeat", "2", *options)
    assert result.exit_code == 0, result.output
    plain, auto = json.loads(paths[0].read_text())["records"]
    assert len(list(csv.DictReader(io.StringIO(paths[1].read_text())))) == 2
    assert [len(one["seconds"]) for one in auto["runs"]] == [2, 2]
    assert plain["expected_over_actual"] == pytest.approx(1)
    assert auto["decode_tokens_per_second"] > auto["tokens_per_second"]
    assert auto["prefill_seconds"] > 0
    assert "what auto shall do" in result.stdout
