"""`hasten train filter` and `hasten train joint`, and the selectors that use what they made."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from conftest import build_model
from hasten.cli import app
from hasten.cli.training_canvases import PromptChoice
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.confidence_filter import FILTER_FILE
from hasten.diffusion.list_tasks import TASKS
from hasten.training.diffusion_rows import list_tokenizer

PROMPT = "reverse : B A D C ="


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random model that knows the words of the list tasks."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = list_tokenizer()
    tokenizer.save_pretrained(folder)
    shape = {
        "vocab_size": len(tokenizer),
        "eos_token_id": 0,
        "pad_token_id": 2,
        "max_position_embeddings": 512,
    }
    build_model("llama", torch.float32, 0, is_causal=False, **shape).save_pretrained(folder)
    DenoiserSpec(mask_id=1, eos_ids=(0,), pad_id=2).save(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"copy : {letter} Z ="}) + "\n" for letter in "ABCDEFGHIJKL")
    )
    return file


def written(model, *arguments):
    options = ["-p", PROMPT, "--json", "--max-new-tokens", "8", "--dtype", "float32"]
    found = run("generate", model, *options, *arguments)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_filter_is_trained_and_used(model, prompts, tmp_path):
    file = tmp_path / "filter.safetensors"
    refused = run("generate", model, "-p", PROMPT, "--strategy", "learn2pd")
    assert refused.exit_code == 2
    assert "hasten train filter" in refused.stderr

    options = ["--prompts", prompts, "--block-size", 4, "--max-new-tokens", 8, "--epochs", 30, "-o", file]
    trained = run("train", "filter", model, *options)
    assert trained.exit_code == 0, trained.output
    assert "accepting above 0.96: " in trained.stdout
    assert "--strategy learn2pd" in trained.stdout

    with_file = run("generate", model, "-p", PROMPT, "--strategy", "learn2pd", "--filter", prompts)
    assert with_file.exit_code == 2
    assert "is not readable" in with_file.stderr

    strict = written(model, "--strategy", "learn2pd:1.0", "--filter", file)
    assert strict["text"] == written(model, "--strategy", "static+blocks:4")["text"]
    assert written(model, "--strategy", "learn2pd:0.0", "--filter", file)["stats"]["num_forwards"] == 2

    shutil.copy(file, model / FILTER_FILE)
    try:
        assert written(model, "--strategy", "learn2pd:0.0")["stats"]["num_forwards"] == 2
        (model / FILTER_FILE).write_bytes(b"nothing")
        assert run("generate", model, "-p", PROMPT, "--strategy", "learn2pd").exit_code == 2
        assert written(model, "--strategy", "static+blocks:4")["text"] == strict["text"]
    finally:
        (model / FILTER_FILE).unlink()


def test_a_joint_sampler_is_trained_and_used(model, tmp_path):
    file, text = tmp_path / "sampler.safetensors", tmp_path / "text.txt"
    text.write_text("sort : D B F A = A B D F\n" * 20)
    options = ["--data", text, "--texts", 4, "--max-new-tokens", 4, "--steps", 2, "-o", file]
    trained = run("train", "joint", model, *options)
    assert trained.exit_code == 0, trained.output
    assert "nats from the model's" in trained.stdout
    assert "--strategy joint:4 --joint-sampler" in trained.stdout

    found = written(model, "--strategy", "joint:4", "--joint-sampler", file)
    assert found["stats"]["num_forwards"] == 2
    assert found["guarantee"] == "approximate"
    exact = written(model, "--strategy", "static+adjust:4", "--joint-sampler", file)
    assert exact["guarantee"] == "exact"
    assert exact["text"] == written(model, "--strategy", "static")["text"]


@pytest.mark.parametrize("command", ["filter", "joint"])
def test_prompts_come_from_one_place(command, model, prompts, tmp_path):
    output = ["-o", tmp_path / "f.safetensors"]
    for places in ([], ["--prompts", prompts, "--lists"]):
        refused = run("train", command, model, *places, *output)
        assert refused.exit_code == 2
        assert "give one of --prompts, --data and --lists" in refused.stderr


def test_questions_about_lists_are_of_all_kinds():
    questions = PromptChoice(None, None, True, 23, 0).read(None, 0)
    assert len(questions) == 23
    assert {question.split()[0] for question in questions} == set(TASKS)
