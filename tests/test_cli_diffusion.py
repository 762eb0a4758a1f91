"""The commands on diffusion models do their job, and every mistake ends in one line and exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hasten.cli import app

SMALL = ["--dtype", "float32", "--device", "cpu"]
PROMPT = "User: I want to book a table.\nAssistant:"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def generate(*arguments: str) -> Result:
    return run("generate", "demo-diffusion", *SMALL, "--max-new-tokens", "8", "--seed", "1", *arguments)


def require_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def written(*arguments: str) -> dict[str, object]:
    result = generate("--json", *arguments)
    assert result.exit_code == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_generate_shows_the_text_and_what_it_cost() -> None:
    result = generate("-p", PROMPT, "--strategy", "static")
    assert result.exit_code == 0
    assert result.stdout == str(written("-p", PROMPT, "--strategy", "static")["text"]) + "\n"
    assert re.search(r"8 tokens in 8 forwards.*static.*exact, seed 1", result.stderr)


def test_exact_writes_the_reference_and_says_so() -> None:
    reference, exact = (written("-p", PROMPT, "--strategy", name) for name in ("static", "exact"))
    assert exact["token_ids"] == reference["token_ids"]
    assert exact["guarantee"] == "exact"
    assert exact["stats"]["num_forwards"] <= 8 == exact["stats"]["num_steps"]


def test_the_default_strategy_is_auto() -> None:
    assert "auto" in str(written("-p", PROMPT)["strategy"])
    assert written("-p", PROMPT)["guarantee"] == "approximate"


def test_several_prompts_and_a_trace(tmp_path: Path) -> None:
    place = tmp_path / "trace.jsonl"
    result = generate(
        "-p", PROMPT, "-p", "def f(x):", "--strategy", "threshold:0.3", "--batch", "2", "--trace", str(place)
    )
    assert result.exit_code == 0
    assert result.stderr.count("--- prompt") == 2
    lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    for sequence in (0, 1):
        steps = [line for line in lines if line["sequence"] == sequence]
        assert sum(len(step["positions"]) for step in steps) == 8
        assert [step["forward"] for step in steps] == list(range(1, len(steps) + 1))
        assert len(steps[0]["tokens"]) == len(steps[0]["positions"])


def test_constraints_hold(tmp_path: Path) -> None:
    assert re.fullmatch("[0-9]+", str(written("-p", PROMPT, "--regex", "[0-9]+")["text"]))
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    text = str(written("-p", PROMPT, "--json-schema", str(schema), "--strategy", "threshold:0.1")["text"])
    assert isinstance(json.loads(text)["n"], int)
    grammar = tmp_path / "pairs.lark"
    grammar.write_text('start: "(" start ")" | "x"\n')
    text = str(written("-p", PROMPT, "--grammar", str(grammar))["text"])
    assert re.fullmatch(r"\(*x\)*", text)
    assert text.count("(") == text.count(")")


def test_infill_keeps_what_stands_around_the_gap() -> None:
    result = run(
        "infill", "demo-diffusion", "def f(x):<gap:6> return y", *SMALL, "--strategy", "static", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    [gap] = found["gaps"]
    assert found["text"] == f"def f(x):{gap} return y"
    shown = run("infill", "demo-diffusion", "def f(x):<gap:6> return y", *SMALL, "--strategy", "static")
    assert shown.stdout == found["text"] + "\n"


def test_info_and_systems_know_diffusion() -> None:
    facts = json.loads(run("info", "demo-diffusion", *SMALL, "--json").stdout)
    assert facts["spec"]["mask_id"] == 1
    assert facts["cost_ms"].keys() == {"32", "128", "512"}
    assert "mask_id 1" in " ".join(run("info", "demo-diffusion", *SMALL).stdout.split())
    listed = {one["name"]: one for one in json.loads(run("systems", "--json").stdout)}
    assert listed["freedave"]["guarantee"] == "exact"
    assert listed["prophet"]["guarantee"] == "approximate"


def test_bench_compares_with_the_reference(tmp_path: Path) -> None:
    place = tmp_path / "bench.json"
    options = ["--methods", "exact,threshold:0.5", "--canvas", "8,16", "--limit", "1", "--json", str(place)]
    result = run("bench", "demo-lists", *SMALL, "--prompts", "lists:copy,lists:sort", *options)
    assert result.exit_code == 0, result.output
    records = json.loads(place.read_text(encoding="utf-8"))["records"]
    assert {(one["canvas"], one["prompt_set"], one["method"]) for one in records} == {
        (canvas, name, method)
        for canvas in (8, 16)
        for name in ("copy", "sort", "all")
        for method in ("static", "exact", "threshold:0.5")
    }
    for one in records:
        assert one["guarantee"] == ("approximate" if "threshold" in one["method"] else "exact")
        if one["method"] != "threshold:0.5":
            assert one["same_text"] == 1.0
            assert one["broken_promises"] == 0
        assert one["forwards"] <= one["canvas"]


def test_bench_fails_on_a_broken_promise_where_rounding_cannot_explain_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "hasten.bench.canvases.CanvasBenchmark.promises_the_reference", lambda self, method: True
    )
    asked = ["--prompts", "lists:shuffle", "--canvas", "16", "--limit", "2", "--methods", "static:8"]
    precise = run("bench", "demo-lists", *asked, "--dtype", "float32")
    assert precise.exit_code == 1
    assert "wrote another text" in precise.stderr
    coarse = run("bench", "demo-lists", *asked, "--dtype", "bfloat16")
    assert coarse.exit_code == 0
    assert "near ties" in coarse.stderr


def test_bench_runs_everything_a_model_can_do() -> None:
    result = run("bench", "demo-lists", *SMALL, "--prompts", "lists:copy", "--canvas", "16", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "left out" in result.stderr
    assert "threshold:0.9/dual" in result.stdout


def test_parallelbench_prints_and_draws(tmp_path: Path) -> None:
    for name in ("plot.png", "plot.svg"):
        place = tmp_path / name
        options = [
            "--families",
            "confidence,factor",
            "--tasks",
            "copy,shuffle",
            "--questions",
            "1",
            "--size",
            "6",
        ]
        result = run("parallelbench", *options, "--dtype", "float32", "--plot", str(place))
        assert result.exit_code == 0, result.output
        assert place.stat().st_size > 1000
    assert "ideal, random:2" in result.stdout
    assert "0.31" in result.stdout  # shuffles of 6 by two: 0.3125


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--strategy", "fast"], ["'fast' is no part"]),
        (["--policy", "static"], ["--policy is for autoregressive models, see --strategy"]),
        (["--strategy", "static+blocks:3"], ["blocks:3", "6 or 9"]),
        (["--drafter", "auto"], ["--drafter is for autoregressive models"]),
        (["--regex", "a{99}"], ["8"]),
        (["--regex", "("], ["not a regular expression"]),
        (["--regex", "a", "--grammar", "x"], ["one of"]),
        (["--strategy", "learn2pd"], ["--filter"]),
        (["--strategy", "guided"], ["--guide"]),
        (["--spec", "mask_id=99999"], ["99999"]),
        (["--spec", "mask=1"], ["mask_id"]),
        (["--max-new-tokens", "4096"], ["2048"]),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], parts: list[str]) -> None:
    require_error(generate("-p", PROMPT, *arguments), *parts)


def test_models_that_do_not_denoise_are_told_apart() -> None:
    require_error(run("infill", "demo", "a<gap:2>b"), "no diffusion model", "demo-diffusion")
    require_error(run("infill", "demo-diffusion", "no gap"), "<gap:20>")
    require_error(run("generate", "demo", "-p", "x", "--regex", "a"), "for diffusion models")
    require_error(run("bench", "demo", "--prompts", "demo", "--canvas", "8"), "for diffusion models")
