"""Whatever goes wrong is one of hasten's errors, names the value and says what to do."""

from __future__ import annotations

import pytest
import torch

import hasten
from adversaries import VOCAB, Adversary
from conftest import build_model
from hasten.core import SamplingParams
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.causal_lm import CausalLM
from hasten.policies import FixedPolicy
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree


def test_an_empty_prompt_is_refused(models, demo):
    with pytest.raises(PromptError, match="prompt is empty"):
        demo.generate("")
    with pytest.raises(PromptError, match="no tokens"):
        models().generate([[], [4]])
    with pytest.raises(PromptError, match="no prompts"):
        models().generate([])


def test_one_bad_prompt_of_a_batch_stops_before_anything_is_written(models):
    steps = []
    with pytest.raises(PromptError):
        models().generate([[4, 5], [VOCAB]], trace=steps.append)
    assert steps == []


def test_a_prompt_longer_than_the_context_names_both_lengths(models):
    with pytest.raises(PromptError, match=r"300 tokens.*256.*shorten"):
        models().generate([5] * 300)
    with pytest.raises(PromptError, match=r"256 tokens"):
        models().generate([5] * 256)
    assert len(models().generate([5] * 255, SamplingParams(max_new_tokens=9)).token_ids) == 1


@pytest.mark.parametrize("token_id", [-1, VOCAB, 10**12])
def test_a_token_outside_the_vocabulary_is_named(models, token_id):
    with pytest.raises(PromptError, match=rf"token id {token_id} .*{VOCAB}"):
        models().generate([4, token_id])


@pytest.mark.parametrize("token_id", [1.5, "a", None])
def test_a_token_that_is_not_an_integer_is_refused(models, token_id):
    with pytest.raises(PromptError, match="token ids"):
        models().generate([4, token_id])


def test_text_without_a_tokenizer_says_what_to_give(models):
    with pytest.raises(PromptError, match=r"token ids, or tokenizer="):
        models().generate("hello")
    with pytest.raises(ConfigError, match=r"stop_token_ids"):
        models().generate([4], SamplingParams(stop="x"))


@pytest.mark.parametrize("name", ["ngram", "", "auto+suffix", "suffix+suffix", "Off"])
def test_an_unknown_drafter_names_the_choices(models, name):
    with pytest.raises(ConfigError, match=r"auto, off, .*token-recycling") as caught:
        models().generate([4], drafter=name)
    assert f"drafter={name!r}" in str(caught.value)


def test_an_unknown_default_drafter_fails_when_loading():
    with pytest.raises(ConfigError, match="drafter='ngram'"):
        hasten.load(build_model(), drafter="ngram")


WRONG_PARAMS = {
    "max_new_tokens": 0,
    "temperature": -0.1,
    "top_k": 0,
    "top_p": 0.0,
    "min_p": 1.5,
    "seed": -1,
    "n": 0,
    "stop": "",
}


@pytest.mark.parametrize("name", WRONG_PARAMS)
def test_a_value_that_cannot_work_is_named_with_its_remedy(name):
    with pytest.raises(ConfigError, match=rf"{name}=.*cannot work; it must be"):
        SamplingParams(**{name: WRONG_PARAMS[name]})


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p"])
def test_nan_cannot_work(name):
    with pytest.raises(ConfigError, match=rf"{name}=nan"):
        SamplingParams(**{name: float("nan")})


def test_an_infinite_temperature_cannot_work():
    with pytest.raises(ConfigError, match="temperature=inf"):
        SamplingParams(temperature=float("inf"))


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="top_q"):
        SamplingParams(top_q=1)


def test_sizes_that_cannot_work_are_refused(models):
    with pytest.raises(ConfigError, match="batch_size=0"):
        models().generate([4], batch_size=0)
    for size in (-1, 5000):
        with pytest.raises(ConfigError, match=f"num_draft_tokens={size}"):
            models().generate([4], num_draft_tokens=size)
        with pytest.raises(ConfigError, match=f"num_draft_tokens={size}"):
            FixedPolicy(size)


def nan_model(name, after=0):
    """A model whose logits are NaN from the position ``after`` on."""
    model = build_model(name)
    head = model.get_output_embeddings()

    def poison(module, arguments, output):
        poison.calls += 1
        return output if poison.calls <= after else torch.full_like(output, torch.nan)

    poison.calls = 0
    head.register_forward_hook(poison)
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["off", "auto"])
@pytest.mark.parametrize("name", ["llama", "lfm2-hybrid"])
def test_nan_logits_are_an_error_and_not_a_text(name, drafter, temperature):
    lm = LanguageModel(CausalLM(nan_model(name)), drafter="off")
    params = SamplingParams(max_new_tokens=5, temperature=temperature, seed=1)
    with pytest.raises(ModelError, match=r"position 2 is nan.*float32"):
        lm.generate([4, 5], params, drafter=drafter, num_draft_tokens=8)


def test_nan_in_the_middle_of_a_text_is_an_error_too():
    target = CausalLM(nan_model("llama", after=6), mode="tree")
    steps = []
    with pytest.raises(ModelError, match="position"):
        LanguageModel(target, drafter="off").generate([4, 5], trace=steps.append)
    assert len(steps) == 5  # and one pass over the prompt


def test_weights_that_are_nan_are_found():
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match="check its weights"):
        LanguageModel(CausalLM(model), drafter="off").generate([4, 5])


def test_a_drafter_that_gives_no_tree_is_named_as_the_fault(models):
    broken = Adversary(lambda *_: DraftTree([4, 5], [1, 0]))
    with pytest.raises(ConfigError, match=r"not a tree: parents \[1, 0\]"):
        models().generate([4, 5], drafter=broken)
