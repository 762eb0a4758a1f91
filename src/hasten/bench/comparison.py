"""Two runs of a benchmark side by side: how much faster the second one is, and whether that is noise."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bench.records import Record
from hasten.errors import ConfigError

CONFIDENCE = 0.95
_RESAMPLES = 2000
_WORTH_SAYING = (
    "model",
    "shape",
    "dtype",
    "forward",
    "threads",
    "processor",
    "temperature",
    "max_new_tokens",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one method on one prompt set: tokens a second of B over those of A."""

    prompt_set: str
    batch_size: int
    method: str
    num_prompts: int
    """groups of prompts that both runs answered"""
    median: float
    """over these"""
    low: float
    high: float
    """between which the median lies with CONFIDENCE, by resampling the prompts"""
    spread: float
    """of one prompt's repetitions, largest over smallest time; the median over the prompts of both runs"""

    @property
    def is_noise(self) -> bool:
        """Whether a median of 1 is as likely as not excluded."""
        return self.low <= 1 <= self.high or abs(self.median - 1) <= self.spread - 1


def read_run(path: Path) -> dict[str, Any]:
    """What ``hasten bench --json`` wrote. Raises ConfigError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        is_run = isinstance(found, dict) and {"conditions", "records"} <= found.keys()
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"cannot read {str(path)!r} ({problem}); give a file of hasten bench --json"
        ) from problem
    if not is_run or not all("runs" in record for record in found["records"]):
        raise ConfigError(f"{str(path)!r} holds no runs; give a file of this version's hasten bench --json")
    return dict(found)


def differing_conditions(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the two runs did not have in common, that may explain what is seen."""
    pairs = {key: (one["conditions"].get(key), other["conditions"].get(key)) for key in _WORTH_SAYING}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def compare_runs(one: dict[str, Any], other: dict[str, Any]) -> list[Comparison]:
    """Every method on every set that both have. Raises ConfigError where they have none in common."""
    others = {_key(record): record for record in other["records"]}
    found = [_compare(record, others[_key(record)]) for record in one["records"] if _key(record) in others]
    compared = [comparison for comparison in found if comparison.num_prompts]
    if not compared:
        raise ConfigError(
            "the two runs have no method on a prompt set in common; compare runs of the same sets"
        )
    return compared


def _key(record: Record) -> tuple[Any, ...]:
    return record["prompt_set"], record["batch_size"], record["method"]


def _compare(one: Record, other: Record) -> Comparison:
    places = {tuple(run["place"]): run for run in other["runs"]}
    pairs = [(run, places[tuple(run["place"])]) for run in one["runs"] if tuple(run["place"]) in places]
    ratios = [_speed(second) / _speed(first) for first, second in pairs]
    low, high = _interval(ratios) if ratios else (0.0, 0.0)
    spreads = [max(run["seconds"]) / min(run["seconds"]) for pair in pairs for run in pair]
    median = statistics.median(ratios) if ratios else 0.0
    spread = statistics.median(spreads or [1.0])
    name, size, method = _key(one)
    return Comparison(name, size, method, len(pairs), median, low, high, spread)


def _speed(run: Record) -> float:
    return float(run["tokens"] / statistics.median(run["seconds"]))


def _interval(ratios: AbstractSequence[float]) -> tuple[float, float]:
    """Of the median, by the bootstrap with a fixed seed."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.array(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
