"""From answers to numbers: one record for every prompt set and method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence as AbstractSequence
from dataclasses import asdict
from typing import Any

from hasten.bench.methods import BASELINES, PLAIN, Answer
from hasten.bench.runner import Benchmark, PromptResult

_PHASES = ("draft", "forward", "verify", "other")

Record = dict[str, Any]


def records_of(benchmark: Benchmark) -> list[Record]:
    """JSON-ready records, in the order of the prompt sets and methods."""
    records: list[Record] = []
    for name in dict.fromkeys(result.prompt_set for result in benchmark.results):
        results = [result for result in benchmark.results if result.prompt_set == name]
        records += _set_records(results, benchmark.left_out.get(name, 0))
    return records


def config_of(benchmark: Benchmark) -> dict[str, Any]:
    """JSON-ready: what was asked of the run."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(benchmark.config).items()}


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def repeated_8grams(answers: Iterable[AbstractSequence[int]]) -> float:
    """Share of the 8-grams that stood earlier in the same answer already: how much the texts loop."""
    total = repeated = 0
    for token_ids in answers:
        grams = [tuple(token_ids[start : start + 8]) for start in range(len(token_ids) - 7)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def _set_records(results: list[PromptResult], left_out: int) -> list[Record]:
    methods = [PLAIN, *(name for name in results[0].answers if name not in (PLAIN, *BASELINES))]
    methods += [name for name in BASELINES if name in results[0].answers]
    records = [_method_record(results, method) for method in methods]
    costs = {record["method"]: record["seconds"] / max(1, record["tokens"]) for record in records}
    for record in records:
        cost = costs[record["method"]]
        record["speedup"] = round(costs[PLAIN] / cost, 4)
        record["speedup_hf"] = round(costs["hf"] / cost, 4) if "hf" in costs else None
        record["left_out"] = left_out
    return records


def _method_record(results: list[PromptResult], method: str) -> Record:
    answers = _median_answers(results, method)
    tokens = sum(len(answer.token_ids) for answer in answers)
    steps = sum(answer.num_steps for answer in answers)
    seconds = sum(answer.seconds for answer in answers)
    agreements = [result.agreements[method] for result in results]
    known = [agreement for agreement in agreements if agreement]
    return {
        "prompt_set": results[0].prompt_set,
        "method": method,
        "prompts": len(answers),
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2),
        "speedup": None,
        "speedup_hf": None,
        "mean_acceptance_length": round(tokens / max(1, steps), 4),
        "steps": steps,
        "identical": all(agreement.verdict != "different" for agreement in known) if known else None,
        "near_ties": sum(agreement.verdict == "near tie" for agreement in known),
        "repeated_8grams": round(repeated_8grams(answer.token_ids for answer in answers), 4),
        **_phases(answers, steps),
    }


def _median_answers(results: list[PromptResult], method: str) -> list[Answer]:
    """Of every prompt's repetitions the one that took the median time."""
    runs: dict[tuple[int, int], list[Answer]] = {}
    for result in results:
        runs.setdefault(result.prompt, []).append(result.answers[method])
    return [sorted(some, key=lambda answer: answer.seconds)[(len(some) - 1) // 2] for some in runs.values()]


def _phases(answers: list[Answer], steps: int) -> Record:
    """Milliseconds a step, and the share of the step outside the forward pass in percent."""
    names = [f"{phase}_ms" for phase in _PHASES]
    stats = [answer.stats for answer in answers if answer.stats]
    if not stats:
        return {**dict.fromkeys(names), "outside_forward": None}
    spent = {name: sum(getattr(one, name) for one in stats) for name in names}
    outside = 1 - spent["forward_ms"] / sum(spent.values())
    return {
        **{name: round(total / steps, 4) for name, total in spent.items()},
        "outside_forward": round(100 * outside, 2),
    }
