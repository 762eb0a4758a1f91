"""What a run says about what ``auto`` promises: each as a number beside what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hasten.bench.baselines import BASELINES
from hasten.bench.methods import PLAIN, parts_of_method
from hasten.bench.records import Record, geometric_mean

AUTO = "auto"
LOOPING = 0.2
"""Texts of which so large a share of the 8-grams stood in them before are easy to draft: they are marked."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One number."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def is_kept(self) -> bool:
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    @property
    def wanted(self) -> str:
        ends = [f"{word} {end:g}" for word, end in (("at least", self.least), ("at most", self.most)) if end]
        return " and ".join(ends) + self.unit


def promises(records: list[Record]) -> list[Promise]:
    """Of the smallest batch size of a run; those that it measured, none where there is no ``auto``."""
    size = min(record["batch_size"] for record in records)
    by_method: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["batch_size"] == size:
            by_method.setdefault(record["method"], {})[record["prompt_set"]] = record
    auto = by_method.get(AUTO)
    if auto is None:
        return []
    found = [
        Promise("auto × plain", _ratio(auto, by_method[PLAIN]), 2.0),
        Promise("auto × plain on the worst set", _worst(auto, by_method[PLAIN]), 0.97),
    ]
    singles = {name for name in by_method if _is_single(name)}
    found += _against("the best single source", auto, by_method, singles, 1.0)
    peers = {name for name in by_method if name.startswith("dejavuu")}
    found += _against("dejavuu's best", auto, by_method, peers, 1.5)
    outside = [record["outside_forward"] for record in auto.values() if record["outside_forward"] is not None]
    if outside:
        found.append(Promise("outside the pass, auto, worst set", max(outside), most=5.0, unit=" %"))
    wandering = [record for record in auto.values() if record["repeated_8grams"] < LOOPING]
    if wandering:
        tokens = sum(record["tokens"] for record in wandering)
        steps = sum(record["steps"] for record in wandering)
        found.append(Promise("tokens a step, auto, sets that do not loop", tokens / max(1, steps), 2.9))
    promised = [(r["expected_over_actual"], r["tokens"]) for r in auto.values() if r["expected_over_actual"]]
    if promised:
        share = sum(ratio * tokens for ratio, tokens in promised) / sum(tokens for _, tokens in promised)
        found.append(Promise("tokens expected over gained, auto", share, 0.95, 1.05))
    return found


def _is_single(name: str) -> bool:
    if name in BASELINES or parts_of_method(name)[0] != name:
        return False
    return "+" not in name and name not in (AUTO, PLAIN)


def _against(
    whom: str,
    auto: dict[str, Record],
    by_method: dict[str, dict[str, Record]],
    names: Iterable[str],
    least: float,
) -> list[Promise]:
    """None where none of them was measured."""
    speeds = {name: _ratio(by_method[name], by_method[PLAIN]) for name in names}
    if not speeds:
        return []
    best = max(speeds, key=lambda name: speeds[name])
    return [Promise(f"auto × {whom} ({best})", _ratio(auto, by_method[best]), least)]


def _ratio(one: dict[str, Record], other: dict[str, Record]) -> float:
    return geometric_mean(_ratios(one, other))


def _worst(one: dict[str, Record], other: dict[str, Record]) -> float:
    return min(_ratios(one, other))


def _ratios(one: dict[str, Record], other: dict[str, Record]) -> list[float]:
    """Of tokens a second, prefill included, on every prompt set."""
    speed: Callable[[Record], float] = lambda record: record["tokens_per_second"]  # noqa: E731
    return [speed(one[name]) / speed(other[name]) for name in one if name in other]
