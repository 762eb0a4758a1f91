"""On the bundled models: exact is exact, and what is faster is named for what it is."""

from __future__ import annotations

import pytest

from hasten.core import SamplingParams
from hasten.diffusion.engine import DiffusionModel, load_diffusion
from hasten.diffusion.list_tasks import TASKS, is_correct, sample_questions

TEXTS = ("User: I want to book a table.\nAssistant:", "def read_file(path):\n", "Once upon a time")


@pytest.fixture(scope="module")
def lists() -> DiffusionModel:
    return load_diffusion("demo-lists", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def text() -> DiffusionModel:
    return load_diffusion("demo-diffusion", dtype="float32", device="cpu")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_freedave_writes_the_reference_on_every_list_task(lists: DiffusionModel, temperature: float) -> None:
    prompts = [question.prompt for task in TASKS for question in sample_questions(task, 3, seed=5)]
    params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=3)
    reference = lists.generate_all(prompts, params, strategy="static")
    for strategy in ("static+freedave", "static+freedave:12", "exact"):
        drafted = lists.generate_all(prompts, params, strategy=strategy)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in reference]
        assert {one.guarantee for one in drafted} == {"exact"}
        passes = [sum(one.stats.num_forwards for one in outputs) for outputs in (reference, drafted)]
        assert passes[1] < 0.6 * passes[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_freedave_writes_the_reference_of_text(text: DiffusionModel, temperature: float) -> None:
    params = SamplingParams(max_new_tokens=32, temperature=temperature, seed=3)
    reference = text.generate_all(TEXTS, params, strategy="static")
    drafted = text.generate_all(TEXTS, params, strategy="static+freedave:6")
    assert [one.token_ids for one in drafted] == [one.token_ids for one in reference]
    assert sum(one.stats.num_forwards for one in drafted) < 3 * 32


def test_the_easy_tasks_are_right_in_a_fifth_of_the_passes(lists: DiffusionModel) -> None:
    params = SamplingParams(max_new_tokens=32)
    asked = [
        question for task in ("copy", "remove_index") for question in sample_questions(task, 6, 1, 6, 12)
    ]
    for strategy, most in (("static", 32), ("threshold:0.9", 6.4), ("factor", 6.4)):
        outputs = lists.generate_all([one.prompt for one in asked], params, strategy=strategy)
        right = [is_correct(one, output.text) for one, output in zip(asked, outputs, strict=True)]
        assert sum(right) >= 10
        assert sum(output.stats.num_forwards for output in outputs) <= most * len(outputs)


def test_a_measured_cache_is_used_or_not_and_decided_by_each_text(text: DiffusionModel) -> None:
    params = SamplingParams(max_new_tokens=96)
    plain, strict, trusting = (
        text.generate(TEXTS[0], params, strategy=f"threshold:0.9{cache}")
        for cache in ("", "/measured:limit=0,probation=64", "/measured:limit=1,probation=64")
    )
    assert strict.token_ids == plain.token_ids
    assert trusting.stats.num_rows < 0.9 * plain.stats.num_rows
    assert strict.stats.num_rows > plain.stats.num_rows
    alone = [text.generate(one, params, strategy="auto").token_ids for one in TEXTS]
    together = text.generate_all(TEXTS, params, strategy="auto")
    assert [one.token_ids for one in together] == alone
