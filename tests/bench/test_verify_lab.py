"""`hasten verify-lab`: what each rule accepts, and what none can exceed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hasten.bench.verify_lab import coupled, measure
from hasten.cli import app
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.text.engine import LanguageModel

PARAMS = SamplingParams(max_new_tokens=16, temperature=0.8, seed=0, top_k=6, ignore_eos=True)


def test_no_rule_exceeds_the_bound_of_its_candidates(models):
    lab = measure(models(), [[5, 9, 13], [40, 41]], PARAMS, [1, 2, 3], num_positions=16)
    assert lab.num_positions == 16
    assert 0 < lab.agreement < 1
    for k in (1, 2, 3):
        value = {rule: by_width[k] for rule, by_width in lab.acceptances.items()}
        distinct, independent = value["bound, distinct"] + 1e-9, value["bound, independent"] + 1e-9
        assert max(value["residual"], value["naive"]) <= distinct
        assert max(value["k-sequential"], value["residual-independent"]) <= independent
        assert value["single"] <= value["residual"] + 1e-9
    assert lab.acceptances["residual"][3] > lab.acceptances["residual"][1]


def test_a_draft_that_is_the_target_is_always_accepted(models, targets):
    lm = LanguageModel(targets(), draft=targets().forward.model, drafter="off")
    lab = measure(lm, [[5, 9, 13]], PARAMS, [1, 2], num_positions=4)
    assert lab.agreement == 1
    for rule in ("follow", "single", "residual", "k-sequential", "bound, distinct"):
        assert lab.acceptances[rule][1] == pytest.approx(1)


def test_coupled_drafts_agree_as_gumbels_do():
    """For two tokens the chance is known: P(same arg-max) = sum_i min over the ratios of the odds."""
    p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    generator = np.random.default_rng(5)
    gap = generator.logistic(size=200_000)  # of two Gumbels
    expected = np.mean((np.log(0.7 / 0.3) + gap > 0) == (np.log(0.4 / 0.6) + gap > 0))
    assert coupled(p, q, 1, 20_000) == pytest.approx(expected, abs=0.02)
    assert coupled(p, q, 2) == 1
    assert coupled(np.array([0.0, 1.0]), np.array([1.0, 0.0]), 2) == 0


def test_what_cannot_be_compared_is_refused(models, targets):
    with pytest.raises(ConfigError, match="--draft"):
        measure(LanguageModel(targets()), [[5]], PARAMS, [1])
    with pytest.raises(ConfigError, match="temperature=0"):
        measure(models(), [[5]], SamplingParams(), [1])
    with pytest.raises(ConfigError, match="at least 1"):
        measure(models(), [[5]], PARAMS, [0])


def test_the_command_prints_a_table_or_json():
    command = ["verify-lab", "demo", "--draft", "demo-draft", "--limit", "1", "--k", "1", "--positions", "2"]
    command += ["--max-new-tokens", "2"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "k-sequential" in shown.output
    assert "bound, distinct" in shown.output
    lab = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert set(lab) == {"num_positions", "agreement", "acceptances"}
