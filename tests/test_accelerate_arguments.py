"""What the drop-in refuses, what it leaves to `generate`, and how it comes and goes."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

import hasten
from accelerated import BATCH, SINGLE, accelerated
from adversaries import Oracle, Recorder
from conftest import build_model
from hasten.errors import ModelError, PromptError


@pytest.fixture(scope="module")
def models():
    """models(name) -> an accelerated model."""
    return accelerated


UNSUPPORTED = {
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "guidance_scale": 1.5,
    "output_attentions": True,
    "output_hidden_states": True,
    "cache_implementation": "quantized",
    "token_healing": True,
    "assistant_model": "another model",
    "synced_gpus": True,
    "negative_prompt_ids": SINGLE["input_ids"],
    "negative_prompt_attention_mask": SINGLE["attention_mask"],
    "custom_generate": "owner/repository",
    "inputs_embeds": torch.zeros(1, 3, 32),
    "past_key_values": (),
    "position_ids": torch.tensor([[3] * 12]),
    "adapter_names": ["one"],
    "constraints": ["words"],
}


@pytest.mark.parametrize("argument", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(models, argument):
    with pytest.raises(hasten.ConfigError, match=rf"{argument}.*; .*model\.generate\.original"):
        models().generate(**SINGLE, max_new_tokens=4, **{argument: UNSUPPORTED[argument]})


@pytest.mark.parametrize("argument", ["num_beams", "cache_implementation", "guidance_scale"])
def test_what_is_not_supported_is_refused_in_a_generation_config_too(models, argument, monkeypatch):
    config = GenerationConfig(max_new_tokens=4, **{argument: UNSUPPORTED[argument]})
    with pytest.raises(hasten.ConfigError, match=argument):
        models().generate(**SINGLE, generation_config=config)
    monkeypatch.setattr(models().generation_config, argument, UNSUPPORTED[argument])
    with pytest.raises(hasten.ConfigError, match=argument):
        models().generate(**SINGLE, max_new_tokens=4)


def test_token_types_and_filled_caches_are_refused(models):
    with pytest.raises(hasten.ConfigError, match="token_type_ids does not work"):
        models("gpt2").generate(**SINGLE, token_type_ids=SINGLE["input_ids"], max_new_tokens=4)
    inner = models()
    with pytest.raises(hasten.ConfigError, match="past_key_values"):
        hasten.restore(copy.deepcopy(inner)).generate(
            **SINGLE,
            max_new_tokens=4,
            past_key_values=inner(**SINGLE).past_key_values,
            custom_generate=hasten.custom_generate,
        )


@pytest.mark.parametrize("mask", [[1] * 11 + [0], [1, 0] * 6, [0] * 12])
def test_masks_that_are_not_padding_on_the_left_are_refused(models, mask):
    with pytest.raises(hasten.ConfigError, match=r"attention_mask=\[.*row 0.*padding_side='left'"):
        models().generate(SINGLE["input_ids"], attention_mask=torch.tensor([mask]), max_new_tokens=4)


def test_rows_that_may_end_apart_need_a_pad_token(models, monkeypatch):
    model = models()
    monkeypatch.setattr(model.generation_config, "pad_token_id", None)
    assert torch.equal(
        model.generate(**BATCH, max_new_tokens=4), model.generate.original(**BATCH, max_new_tokens=4)
    )
    with pytest.raises(hasten.ConfigError, match="pad_token_id=None"):
        model.generate(**BATCH, max_new_tokens=4, max_time=9.0)


def test_errors_of_generate_stay_errors_of_generate(models):
    model = models()
    few = {"max_new_tokens": 3, "max_length": None}
    for wrong in (
        {"max_new_tokenz": 3},
        {"max_length": 3, "max_new_tokens": None},
        {"temperature": -1.0, "do_sample": True},
    ):
        with pytest.raises(ValueError, match=r".") as theirs:
            model.generate.original(**SINGLE, **few | wrong)
        with pytest.raises(ValueError, match=r".") as ours:
            model.generate(**SINGLE, **few | wrong)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(**SINGLE, stop_strings="a", max_new_tokens=4)


def test_bad_tokens_and_nan_are_errors(models):
    with pytest.raises(PromptError, match="token id 97"):
        models().generate(torch.tensor([[5, 97]]), max_new_tokens=4)

    class Broken(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores * torch.nan

    for sample in (False, True):
        with pytest.raises(ModelError, match="position 12"):
            models().generate(
                **SINGLE, logits_processor=LogitsProcessorList([Broken()]), max_new_tokens=4, do_sample=sample
            )


def test_a_model_in_training_is_refused(models):
    model = build_model()
    model.train()
    with pytest.raises(hasten.ConfigError, match=r"model\.eval\(\)"):
        hasten.accelerate(model)
    hasten.accelerate(model.eval())
    model.train()
    with pytest.raises(hasten.ConfigError, match=r"model\.eval\(\)"):
        model.generate(**SINGLE, max_new_tokens=4)


def test_what_is_not_a_causal_language_model_is_refused():
    with pytest.raises(ModelError, match="str has no generate"):
        hasten.accelerate("demo")
    with pytest.raises(ModelError, match="Linear has no generate"):
        hasten.accelerate(torch.nn.Linear(2, 2))
    import transformers

    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(ModelError, match="encoder-decoder"):
        hasten.accelerate(transformers.T5ForConditionalGeneration(config))


def test_a_generate_that_does_not_hand_over_is_an_error(models):
    class Stubborn(type(build_model())):
        def generate(self, *arguments, custom_generate=None, **options):
            return super().generate(*arguments, **options)

    model = Stubborn(build_model().config).eval()
    hasten.accelerate(model)
    with pytest.raises(ModelError, match=r"does not use custom_generate.*restore"):
        model.generate(**SINGLE, max_new_tokens=4)


def test_restoring_brings_the_original_back():
    model = build_model()
    assert hasten.restore(model) is model
    before = model.generate
    assert hasten.accelerate(model) is model
    first = model.generate
    assert first.original == before
    hasten.accelerate(model, drafter="off", num_draft_tokens=3)
    assert model.generate is not first
    assert model.generate.original == before
    hasten.restore(model)
    assert model.generate == before
    assert "generate" not in vars(model)


def test_a_generate_of_the_object_itself_comes_back_too():
    model = build_model()
    calls = []
    inner = model.generate

    def own(*arguments, **options):
        calls.append(options)
        return inner(*arguments, **options)

    model.generate = own
    hasten.accelerate(hasten.accelerate(model))
    assert model.generate(**SINGLE, max_new_tokens=4).shape[1] == 16
    assert len(calls) == 1
    assert hasten.restore(model).generate is own


def test_a_copied_model_writes_with_its_own_weights():
    model = hasten.accelerate(build_model())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-1)
    assert torch.equal(
        twin.generate(**SINGLE, max_new_tokens=12, num_draft_tokens=8),
        twin.generate.original(**SINGLE, max_new_tokens=12),
    )
    assert not torch.equal(
        twin.generate(**SINGLE, max_new_tokens=12), model.generate(**SINGLE, max_new_tokens=12)
    )
    assert twin.generate.language_model.target.forward.model is twin


def test_a_model_may_change_its_dtype_afterwards():
    model = hasten.accelerate(build_model())
    model.generate(**SINGLE, max_new_tokens=4)
    model.double()
    assert torch.equal(
        model.generate(**SINGLE, max_new_tokens=30, num_draft_tokens=8),
        model.generate.original(**SINGLE, max_new_tokens=30),
    )
    assert model.generate.language_model.target.dtype == torch.float64


def test_single_calls_can_be_accelerated_without_changing_the_model():
    model = build_model()
    expected = model.generate(**BATCH, max_new_tokens=20, repetition_penalty=1.2, eos_token_id=22)
    options = {"max_new_tokens": 20, "repetition_penalty": 1.2, "eos_token_id": 22}
    found = model.generate(**BATCH, **options, custom_generate=hasten.custom_generate, num_draft_tokens=8)
    assert torch.equal(found, expected)
    assert "generate" not in vars(model)
    recorder = Recorder(Oracle([]))
    model.generate(**SINGLE, **options, custom_generate=hasten.custom_generate, drafter=recorder)
    assert len(recorder.begun) == 1
    with pytest.raises(hasten.ConfigError, match="num_beams"):
        model.generate(**SINGLE, num_beams=2, max_new_tokens=2, custom_generate=hasten.custom_generate)


def test_what_drafters_learn_is_kept_and_can_be_saved(tmp_path):
    model = hasten.accelerate(build_model(), drafter="suffix", num_draft_tokens=8)
    model.generate(**SINGLE, max_new_tokens=30)
    first = model.generate.stats[0].num_steps
    model.generate(**SINGLE, max_new_tokens=30)
    assert model.generate.stats[0].num_steps < first
    model.generate.language_model.save_store(tmp_path / "store")
    again = hasten.accelerate(build_model(), drafter="suffix", num_draft_tokens=8, store=tmp_path / "store")
    again.generate(**SINGLE, max_new_tokens=30)
    assert again.generate.stats[0].num_steps < first


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("value", ["static", "hybrid", "sliding_window", "dynamic", False])
def test_caches_that_change_no_text_are_replaced_by_our_own(models, monkeypatch, name, value):
    """As an argument, in a generation config, and as a checkpoint carries it."""
    model = models(name)
    plain = model.generate.original(**SINGLE, max_new_tokens=12)
    choice = {"use_cache": False} if value is False else {"cache_implementation": value}
    for call in (choice, {"generation_config": GenerationConfig(pad_token_id=0, **choice)}):
        assert torch.equal(model.generate(**SINGLE, max_new_tokens=12, **call), plain)
        assert model.generate.stats[0].num_tokens == 12
    for option, setting in choice.items():
        monkeypatch.setattr(model.generation_config, option, setting)
    assert torch.equal(model.generate(**SINGLE, max_new_tokens=12), plain)
    single = hasten.restore(copy.deepcopy(model))
    assert torch.equal(
        single.generate(**SINGLE, max_new_tokens=12, custom_generate=hasten.custom_generate), plain
    )


@pytest.mark.parametrize("form", [list, tuple, torch.tensor])
def test_end_tokens_in_any_form_end_as_in_generate(models, form):
    model = models()
    plain = model.generate.original(**SINGLE, max_new_tokens=12)[0, 12:].tolist()
    ends = form([plain[4], 96])
    found = model.generate(**SINGLE, max_new_tokens=12, eos_token_id=ends)
    assert torch.equal(found, model.generate.original(**SINGLE, max_new_tokens=12, eos_token_id=ends))
    assert found.shape[1] <= 12 + 5


def test_stop_strings_that_are_special_tokens_end_as_in_generate(demo):
    model, tokenizer = copy.deepcopy(demo.target.forward.model), demo.tokenizer
    prompt = tokenizer("User: Thank you, goodbye!\nAssistant:", return_tensors="pt")
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    options |= {"stop_strings": ["<|endoftext|>"], "tokenizer": tokenizer}
    theirs = model.generate(**prompt, **options)
    assert theirs[0, -1] == 0  # it stopped there
    ours = hasten.accelerate(model).generate(**prompt, **options)
    assert torch.equal(ours, theirs)
