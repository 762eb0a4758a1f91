"""Generate, infill and stream with a diffusion model; mistakes are found before the first forward pass."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import hasten
from conftest import build_model
from hasten.constraints import regex_constraint
from hasten.core import SamplingParams, prompt_seeds
from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.engine import DiffusionModel
from hasten.diffusion.prompts import Gap
from hasten.errors import ConfigError, GenerationInterrupted, PromptError
from hasten.models.bundled_models import bundled_path

SPEC = DenoiserSpec(mask_id=1, eos_ids=(0,), pad_id=2)
PROMPT = "User: Hello!"
SMALL = SamplingParams(max_new_tokens=12, seed=5)
SAMPLED = SamplingParams(max_new_tokens=12, seed=5, temperature=0.8)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    module = build_model("llama", dtype=torch.float64, vocab_size=8192, is_causal=False)
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("demo"))
    return DiffusionModel(MaskedLM(module, SPEC), tokenizer)


@pytest.fixture
def silent(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> DiffusionModel:
    """The model, which fails the test as soon as it is run."""
    monkeypatch.setattr(model.denoiser, "open", lambda *args, **kwargs: pytest.fail("a forward pass was run"))
    return model


@pytest.mark.parametrize("params", [SMALL, SAMPLED], ids=["greedy", "sampled"])
def test_exact_writes_the_text_of_the_reference_in_fewer_passes(
    model: DiffusionModel, params: SamplingParams
) -> None:
    reference = model.generate(PROMPT, params, strategy="static")
    exact = model.generate(PROMPT, params, strategy="exact")
    assert exact.token_ids == reference.token_ids
    assert exact.text == reference.text
    assert exact.guarantee == reference.guarantee == "exact"
    assert reference.stats.num_forwards == 12 >= exact.stats.num_forwards


@pytest.mark.parametrize("strategy", ["static", "exact", "threshold:0.01", "auto"])
def test_no_text_depends_on_the_batch(model: DiffusionModel, strategy: str) -> None:
    prompts = [PROMPT, "def f(x):", "Once upon a time there was a very small"]
    seeds = prompt_seeds(SAMPLED.seed, len(prompts))
    alone = [
        model.generate(prompt, replace(SAMPLED, seed=seed), strategy=strategy).token_ids
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for size in (1, 2, 3):
        outputs = model.generate_all(prompts, SAMPLED, strategy=strategy, batch_size=size)
        assert [output.token_ids for output in outputs] == alone


def test_samples_differ_and_a_seed_writes_them_again(model: DiffusionModel) -> None:
    params = SamplingParams(max_new_tokens=8, n=3, seed=1, temperature=1.0)
    first = model.generate([PROMPT], params, strategy="static:4")
    again = model.generate([PROMPT], params, strategy="static:4")
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    assert len({tuple(one.token_ids) for one in first}) == 3
    with pytest.raises(ConfigError, match="n=3 cannot be written for a single prompt"):
        model.generate(PROMPT, params, strategy="static:4")


def test_a_stream_ends_with_the_output_of_generate(model: DiffusionModel) -> None:
    snapshots = list(model.stream(PROMPT, SMALL, strategy="static:2"))
    assert [one.output is None for one in snapshots] == [True] * 5 + [False]
    assert snapshots[-1].output.token_ids == model.generate(PROMPT, SMALL, strategy="static:2").token_ids
    committed = [sum(flag for _, flag in one.segments) for one in snapshots]
    assert not all(flag for _, flag in snapshots[0].segments)
    assert committed[-1] >= 1
    assert all(flag for _, flag in snapshots[-1].segments)
    assert "".join(text for text, _ in snapshots[-1].segments) == snapshots[-1].output.text
    written = [position for one in snapshots for record in one.records for position in record.positions]
    begin = len(snapshots[-1].output.prompt_ids)
    assert sorted(written) == list(range(begin, begin + 12))


def test_an_infill_keeps_what_was_given_and_fills_each_gap(model: DiffusionModel) -> None:
    output = model.infill("def f(x):<gap:3> return <gap:2>;", SMALL, strategy="static")
    ids = output.token_ids
    texts = [model.tokenizer(text)["input_ids"] for text in ("def f(x):", " return ", ";")]
    assert ids[: len(texts[0])] == texts[0]
    assert ids[len(texts[0]) + 3 :][: len(texts[1])] == texts[1]
    assert ids[-len(texts[2]) :] == texts[2]
    assert len(output.gaps) == 2
    assert not {0, 1} & set(ids)
    assert output.stats.num_tokens == 5


def test_an_infill_is_streamed(model: DiffusionModel) -> None:
    *_, last = model.stream(["x = ", Gap(4)], SMALL, strategy="static")
    assert last.output.text.startswith("x = ")
    assert last.output.gaps == model.infill(["x = ", Gap(4)], SMALL, strategy="static").gaps


def test_a_constraint_holds_in_texts_and_gaps_also_in_parallel(model: DiffusionModel) -> None:
    digits = regex_constraint("[0-9]{3,}( [a-c]+)?", model.tokenizer)
    for strategy in ("static", "threshold:0.0", "exact"):
        text = model.generate(PROMPT, SAMPLED, strategy=strategy, constraint=digits).text
        assert digits.name
        assert re.fullmatch("[0-9]{3,}( [a-c]+)?", text), text
        gap = model.infill(["n = ", Gap(4), " ."], SAMPLED, strategy=strategy, constraint=digits).gaps[0]
        assert re.fullmatch("[0-9]{3,}( [a-c]+)?", gap), gap


def test_a_text_ends_with_its_first_end_of_text(model: DiffusionModel) -> None:
    output = model.generate(PROMPT, SMALL, strategy="static")
    token = output.token_ids[4]
    stopped = model.generate(
        PROMPT, SamplingParams(max_new_tokens=12, seed=5, stop_token_ids=[token]), strategy="static"
    )
    end = output.token_ids.index(token) + 1
    assert stopped.token_ids == output.token_ids[:end]
    assert stopped.finish_reason == "stop"
    assert output.finish_reason == "length"


def test_a_stop_that_no_text_could_reach_is_refused(silent: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="8192 is outside the vocabulary of 8192 tokens"):
        silent.generate(PROMPT, SamplingParams(max_new_tokens=12, stop_token_ids=[8192]), strategy="static")


def test_stop_strings_cut_the_text(model: DiffusionModel) -> None:
    text = model.generate(PROMPT, SMALL, strategy="static").text
    stop = text[3:5]
    params = SamplingParams(max_new_tokens=12, seed=5, stop=stop)
    assert model.generate(PROMPT, params, strategy="static").text == text[: text.find(stop)]


def test_the_trace_tells_every_step(model: DiffusionModel) -> None:
    records: list[Any] = []
    output = model.generate(PROMPT, SMALL, strategy="exact", trace=records.append)
    assert len(records) == output.stats.num_steps
    assert sum(record.num_rows for record in records) == output.stats.num_rows
    assert sum(len(record.positions) for record in records) == 12
    assert sum(record.is_ahead for record in records) == output.stats.num_ahead
    assert records[-1].as_dict()["num_open"] == 0
    assert (records[-1].canvas_ids[-12:] == np.array(output.token_ids)).all()


def test_an_interrupt_loses_nothing(model: DiffusionModel) -> None:
    def interrupt(record: Any) -> None:
        if record.sequence == 0 and record.forward == 3:
            raise KeyboardInterrupt

    with pytest.raises(GenerationInterrupted) as caught:
        model.generate([PROMPT, "def"], SMALL, strategy="static", trace=interrupt)
    assert [one.finish_reason for one in caught.value.outputs] == ["interrupted"] * 2
    assert caught.value.outputs[0].stats.num_tokens == 3


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("static+blocks:5", r"blocks:5 does not divide a canvas of 12 new tokens; take 10 or 15"),
        ("nonsense", "'nonsense' is no part of a strategy"),
        ("static+threshold", "static, threshold cannot work together"),
        ("threshold:high", "'high' is not a number"),
        ("threshold:x=1", "threshold takes tau"),
        ("learn2pd", "hasten train filter"),
        ("guided", "--guide"),
        ("static/nothing", "'nothing' is no part"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_before_the_first_pass(
    silent: DiffusionModel, strategy: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        silent.generate(PROMPT, SMALL, strategy=strategy)


def test_what_else_cannot_work_is_refused_before_the_first_pass(silent: DiffusionModel) -> None:
    with pytest.raises(PromptError, match="this model takes 256"):
        silent.generate(PROMPT, SamplingParams(max_new_tokens=255), strategy="static")
    with pytest.raises(ConfigError, match="12"):
        silent.generate(
            PROMPT, SMALL, strategy="static", constraint=regex_constraint("a{500}", silent.tokenizer)
        )
    processors = [lambda ids, scores: scores]
    with pytest.raises(ConfigError, match="logits_processors"):
        silent.generate(PROMPT, SamplingParams(max_new_tokens=8, logits_processors=processors))
    for asked in ({"logit_bias": {3: 1.0}}, {"min_tokens": 2}, {"presence_penalty": 1.0}, {"logprobs": 0}):
        with pytest.raises(ConfigError, match="written from left to right, which"):
            silent.generate(PROMPT, SamplingParams(max_new_tokens=8, **asked))
    with pytest.raises(PromptError, match="no prompts"):
        silent.generate([])
    with pytest.raises(ConfigError, match="n=2"):
        silent.stream(PROMPT, SamplingParams(n=2, max_new_tokens=8))
    with pytest.raises(ConfigError, match="batch_size=0"):
        silent.generate(PROMPT, SMALL, strategy="static", batch_size=0)
    with pytest.raises(ConfigError, match="given text behind"):
        silent.infill("a<gap:4>b", SMALL, strategy="static+eot")


def test_a_spec_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask_id="):
        DenoiserSpec(mask_id=None)
    with pytest.raises(ConfigError, match="end-of-text"):
        DenoiserSpec(mask_id=1, eos_ids=(1,))
    with pytest.raises(ConfigError, match="block size"):
        DenoiserSpec(mask_id=1, block_size=4)
    with pytest.raises(ConfigError, match="logits_shift=2"):
        DenoiserSpec(mask_id=1, logits_shift=2)


def test_loading_is_part_of_the_package() -> None:
    assert hasten.load_diffusion is not None
