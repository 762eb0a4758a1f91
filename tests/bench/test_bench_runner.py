"""The benchmark end to end on the bundled model: records, conditions, exit codes, the context's limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hasten.bench import methods
from hasten.bench.methods import Answer, HastenMethod
from hasten.bench.models import open_model
from hasten.bench.prompts import Conversation, PromptSet
from hasten.bench.records import geometric_mean, records_of, repeated_8grams
from hasten.bench.runner import BenchConfig, Benchmark
from hasten.cli import app
from hasten.core import SamplingParams
from hasten.errors import PromptError

FIELDS = {
    "prompt_set": str,
    "batch_size": int,
    "method": str,
    "prompts": int,
    "tokens": int,
    "seconds": float,
    "tokens_per_second": float,
    "speedup": float,
    "speedup_hf": float,
    "mean_acceptance_length": float,
    "steps": int,
    "passes": int,
    "draft_tokens": int,
    "compared": int,
    "different": int,
    "identical": bool,
    "near_ties": int,
    "repeated_8grams": float,
    "left_out": int,
}
TIMES = ("draft_ms", "forward_ms", "verify_ms", "other_ms", "outside_forward")
CONDITIONS = {
    *("model", "shape", "parameters", "dtype", "threads", "processor", "versions", "git_revision"),
    *("temperature", "max_new_tokens", "date", "seed", "repeat", "is_cold", "device"),
    *("batch_sizes", "ignore_eos"),
}
SMALL = ["--dtype", "float32", "--device", "cpu", "--forward", "stock", "--max-new-tokens", "6"]


def bench(*arguments: str, one_process: bool = True) -> Result:
    """In one process, as that is faster than starting others, and can be patched."""
    apart = ["--one-process"] if one_process else []
    return CliRunner().invoke(app, ["bench", "demo", *SMALL, *apart, *arguments])


@pytest.fixture(scope="module")
def opened() -> Any:
    return open_model("demo", dtype="float32", device="cpu", forward="stock")


def measure(opened: Any, conversations: list[Conversation], **options: Any) -> Benchmark:
    config = BenchConfig(**({"max_new_tokens": 4, "baselines": ()} | options))
    benchmark = Benchmark(opened, config)
    benchmark.run([PromptSet("some", tuple(conversations))])
    return benchmark


def test_records_and_conditions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    options = ["--limit", "2", "--repeat", "2", "--json", str(path), "--baselines", "hf,hf-prompt-lookup"]
    result = bench("--prompts", "demo", "--prompts", "random:2", "--methods", "auto,suffix", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert set(found["conditions"]) >= CONDITIONS
    assert found["conditions"]["parameters"] == 6_524_160
    names = ["plain", "auto", "suffix", "hf", "hf-prompt-lookup"]
    assert [record["method"] for record in found["records"]] == names * 2
    for record in found["records"]:
        for field, kind in FIELDS.items():
            assert isinstance(record[field], kind), field
        assert record["identical"]
        is_baseline = record["method"].startswith("hf")
        assert all((record[name] is None) == is_baseline for name in TIMES)
        assert record["prompts"] == 2
    plain, hf = found["records"][0], found["records"][3]
    assert plain["speedup"] == hf["speedup_hf"] == 1
    assert plain["mean_acceptance_length"] == hf["mean_acceptance_length"] == 1
    for part in ("demo", "random", "geometric mean", "repeated", "outside"):
        assert part in result.output


def test_sampled_baselines_have_nothing_to_agree_with(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench("--prompts", "demo", "--limit", "1", "--temperature", "0.7", "--json", str(path), "--cold")
    assert result.exit_code == 0, result.output
    by_method = {record["method"]: record for record in json.loads(path.read_text())["records"]}
    assert by_method["auto"]["identical"] is True
    assert by_method["hf"]["identical"] is None


def test_another_text_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = HastenMethod.answer

    def forge(self: HastenMethod, prompts: list[list[int]], params: SamplingParams) -> Answer:
        found = answer(self, prompts, params)
        [token_ids] = found.token_ids
        return replace(found, token_ids=[[*token_ids[:-1], 7]]) if self.name == "suffix" else found

    monkeypatch.setattr(methods.HastenMethod, "answer", forge)
    result = bench("--prompts", "demo", "--limit", "1", "--methods", "suffix", "--baselines", "")
    assert result.exit_code == 1
    assert "NO" in result.stdout
    assert "another text" in result.stderr


def test_an_interrupt_shows_what_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answered: list[str] = []
    answer = HastenMethod.answer

    def interrupt(self: HastenMethod, prompts: list[list[int]], params: SamplingParams) -> Answer:
        answered.append(self.name)
        if len(answered) == 6:
            raise KeyboardInterrupt
        return answer(self, prompts, params)

    monkeypatch.setattr(methods.HastenMethod, "answer", interrupt)
    path = tmp_path / "out.json"
    result = bench("--prompts", "demo", "--baselines", "", "--json", str(path))
    assert result.exit_code == 130
    assert all(record["prompts"] == 2 for record in json.loads(path.read_text())["records"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--prompts", "demo", "--methods", "psychic"], "psychic"),
        (["--prompts", "demo", "--baselines", "vllm"], "vllm"),
        (["--prompts", "demo", "--limit", "0"], "limit=0"),
        (["--prompts", "demo", "--repeat", "0"], "repeat=0"),
        (["--prompts", "demo", "--batch", "0"], "batch=0"),
        (["--prompts", "demo", "--batch", "4,-1"], "batch=-1"),
        (["--prompts", "demo", "--batch", "many"], "batch='many'"),
        (["--prompts", "demo", "--batch", "1,2.5"], "batch='1,2.5'"),
        (["--prompts", "demo", "--batch", ","], "batch=0"),
        (["--prompts", "demo", "--threads", "0"], "threads=0"),
        (["--prompts", "demo,demo"], "cannot be told apart"),
        (["--prompts", "missing.jsonl"], "missing.jsonl"),
        (["--prompts", "random:x"], "random:N"),
        (["--prompts", "demo", "--json", "/dev/null/x.json"], "cannot write"),
    ],
)
def test_mistakes(arguments: list[str], part: str) -> None:
    result = bench("--baselines", "", *arguments)
    assert result.exit_code == (1 if part == "cannot write" else 2), result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert part in result.stderr


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n')
    result = bench("--prompts", str(tmp_path / "bad.jsonl"))
    assert result.exit_code == 2
    assert "bad.jsonl:2 " in result.stderr


def test_later_turns_contain_plain_answers(opened: Any) -> None:
    benchmark = measure(opened, [Conversation(("Hello!", "A latte, please."), True)], methods=("auto",))
    first, second = benchmark.results
    assert (first.place, second.place) == ((0, 0), (0, 1))
    answer = first.answers["plain"].texts[0].split("\nUser:")[0].strip()
    prompt_ids = benchmark._prompt_ids(Conversation(("Hello!", "A latte, please."), True), [answer], 1)
    text = opened.language_model.tokenizer.decode(prompt_ids)
    assert text == f"User: Hello!\nAssistant: {answer}\nUser: A latte, please.\nAssistant:"


def test_prompts_that_do_not_fit_are_counted(opened: Any) -> None:
    long = Conversation(("word " * 3000,), False)
    benchmark = measure(opened, [long, Conversation(("Once",), False), long], methods=())
    assert benchmark.left_out == {"some": 2}
    assert [record["left_out"] for record in records_of(benchmark)] == [2]
    with pytest.raises(PromptError, match="no prompt of some"):
        measure(opened, [long])


def test_the_order_of_the_methods_changes(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answer = HastenMethod.answer

    def note(self: HastenMethod, prompts: list[list[int]], params: SamplingParams) -> Answer:
        order.append(self.name)
        return answer(self, prompts, params)

    monkeypatch.setattr(methods.HastenMethod, "answer", note)
    measure(opened, [Conversation((text,), False) for text in ("One", "Two")], methods=("suffix",))
    assert order == ["plain", "suffix", "suffix", "plain"]


def test_stores_start_empty_and_cold_ones_stay_so(opened: Any) -> None:
    prompts = [opened.language_model.encode("User: I want to book a table.\nAssistant:")]
    params = SamplingParams(max_new_tokens=24)
    steps: dict[bool, list[int]] = {}
    for is_cold in (False, True):
        target, tokenizer = opened.language_model.target, opened.language_model.tokenizer
        # A fixed size: what a busy machine measures must not keep it from drafting.
        method = HastenMethod("suffix", target, tokenizer, num_draft_tokens=8, is_cold=is_cold)
        method.start(prompts, params)
        steps[is_cold] = [method.answer(prompts, params).num_steps for _ in range(2)]
    assert steps[False][1] < steps[False][0]
    assert steps[True][1] > steps[False][1]


def test_repeated_8grams() -> None:
    assert repeated_8grams([list(range(20))]) == 0
    assert repeated_8grams([[1] * 20]) == pytest.approx(12 / 13)
    assert repeated_8grams([[1, 2, 3]]) == 0


def test_geometric_mean() -> None:
    assert geometric_mean([1, 4]) == pytest.approx(2)
