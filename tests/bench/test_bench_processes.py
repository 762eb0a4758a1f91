"""Programs in processes of their own: calls, errors and crashes with a name, nothing done while they wait."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_bench_runner import bench

from hasten.bench.methods import Answer
from hasten.bench.processes import IDLE_SHARE, Remote
from hasten.bench.programs import FastestDtype
from hasten.core import SamplingParams
from hasten.errors import MissingExtra, ModelError


class Thing:
    """What a process holds in these tests."""

    def __init__(self, number: int) -> None:
        if number < 0:
            raise MissingExtra("pip install thing")
        self._number = number

    def add(self, other: int) -> tuple[int, int]:
        return os.getpid(), self._number + other

    def divide(self, by: int) -> float:
        return self._number / by

    def end(self) -> None:
        os._exit(3)


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    found = Remote("thing", partial(Thing, 5))
    yield found
    found.close()


def test_calls_are_answered_elsewhere(remote: Remote) -> None:
    process, found = remote.call("add", 3)
    assert found == 8
    assert process != os.getpid()


def test_errors_come_back_with_the_name(remote: Remote) -> None:
    with pytest.raises(ModelError, match="thing failed: ZeroDivisionError"):
        remote.call("divide", 0)
    assert remote.call("add", 0)[1] == 5  # it goes on


def test_nothing_is_done_while_it_waits(remote: Remote) -> None:
    remote.call("add", 1)
    time.sleep(0.2)
    assert remote.call(IDLE_SHARE) < 0.5


def test_what_cannot_be_made_says_why_and_a_crash_says_who() -> None:
    missing, crashing = Remote("missing", partial(Thing, -1)), Remote("crashing", partial(Thing, 1))
    with pytest.raises(MissingExtra, match="pip install thing"):
        missing.ready()
    with pytest.raises(ModelError, match=r"the process of crashing ended by itself \(code 3\)"):
        crashing.call("end")
    crashing.close()


class Timed:
    """Stands for a baseline in another process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.calls: list[str] = []

    def call(self, method: str, *_: Any) -> Answer:
        self.calls.append(method)
        return Answer([[1, 2, 3, 4]], [""], self._seconds, 4, 4)

    def close(self) -> None:
        self.calls.append("close")


def test_a_baseline_stays_in_the_dtype_it_is_fastest_in() -> None:
    slow, fast = Timed(2.0), Timed(0.5)
    running: dict[str, Any] = {"hf in bfloat16": slow, "hf in float32": fast}
    method = FastestDtype("hf", {"bfloat16": slow, "float32": fast}, running)  # type: ignore[dict-item]
    params = SamplingParams(max_new_tokens=4)
    method.start([[5]], params)
    assert method.dtype == "float32"
    assert method.tried == {"bfloat16": 2.0, "float32": 8.0}
    assert slow.calls[-1] == "close"
    assert list(running) == ["hf in float32"]
    before = len(fast.calls)
    method.start([[5]], params)
    method.answer([[5]], params)
    assert fast.calls[before:] == ["start", "answer"]


@pytest.mark.slow
def test_the_command_runs_baselines_apart(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ("--baselines", "hf", "--limit", "1", "--json", str(path))
    result = bench("--prompts", "demo", *options, one_process=False)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert set(found["conditions"]["idle_processor_share"]) == {"hf in float32", "the judge", "hasten"}
    assert found["conditions"]["baseline_dtypes"]["hf"]["dtype"] == "float32"
    assert all(record["identical"] for record in found["records"])
    assert "in a process of its own" in " ".join(result.stdout.split())
