"""`hasten train acceptance`, and the drafter that uses what it made."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from hasten.cli import app
from hasten.drafters.trees.acceptance_head import HEAD_FILE
from hasten.models.bundled_models import bundled_path

PROMPT = "User: I want to book a table.\nAssistant:"
GENERATE = ["generate", "demo", "-p", PROMPT, "--json", "--max-new-tokens", "12", "--dtype", "float32"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """A folder with the bundled draft model."""
    folder = tmp_path_factory.mktemp("models") / "draft"
    shutil.copytree(bundled_path("demo-draft"), folder)
    return folder


def test_a_head_is_trained_and_used(draft, tmp_path):
    drafting = [*GENERATE, "--draft", draft, "--drafter", "draft-specdec", "--num-draft-tokens", "8"]
    refused = run(*drafting)
    assert refused.exit_code == 2
    assert "hasten train acceptance" in refused.stderr

    text = tmp_path / "text.txt"
    text.write_text("User: What time is it? I would like to eat a pizza in town tonight.\n" * 60)
    options = ["--target", "demo", "--data", text, "--texts", 3, "--epochs", 1, "-o", draft / HEAD_FILE]
    trained = run("train", "acceptance", draft, *options)
    assert trained.exit_code == 0, trained.output
    assert "of the guesses are accepted" in trained.stdout
    assert "--drafter draft-specdec" in trained.stdout

    found = run(*drafting)
    assert found.exit_code == 0, found.output
    plain = run(*GENERATE, "--drafter", "off")
    output = json.loads(found.stdout)
    assert output["text"] == json.loads(plain.stdout)["text"]
    assert output["stats"]["tokens_per_source"]["draft-specdec"] > 0
