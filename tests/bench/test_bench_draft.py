"""A draft model in the benchmark: hasten's drafters that use it, and transformers' assisted generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from hasten.bench import methods
from hasten.bench.methods import ASSISTED, COMPILED, HastenMethod, TransformersMethod
from hasten.bench.models import load_stock, open_model
from hasten.bench.programs import InThisProcess
from hasten.bench.runner import BenchConfig, Benchmark
from hasten.cli import app
from hasten.core import SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.training.tokenizer import train_tokenizer

SMALL = ["--dtype", "float32", "--device", "cpu", "--forward", "stock", "--max-new-tokens", "12"]
PROMPT = "User: I want to book a table.\nAssistant:"


def bench(*arguments: object) -> Result:
    fixed = ["--prompts", "demo", "--limit", "1"]
    return CliRunner().invoke(app, ["bench", "demo", *SMALL, "--one-process", *fixed, *map(str, arguments)])


def require_error(result: Result, part: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert part in result.stderr


@pytest.fixture(scope="module")
def stock() -> Any:
    """stock(name) -> (model, tokenizer) as transformers has them, in float32; the model is a fresh one."""
    return lambda name: load_stock(name, dtype="float32", device="cpu", shape=None)


@pytest.fixture(scope="module")
def prompt(stock: Any) -> list[list[int]]:
    return [stock("demo-draft")[1].encode(PROMPT)]


def test_methods_with_a_draft_model_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--methods", "draft,auto", "--baselines", "hf,hf-assisted", "--json", path]
    result = bench("--draft", "demo-draft", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert [record["method"] for record in found["records"]] == ["plain", "draft", "auto", "hf", ASSISTED]
    by_method = {record["method"]: record for record in found["records"]}
    assert all(record["identical"] for record in found["records"])
    assert by_method[ASSISTED]["steps"] < by_method["hf"]["steps"] == 12
    assert by_method[ASSISTED]["mean_acceptance_length"] > 1
    draft = found["conditions"]["draft"]
    assert (draft["model"], draft["dtype"], draft["device"]) == ("demo-draft", "float32", "cpu")
    assert draft["proposable_tokens"] == 8192
    assert "draft model demo-draft" in " ".join(result.stdout.split())


def test_sampled_answers_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--methods", "draft", "--baselines", "hf,hf-assisted", "--temperature", "0.8", "--json", path]
    result = bench("--draft", "demo-draft", *options)
    assert result.exit_code == 0, result.output
    by_method = {record["method"]: record for record in json.loads(path.read_text())["records"]}
    assert by_method["draft"]["identical"] is True
    for name in ("hf", ASSISTED):
        assert by_method[name]["identical"] is None
        assert by_method[name]["compared"] == 0


def test_without_a_draft_model_assisted_generation_is_left_out_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench("--methods", "", "--baselines", "hf,hf-assisted", "--json", path)
    assert result.exit_code == 0, result.output
    assert "hf-assisted is left out: it needs a draft model" in result.stderr
    found = json.loads(path.read_text())
    assert [record["method"] for record in found["records"]] == ["plain", "hf"]
    assert found["conditions"]["draft"] is None


def test_mistakes() -> None:
    draft = ("--draft", "demo-draft")
    require_error(bench(*draft, "--baselines", "hf-assisted", "--batch", "2"), "hf-assisted takes one prompt")
    require_error(bench(*draft, "--methods", "suffix", "--baselines", "hf"), "does not use a draft model")
    require_error(bench("--methods", "draft", "--baselines", ""), "--draft MODEL")
    require_error(bench("--draft-device", "cpu"), "give --draft MODEL too")
    require_error(bench("--draft", "./nothing"), "no model at")


def test_a_draft_model_only_for_the_baseline_will_do() -> None:
    result = bench("--draft", "demo-draft", "--methods", "", "--baselines", "hf-assisted")
    assert result.exit_code == 0, result.output


def test_assisted_generation_needs_an_assistant(stock: Any) -> None:
    with pytest.raises(ConfigError, match="hf-assisted needs a draft model"):
        TransformersMethod(ASSISTED, *stock("demo"))
    opened = open_model("demo", dtype="float32", device="cpu", forward="stock")
    with pytest.raises(ConfigError, match="hf-assisted needs a draft model"):
        Benchmark(opened, BenchConfig(baselines=(ASSISTED,)), InThisProcess(lambda: stock("demo")))


def test_the_assistant_is_the_stock_draft_with_its_own_defaults(
    stock: Any, prompt: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = stock("demo")
    draft = stock("demo-draft")
    seen: list[dict[str, Any]] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **named: seen.append(named) or generate(*a, **named))
    params = SamplingParams(max_new_tokens=8)
    for name in ("hf", "hf-prompt-lookup", ASSISTED):
        TransformersMethod(name, model, tokenizer, assistant=draft).answer(prompt, params)
    assert [named.get("assistant_model") for named in seen] == [None, None, draft[0]]
    assert not {"tokenizer", "assistant_tokenizer"}.intersection(seen[2])
    assert "num_assistant_tokens" not in seen[2]
    assert draft[0].generation_config.num_assistant_tokens is None


def test_transformers_compiles_on_gpus_only(stock: Any) -> None:
    with pytest.raises(ModelError, match="on GPUs only"):
        TransformersMethod(COMPILED, *stock("demo"))
    opened = open_model("demo", dtype="float32", device="cpu", forward="stock")
    benchmark = Benchmark(
        opened, BenchConfig(baselines=("hf", COMPILED)), InThisProcess(lambda: stock("demo"))
    )
    assert "on GPUs only" in benchmark.skipped[COMPILED]


def test_a_compiled_generate_answers_as_the_other_does(stock: Any, prompt: list[list[int]]) -> None:
    """Here over the same static cache, which transformers does not compile for a CPU."""
    method, params = TransformersMethod("hf", *stock("demo")), SamplingParams(max_new_tokens=12)
    expected = method.answer(prompt, params)
    method.name = COMPILED
    method.start(prompt, params)
    found = method.answer(prompt, params)
    assert found.token_ids == expected.token_ids
    assert (found.num_passes, found.num_steps) == (expected.num_passes, expected.num_steps)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_drafts_end_where_the_text_does(stock: Any, prompt: list[list[int]], is_ignored: bool) -> None:
    draft = stock("demo-draft")
    method = TransformersMethod(ASSISTED, *stock("demo"), assistant=draft)
    method.answer(prompt, SamplingParams(max_new_tokens=4, ignore_eos=is_ignored))
    assert draft[0].generation_config.eos_token_id == (None if is_ignored else [0])


@pytest.mark.parametrize("name", ["hf", "hf-prompt-lookup", ASSISTED])
def test_a_seed_decides_what_transformers_samples(stock: Any, prompt: list[list[int]], name: str) -> None:
    method = TransformersMethod(name, *stock("demo"), assistant=stock("demo-draft"))
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=2**64 - 1)
    before = torch.random.get_rng_state()
    first, again = method.answer(prompt, params), method.answer(prompt, params)
    assert torch.random.get_rng_state().equal(before)
    assert first.token_ids == again.token_ids
    greedy = method.answer(prompt, SamplingParams(max_new_tokens=12))
    assert greedy.token_ids != first.token_ids
    other = method.answer(prompt, SamplingParams(max_new_tokens=12, temperature=1.0, seed=1))
    assert other.token_ids != first.token_ids


def test_sampling_heeds_the_temperature_and_nothing_of_the_models_own(
    stock: Any, prompt: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = stock("demo")
    model.generation_config.top_k, model.generation_config.top_p = 1, 0.1
    model.generation_config.do_sample = True
    method = TransformersMethod("hf", model, tokenizer)
    greedy = method.answer(prompt, SamplingParams(max_new_tokens=12))
    params = SamplingParams(max_new_tokens=12, temperature=1.5, seed=5)
    assert method.answer(prompt, params).token_ids != greedy.token_ids
    cold = SamplingParams(max_new_tokens=12, temperature=1e-4, seed=5)
    assert method.answer(prompt, cold).token_ids == greedy.token_ids


def test_another_tokenizer_is_given_to_transformers_too(
    stock: Any, prompt: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = stock("demo")
    assistant, _ = stock("demo-draft")
    other = train_tokenizer([PROMPT * 3], 280)
    assistant.resize_token_embeddings(len(other))
    method = TransformersMethod(ASSISTED, model, tokenizer, assistant=(assistant, other))
    plain = TransformersMethod("hf", model, tokenizer)
    params = SamplingParams(max_new_tokens=6)
    assert method.answer(prompt, params).token_ids == plain.answer(prompt, params).token_ids


def test_a_methods_models_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model("demo", dtype="float32", device="cpu", forward="stock", draft="demo-draft")
    benchmark = Benchmark(opened, BenchConfig(methods=("draft",), baselines=()))
    for method in benchmark._methods:
        assert isinstance(method, HastenMethod)
        resources = method._language_model.resources
        assert resources.draft is opened.language_model.resources.draft
        assert resources.target is opened.language_model.target
    assert methods.PLAIN in {method.name for method in benchmark._methods}


def test_a_draft_model_keeps_its_own_shape() -> None:
    opened = open_model(
        "demo", dtype="bfloat16", device="cpu", forward="stock", shape="135m", draft="demo-draft"
    )
    draft = opened.language_model.resources.draft
    assert draft is not None
    assert draft.model.num_bytes() < opened.language_model.target.num_bytes() / 20
