"""`hasten train filter` and `hasten train joint`, and the policies that use what they made."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hasten.cli import app

MODEL = "demo-diffusion"
PROMPT = "User: I want to book a table.\nAssistant:"
GENERATE = ["generate", MODEL, "-p", PROMPT, "--json", "--max-new-tokens", "8", "--dtype", "float32"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"User: {number} pizzas"}) + "\n" for number in range(12)))
    return file


def written(*arguments):
    found = run(*GENERATE, *arguments)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_filter_is_trained_and_used(prompts, tmp_path):
    file = tmp_path / "filter.safetensors"
    refused = run(*GENERATE, "--policy", "learn2pd")
    assert refused.exit_code == 2
    assert "hasten train filter" in refused.stderr

    options = ["--prompts", prompts, "--block-size", 4, "--max-new-tokens", 8, "--epochs", 30, "-o", file]
    trained = run("train", "filter", MODEL, *options)
    assert trained.exit_code == 0, trained.output
    assert "accepting above 0.96: " in trained.stdout
    assert "--policy learn2pd" in trained.stdout

    strict = written("--policy", "learn2pd:1.0", "--filter", file)
    assert strict["text"] == written("--policy", "static+blocks:4")["text"]
    assert written("--policy", "learn2pd:0.0", "--filter", file)["stats"]["num_forwards"] == 2


def test_a_joint_sampler_is_trained_and_used(tmp_path):
    file, text = tmp_path / "sampler.safetensors", tmp_path / "text.txt"
    text.write_text("User: What time is it? I would like to eat a pizza in town tonight.\n" * 20)
    options = ["--data", text, "--texts", 4, "--max-new-tokens", 4, "--steps", 2, "-o", file]
    trained = run("train", "joint", MODEL, *options)
    assert trained.exit_code == 0, trained.output
    assert "nats from the model's" in trained.stdout
    assert "--policy joint:4 --joint-sampler" in trained.stdout

    found = written("--policy", "joint:4", "--joint-sampler", file)
    assert found["stats"]["num_forwards"] == 2
    assert found["guarantee"] == "approximate"
    exact = written("--policy", "static+adjust:4", "--joint-sampler", file)
    assert exact["guarantee"] == "exact"
    assert exact["text"] == written("--policy", "static")["text"]


@pytest.mark.parametrize("command", ["filter", "joint"])
def test_prompts_come_from_one_place(command, prompts, tmp_path):
    output = ["-o", tmp_path / "f.safetensors"]
    for places in ([], ["--prompts", prompts, "--lists"]):
        refused = run("train", command, MODEL, *places, *output)
        assert refused.exit_code == 2
        assert "give one of --prompts, --data and --lists" in refused.stderr


def test_questions_about_lists_are_of_all_kinds():
    from hasten.cli.training_canvases import PromptChoice
    from hasten.list_tasks import TASKS

    questions = PromptChoice(None, None, True, 23, 0).read(None, 0)
    assert len(questions) == 23
    assert {question.split()[0] for question in questions} == set(TASKS)
