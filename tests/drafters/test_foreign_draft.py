"""A draft model of another tokenizer writes the text of plain decoding, and is sometimes right."""

from __future__ import annotations

import pytest

from conftest import build_model
from hasten.core import SamplingParams
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.text.engine import LanguageModel
from hasten.training.tokenizer import train_tokenizer

TEXT = "the old mill by the stream, the miller and the mill's wheel, thirty-three wheels. "
PROMPTS = ["the old mill", "a stream of dreams", "zebra é", "the wheel by the"]


@pytest.fixture(scope="module")
def pair():
    ours, theirs = train_tokenizer([TEXT * 3], 280), train_tokenizer(["a stream of dreams, " + TEXT], 290)
    target = CausalLM(build_model(vocab_size=len(ours)))
    draft = load_draft(
        build_model(vocab_size=len(theirs)), target=target, target_tokenizer=ours, tokenizer=theirs
    )
    assert draft.num_proposable < min(len(ours), len(theirs))
    return LanguageModel(target, ours, drafter="off", draft=draft)


@pytest.mark.parametrize("drafter", ["draft", "draft-eagle", "draft-rsd-s", "draft-spectr+suffix", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_that_of_plain_decoding(pair, drafter, temperature):
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=temperature, seed=3)
    plain = pair.generate(PROMPTS, params, drafter="off")
    found = pair.generate(PROMPTS, params, drafter=drafter, num_draft_tokens=8)
    assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    assert sum(each.stats.num_draft_tokens + each.stats.resting_steps.total() for each in found) > 0


@pytest.mark.parametrize("rule", ["residual", "traversal", "block", "k-sequential", "fastest"])
def test_rules_that_weigh_laws_get_laws_over_the_shared_tokens(pair, rule):
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0.9, seed=3)
    outputs = pair.generate(PROMPTS, params, drafter="draft-rsd-s", num_draft_tokens=8, verify=rule)
    assert all(len(each.token_ids) == 12 for each in outputs)
    assert sum(each.stats.num_draft_tokens for each in outputs) > 0
    again = pair.generate(PROMPTS, params, drafter="draft-rsd-s", num_draft_tokens=8, verify=rule)
    assert [each.token_ids for each in again] == [each.token_ids for each in outputs]
