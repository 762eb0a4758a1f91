"""What earlier texts cached serves later ones: they read only what is new, and the texts stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hasten
from adversaries import VOCAB
from conftest import build_model
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.choose import prepare
from hasten.models.sessions.prefix_cache import PrefixCache
from hasten.text.engine import LanguageModel

SIZE = 2**24
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0.9, seed=5)


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def conversation(lm, params, turns=4, **options):
    """Every turn goes on from all that was said; (texts, tokens read)."""
    text, texts, read = prompt(20), [], []
    for turn in range(turns):
        out = lm.generate(text, params, **options)
        texts.append(out.token_ids)
        read.append(len(text) - 1 - out.stats.num_known_tokens)
        text = [*text, *out.token_ids, *prompt(7, 9 + turn)]
    return texts, read


@pytest.mark.parametrize("params", [PARAMS, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("name", "forward", "dtype"),
    [
        ("llama", "stock", torch.float32),
        ("gemma3", "stock", torch.float32),
        ("gemma3", "compiled", torch.bfloat16),
        ("llama", "compiled", torch.float32),
    ],
)
@pytest.mark.parametrize("drafter", ["off", "auto"])
def test_a_turn_reads_only_what_is_new(name, forward, dtype, drafter, params):
    model = build_model(name, dtype)
    target = CausalLM(model, forward=prepare(model, forward).forward)
    expected, whole = conversation(LanguageModel(target, drafter=drafter), params)
    found, read = conversation(LanguageModel(target, drafter=drafter, prefix_cache=SIZE), params)
    assert found == expected
    assert whole == [19, 38, 57, 76]
    assert read == [19, 7, 7, 7]  # the last token that was written, and the new ones but the last


def test_texts_of_one_batch_and_of_a_common_beginning(models):
    plain = models()
    lm = LanguageModel(plain.target, drafter="off", prefix_cache=SIZE)
    system = prompt(30)
    prompts = [[*system, *prompt(length, length)] for length in (3, 9, 1, 5)]
    for _ in range(2):
        texts = [out.token_ids for out in lm.generate(prompts, PARAMS, batch_size=2)]
        assert texts == [out.token_ids for out in plain.generate(prompts, PARAMS, drafter="off")]
    known = [out.stats.num_known_tokens for out in lm.generate([[*system, 5], system], PARAMS)]
    assert known == [30, 29]


def test_this_must_fail_keys_of_another_text(models, monkeypatch):
    lm = LanguageModel(models().target, drafter="off", prefix_cache=SIZE)
    expected = lm.generate(prompt(40), PARAMS).token_ids
    find = PrefixCache.find

    def mixed_up(cache, token_ids):
        found = find(cache, token_ids)
        return found._replace(layers=[pair and (pair[0], pair[1].flip(1)) for pair in found.layers])

    monkeypatch.setattr(PrefixCache, "find", mixed_up)
    assert lm.generate(prompt(40), PARAMS).token_ids != expected


def test_what_is_forgotten_is_read_again(models):
    lm = LanguageModel(models().target, prefix_cache=SIZE)
    assert lm.generate(prompt(40), PARAMS).stats.num_known_tokens == 0
    assert lm.generate(prompt(40), PARAMS).stats.num_known_tokens == 39
    lm.forget()
    assert lm.generate(prompt(40), PARAMS).stats.num_known_tokens == 0


def test_models_that_somebody_else_may_change_keep_nothing():
    model = build_model("llama")
    assert hasten.load(model)._prefixes is None
    hasten.accelerate(model)
    text = torch.tensor([prompt(40)])
    before = model.generate(text, max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.mul_(-3)
    changed = model.generate(text, max_new_tokens=8, do_sample=False)
    assert torch.equal(changed, model.generate(text, max_new_tokens=8, do_sample=False, drafter="off"))
    assert not torch.equal(changed, before)


def test_16_bits_reuse_prefixes_where_that_changes_no_logit():
    stock = CausalLM(build_model("llama", torch.bfloat16))
    assert stock.keeps_prefixes == "rounded"
    assert LanguageModel(stock, prefix_cache="auto")._prefixes is None
    assert LanguageModel(stock, prefix_cache=SIZE)._prefixes.max_bytes == SIZE
    assert LanguageModel(CausalLM(build_model("llama")), prefix_cache="auto")._prefixes is not None


@pytest.mark.parametrize("value", [-1, 1.5, "lots", None])
def test_values_that_cannot_work_are_refused(models, value):
    with pytest.raises(ConfigError, match="prefix_cache"):
        LanguageModel(models().target, prefix_cache=value)


def test_a_model_without_a_cache_by_tokens_refuses_a_size_and_does_without():
    target = CausalLM(build_model("mamba-recurrent"))
    assert LanguageModel(target, prefix_cache="auto").generate(prompt(5), PARAMS).token_ids
    with pytest.raises(ConfigError, match="taken apart"):
        LanguageModel(target, prefix_cache=SIZE).generate(prompt(5), PARAMS)
