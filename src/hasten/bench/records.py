"""From answers to numbers: one record for every prompt set, batch size and method."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence as AbstractSequence
from dataclasses import asdict, dataclass
from typing import Any

from hasten.bench.agreement import most_partings
from hasten.bench.baselines import BASELINES
from hasten.bench.methods import PLAIN, Answer
from hasten.bench.runner import Benchmark, GroupResult

_PHASES = ("draft", "forward", "verify", "other")

Record = dict[str, Any]


def records_of(benchmark: Benchmark) -> list[Record]:
    """JSON-ready records, in the order of the prompt sets, batch sizes and methods."""
    rounds: dict[tuple[str, int], list[GroupResult]] = {}
    for result in benchmark.results:
        rounds.setdefault((result.prompt_set, result.batch_size), []).append(result)
    records: list[Record] = []
    for (name, _), results in rounds.items():
        records += _round_records(results, benchmark.left_out.get(name, 0))
    return records


def config_of(benchmark: Benchmark) -> dict[str, Any]:
    """JSON-ready: what was asked of the run."""
    found = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(benchmark.config).items()}
    return found | {"baseline_dtypes": benchmark.baseline_dtypes}


def as_csv(records: list[Record]) -> str:
    """A row a record, with a header; without the single runs, which JSON has."""
    names = [name for name in records[0] if name != "runs"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


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


def _round_records(results: list[GroupResult], left_out: int) -> list[Record]:
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


def _method_record(results: list[GroupResult], method: str) -> Record:
    answers = _median_answers(results, method)
    tokens = sum(answer.num_tokens for answer in answers)
    steps = sum(answer.num_steps for answer in answers)
    seconds = sum(answer.seconds for answer in answers)
    verdicts = Counter(found.verdict for result in results for found in result.agreements[method])
    partings = partings_of(results, method)
    return {
        "prompt_set": results[0].prompt_set,
        "batch_size": results[0].batch_size,
        "method": method,
        "prompts": sum(len(answer.token_ids) for answer in answers),
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2),
        "speedup": None,
        "speedup_hf": None,
        **_decoding(answers, tokens, seconds),
        "mean_acceptance_length": round(tokens / max(1, steps), 4),
        "steps": steps,
        "is_peer": method in BASELINES and BASELINES[method].is_peer,
        "identical": not verdicts["different"] and not partings.are_too_many if verdicts else None,
        "compared": verdicts.total(),
        "near_ties": verdicts["near tie"],
        "different": verdicts["different"],
        "parted": partings.count,
        "parted_expected": round(partings.expected, 3),
        "parted_allowed": round(partings.allowed, 3),
        "repeated_8grams": round(
            repeated_8grams(token_ids for answer in answers for token_ids in answer.token_ids), 4
        ),
        **_costs(answers),
        "runs": _runs(results, method),
    }


def _decoding(answers: list[Answer], tokens: int, seconds: float) -> Record:
    """Without reading the prompts; and what draft trees promised against what their steps gained."""
    prefill = [answer.prefill_seconds for answer in answers if answer.prefill_seconds is not None]
    expected = [answer.expected_tokens for answer in answers if answer.expected_tokens is not None]
    knows = len(prefill) == len(answers)
    return {
        "prefill_seconds": round(sum(prefill), 4) if knows else None,
        "decode_tokens_per_second": round(tokens / (seconds - sum(prefill)), 2) if knows else None,
        "expected_over_actual": round(sum(expected) / max(1, tokens), 4) if expected else None,
    }


def _runs(results: list[GroupResult], method: str) -> list[Record]:
    """Every group of prompts, its repetitions apart: what ``hasten compare`` sees the spread from."""
    found: dict[tuple[int, int], Record] = {}
    for result in results:
        answer = result.answers[method]
        one = found.setdefault(
            result.place,
            {"place": list(result.place), "tokens": answer.num_tokens, "seconds": [], "turns_taken": []},
        )
        one["seconds"].append(round(answer.seconds, 5))
        one["turns_taken"].append(result.order.index(method))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Partings:
    """Texts of a method that parted from plain decoding's, and how many should by rounding alone."""

    count: int
    expected: float
    allowed: float

    @property
    def are_too_many(self) -> bool:
        return self.count > self.allowed


def partings_of(results: list[GroupResult], method: str) -> Partings:
    """Of the first repetition: the others mostly part in the same places."""
    first = [result for result in results if not result.repetition and result.agreements[method]]
    chances = [chance for result in first for chance in result.chances]
    count = sum(found.verdict != "same" for result in first for found in result.agreements[method])
    return Partings(count, sum(chances), most_partings(chances))


def _median_answers(results: list[GroupResult], method: str) -> list[Answer]:
    """Of every group's repetitions the one that took the median time."""
    runs: dict[tuple[int, int], list[Answer]] = {}
    for result in results:
        runs.setdefault(result.place, []).append(result.answers[method])
    return [sorted(some, key=lambda answer: answer.seconds)[(len(some) - 1) // 2] for some in runs.values()]


def _costs(answers: list[Answer]) -> Record:
    """Milliseconds a pass and its share outside the model in percent; what a node of a draft tree cost."""
    passes = sum(answer.num_passes for answer in answers)
    nodes = sum(answer.num_draft_tokens for answer in answers)
    counts = {"passes": passes, "draft_tokens": nodes}
    names = [f"{phase}_ms" for phase in _PHASES]
    spent: Counter[str] = Counter()
    for answer in answers:
        spent.update(answer.milliseconds or {})
    if not spent:
        return {**counts, **dict.fromkeys(names), "draft_ms_per_token": None, "outside_forward": None}
    return {
        **counts,
        **{name: round(spent[phase] / passes, 4) for phase, name in zip(_PHASES, names, strict=True)},
        "draft_ms_per_token": round(spent["draft"] / nodes, 5) if nodes else None,
        "outside_forward": round(100 * (1 - spent["forward"] / spent.total()), 2),
    }
