"""`hasten index` makes a store, says so, and the store is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from hasten.cli import app
from hasten.core import SamplingParams
from hasten.drafters.corpus.corpus_index import write_index
from hasten.text.engine import LanguageModel

SMALL = ["--dtype", "float32", "--device", "cpu", "--forward", "stock"]
PROMPT = "User: I want to book a table.\nAssistant:"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def require_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture
def store(tmp_path: Path, demo: LanguageModel) -> Path:
    """An index whose only text is what the demo model answers."""
    answer = demo.generate(PROMPT, SamplingParams(max_new_tokens=16), drafter="off").text
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "answer.jsonl").write_text(json.dumps({"text": PROMPT + answer}) + "\n")
    result = run("index", tmp_path / "texts", "-o", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert "1 document," in result.stdout
    assert f"--index {tmp_path / 'store'}" in result.stdout
    return tmp_path / "store"


@pytest.mark.parametrize("drafter", ["rest", "rasd", "suffix+rest"])
def test_generate_looks_texts_up(store, drafter):
    options = ["-p", PROMPT, "--json", "--max-new-tokens", 16, "--num-draft-tokens", 12, *SMALL]
    plain = json.loads(run("generate", "demo", *options, "--drafter", "off").stdout)
    found = json.loads(run("generate", "demo", *options, "--drafter", drafter, "--index", store).stdout)
    assert found["token_ids"] == plain["token_ids"]
    assert found["stats"]["num_steps"] < plain["stats"]["num_steps"]
    assert any("rest" in source or source == "rasd" for source in found["stats"]["tokens_per_source"])


def test_bench_and_chat_look_texts_up(store, tmp_path):
    result = run(
        "bench", "demo", *SMALL, "--prompts", "random:8", "--limit", 1, "--max-new-tokens", 4,
        "--baselines", "", "--methods", "rest", "--index", store, "--json", tmp_path / "records.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "rest" in result.stdout
    result = CliRunner().invoke(
        app,
        ["chat", "demo", *SMALL, "--drafter", "rest", "--max-new-tokens", "4", "--index", str(store)],
        input="hello\n",
    )
    assert result.exit_code == 0, result.output


def test_an_index_is_replaced_but_nothing_else(store, tmp_path):
    (tmp_path / "more.md").write_text("more text, and more text")
    assert run("index", tmp_path / "more.md", "-o", store).exit_code == 0
    require_error(run("index", tmp_path / "more.md", "-o", tmp_path / "texts"), "is no index")
    assert (tmp_path / "texts" / "answer.jsonl").exists()


def test_mistakes_are_named(tmp_path, store):
    generate = ["generate", "demo", *SMALL, "-p", "x"]
    require_error(run(*generate, "--drafter", "rest"), "hasten index FILES -o STORE", "--index STORE")
    require_error(run(*generate, "--index", store), "drafter='auto' does not use an index", "rasd")
    generate += ["--drafter", "rest"]
    require_error(run(*generate, "--index", tmp_path / "nothing"), "no corpus index at", "hasten index")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    made = tmp_path / "new"
    require_error(run("index", tmp_path / "bad.txt", "-o", made), "bad.txt", "UTF-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"content": "x"}\n')
    require_error(run("index", tmp_path / "bad.jsonl", "-o", made), "bad.jsonl:2", '{"text": "..."}')
    require_error(run("index", tmp_path / "missing", "-o", made), "missing")
    require_error(run("index", tmp_path / "texts", "-o", made, "--tokenizer", "./nowhere"), "./nowhere")
    assert not made.exists()
    write_index(store, [np.array([1, 2, 3])], "another")
    require_error(run(*generate, "--index", store), "another", "--tokenizer MODEL")
