"""What a checkpoint's generation_config demands of every text is done; what it suggests is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import SuppressTokensLogitsProcessor

from conftest import build_model
from hasten.core import SamplingParams
from hasten.models.causal_lm import CausalLM
from hasten.models.generation_settings import DEMANDED
from hasten.text.engine import LanguageModel

PROMPT = [5, 6, 7, 8]
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


def loaded(**settings):
    model = build_model()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return LanguageModel(CausalLM(model, mode="tree"), drafter="off"), model


def of_generate(model, prompt, count):
    input_ids = torch.tensor([prompt])
    written = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return written[0, len(prompt) :].tolist()


PLAIN = loaded()[0].generate(PROMPT, PARAMS).token_ids
SETTINGS = {
    "suppress_tokens": [PLAIN[1], PLAIN[3]],
    "begin_suppress_tokens": [PLAIN[0]],
    "bad_words_ids": [[PLAIN[0], PLAIN[1]]],
    "sequence_bias": [[[PLAIN[2]], -1000.0]],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 7,
}


@pytest.mark.parametrize("name", DEMANDED)
def test_demands_are_those_of_transformers(name):
    lm, model = loaded(**{name: SETTINGS[name]})
    for prompt in (PROMPT, [40]):
        expected = of_generate(model, prompt, 12)
        for drafter in ("off", "suffix"):
            found = lm.generate([prompt, prompt], PARAMS, drafter=drafter, num_draft_tokens=6)
            assert [one.token_ids for one in found] == [expected] * 2
    if name != "forced_bos_token_id":  # which is for a prompt of one token
        assert of_generate(model, PROMPT, 12) != PLAIN


def test_a_processor_of_the_caller_replaces_that_of_its_type():
    lm, _ = loaded(suppress_tokens=[PLAIN[1]])
    own = SuppressTokensLogitsProcessor([PLAIN[2]], device="cpu")
    found = lm.generate(PROMPT, SamplingParams(max_new_tokens=12, ignore_eos=True, logits_processors=own))
    assert found.token_ids[:2] == PLAIN[:2]
    assert PLAIN[2] not in found.token_ids


@pytest.mark.parametrize("setting", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
def test_suggestions_that_change_greedy_texts_are_told_once(setting):
    lm, _ = loaded(**setting)
    [name] = setting
    with pytest.warns(UserWarning, match=rf"suggests {name}=.*does not apply") as told:
        assert lm.generate([PROMPT, PROMPT], PARAMS)[0].token_ids == PLAIN
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.generate(PROMPT, PARAMS)


def test_suggestions_of_how_to_sample_are_not_told():
    lm, _ = loaded(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, max_length=20)
    assert lm.generate(PROMPT, PARAMS).token_ids == PLAIN
