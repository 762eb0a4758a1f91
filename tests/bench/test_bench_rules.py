"""`hasten bench` with draft models: rules by name, trees of a fixed size, what is compared."""

from __future__ import annotations

import pytest

from hasten.bench.methods import HastenMethod
from hasten.bench.models import OpenModel
from hasten.bench.programs import InThisProcess
from hasten.bench.prompts import load_prompt_set
from hasten.bench.runner import BenchConfig, Benchmark
from hasten.core import SamplingParams
from hasten.errors import ConfigError

METHODS = ("plain", "draft-rsd-s", "draft-rsd-s/traversal", "draft-chain/typical")


@pytest.fixture
def opened(models):
    return OpenModel("tiny", None, models(), 0, "stock", "as asked")


@pytest.mark.parametrize(("temperature", "compared"), [(0.0, [1, 1, 1, 0]), (0.9, [1, 1, 0, 0])])
def test_texts_are_compared_where_the_rule_promises_them(opened, temperature, compared):
    config = BenchConfig(
        methods=METHODS, baselines=(), max_new_tokens=12, temperature=temperature, num_draft_tokens=6
    )
    model = opened.language_model.target.forward.model
    benchmark = Benchmark(opened, config, InThisProcess(lambda: (model, None)))
    benchmark.run([load_prompt_set("random:1", 97)])
    [result] = benchmark.results
    assert [len(result.agreements[name]) for name in METHODS] == compared
    for name in METHODS[:2]:
        assert result.answers[name].token_ids == result.answers["plain"].token_ids


def test_a_fixed_size_is_that_of_every_tree(opened):
    lm = opened.language_model
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    method = HastenMethod("draft-eagle", lm.target, None, draft=lm.resources.draft, num_draft_tokens=4)
    answer = method.answer([[5, 6, 7]], params)
    assert 0 < answer.num_draft_tokens <= 4 * answer.num_passes
    plain = HastenMethod("plain", lm.target, None, num_draft_tokens=4)
    assert plain.answer([[5, 6, 7]], params).num_draft_tokens == 0


def test_unknown_rules_and_two_sizes_are_refused(opened):
    lm = opened.language_model
    with pytest.raises(ConfigError, match="verify='guess' is unknown"):
        HastenMethod("auto/guess", lm.target, None)
    with pytest.raises(ConfigError, match="num_draft_tokens=4"):
        BenchConfig(policy="bass", num_draft_tokens=4)
