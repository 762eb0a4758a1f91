"""The commands on GGUF files."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hasten.cli import app
from hasten.core import SamplingParams


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(each) for each in arguments], **options)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_export_writes_a_file_and_says_what_is_in_it(tmp_path):
    path = tmp_path / "new" / "demo.gguf"
    result = run("export", "demo", "--gguf", path, "--dtype", "q8_0")
    assert path.stat().st_size < 8e6
    assert "43 tensors in Q8_0" in result.stdout
    assert f"hasten generate {path}" in result.stdout


def test_export_refuses_what_it_cannot_write(tmp_path):
    result = run("export", "demo", "--gguf", tmp_path / "m.gguf", "--dtype", "q4", code=2)
    assert "dtype='q4' is not known" in result.stderr
    assert run("export", "demo", code=2).stderr


class TestWithLlamaCpp:
    @pytest.fixture(autouse=True)
    def _needs_llama_cpp(self):
        pytest.importorskip("llama_cpp")

    def test_generate_writes_the_text_of_transformers(self, gguf_file, demo):
        path = gguf_file("demo")
        arguments = ["generate", path, "-p", "Once upon a time", "--max-new-tokens", 12]
        expected = demo.generate("Once upon a time", SamplingParams(max_new_tokens=12)).text
        assert run(*arguments).stdout.rstrip("\n") == expected
        assert json.loads(run(*arguments, "--json").stdout)["text"] == expected

    def test_generate_can_be_traced_and_take_a_draft(self, gguf_file, tmp_path):
        arguments = ["--draft", "demo-draft", "--drafter", "draft", "--num-draft-tokens", 4]
        arguments += ["--max-new-tokens", 8, "--trace", tmp_path / "trace.jsonl"]
        run("generate", gguf_file("demo"), "-p", "Once upon a time", *arguments)
        steps = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
        assert any(step["sequences"][0]["tree"]["token_ids"] for step in steps)

    def test_chat_answers(self, gguf_file):
        result = run("chat", gguf_file("demo"), "--max-new-tokens", 8, input="hello\n/stats\n/exit\n")
        assert "tokens in" in result.stdout

    def test_info_names_the_backend(self, gguf_file):
        found = json.loads(run("info", gguf_file("demo", "q8_0"), "--json").stdout)
        assert "Q8_0, run by llama.cpp" in found["architecture"]
        assert found["probe"]["mode"] == "tree"
        assert found["forward"]["chosen"] == "llama.cpp"
        assert found["parameters"] == 6_524_160

    @pytest.mark.parametrize("dtype", ["bfloat16", "q8_0"])
    def test_bench_finds_the_same_texts_or_near_ties(self, gguf_file, tmp_path, dtype):
        """Kernels round differently for one row and for many, so texts of coarse files may part at a tie."""
        arguments = ["--prompts", "demo", "--limit", 3, "--max-new-tokens", 32, "--num-draft-tokens", 12]
        arguments += ["--batch", "1,3", "--json", tmp_path / "bench.json"]
        result = run("bench", gguf_file("demo", dtype), *arguments)
        assert "hf is left out" in result.stderr
        records = json.loads((tmp_path / "bench.json").read_text())["records"]
        assert {record["method"] for record in records} == {"plain", "auto"}
        assert all(record["identical"] for record in records)

    def test_a_shape_goes_with_the_export(self, gguf_file):
        result = run("bench", gguf_file("demo"), "--prompts", "demo", "--shape", "135m", code=2)
        assert "hasten export" in result.stderr

    def test_what_a_file_decides_cannot_be_chosen(self, gguf_file):
        result = run("generate", gguf_file("demo"), "-p", "Once", "--forward", "packed", code=2)
        assert "forward='packed' does not go with a GGUF file" in result.stderr
