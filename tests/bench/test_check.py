"""hasten check: transformers' own text decides, and a wrong one is found."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import hasten
from hasten.bench import check as checking
from hasten.bench.check import Checker, check
from hasten.cli import app
from hasten.errors import ConfigError
from hasten.models.bundled_models import bundled_path

FOLDER = str(bundled_path("demo-draft"))
PROMPTS = ("User: I need a taxi.\nAssistant:", "def add(a, b):")
FEW = {"forwards": ("stock",), "drafters": ("suffix",), "prompts": PROMPTS, "max_new_tokens": 8}


def test_every_text_of_a_right_model_is_that_of_transformers():
    found = check(FOLDER, dtypes=("float32",), **FEW)
    assert [finding.problem for finding in found] == [""] * 5
    assert all(finding.num_same == finding.num_texts for finding in found)
    assert {finding.case.sampling for finding in found[1:]} == {"greedy", "T=0.8"}
    assert {finding.case.batch for finding in found[1:]} == {1, 4}


def test_bfloat16_is_judged_by_its_own_rounding():
    assert not any(finding.problem for finding in check(FOLDER, dtypes=("bfloat16",), **FEW))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_drops_a_scale_is_found(monkeypatch, dtype):
    """As the compiled pass once did with the embeddings of Gemma."""

    def wrong(folder, **_):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.3)
        return hasten.load(model)

    monkeypatch.setattr(checking, "load", wrong)
    scores, *texts = check(FOLDER, dtypes=(dtype,), **FEW)
    assert "scores are off" in scores.problem
    assert any(finding.problem for finding in texts)


def test_a_forward_that_refuses_a_model_is_named_and_no_fault():
    [finding] = Checker(FOLDER, "float32", PROMPTS).run("graphs")
    assert finding.case.drafter == "refused"
    assert "GPU" in finding.case.sampling
    assert not finding.problem


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match="float16"):
        check(FOLDER, dtypes=("float16",))


def test_the_command_exits_with_1_for_a_wrong_text(monkeypatch):
    arguments = ["check", "demo-draft", "--dtypes", "float32", "--forwards", "stock", "--drafters", "off"]
    arguments += ["--max-new-tokens", "4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "0 of 5 cases are wrong" in result.stdout
    monkeypatch.setattr(checking, "_EXACT_NOISE", 0.0)
    assert CliRunner().invoke(app, arguments).exit_code == 1
