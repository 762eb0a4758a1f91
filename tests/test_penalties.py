"""Penalties, biases, early ends: texts of transformers' `generate`, and of plain decoding for any draft."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from adversaries import Oracle
from hasten.core import SamplingParams
from hasten.errors import ConfigError
from hasten.penalties import CountPenalties, asked_processors, in_order
from hasten.sampling import Sampler, warp

PROMPTS = [[5, 6, 7, 8], [40, 5], [3, 60, 61, 62, 63, 3, 60]]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.9, seed=11)

SAME_AS_TRANSFORMERS = {
    "repetition": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "bias": (
        {"logit_bias": {5: 4.0, 60: -2.5, 7: -torch.inf}},
        {"sequence_bias": {(5,): 4.0, (60,): -2.5, (7,): -torch.inf}},
    ),
    "all": (
        {"repetition_penalty": 0.8, "logit_bias": {9: 3.0}},
        {"repetition_penalty": 0.8, "sequence_bias": {(9,): 3.0}},
    ),
}
ALL = {
    "repetition": {"repetition_penalty": 1.7},
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 2.0},
    "bias": {"logit_bias": {5: 4.0, 7: -torch.inf}},
    "all": {
        "repetition_penalty": 1.2,
        "frequency_penalty": -0.5,
        "presence_penalty": 1.0,
        "logit_bias": {9: 2.0},
    },
    "typical": {"typical_p": 0.4},
    "typical and top_k": {"typical_p": 0.5, "top_k": 20, "min_p": 0.01},
}


def ids(outputs):
    return [output.token_ids for output in outputs]


def generated(lm, prompt, **options):
    """The text of transformers' own `generate`."""
    model = lm.target.forward.model
    found = model.generate(torch.tensor([prompt]), do_sample=False, pad_token_id=0, **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", SAME_AS_TRANSFORMERS)
def test_texts_are_those_of_transformers(models, case):
    lm = models()
    ours, theirs = SAME_AS_TRANSFORMERS[case]
    params = replace(GREEDY, **ours)
    found = lm.generate(PROMPTS, params, drafter="auto", num_draft_tokens=8, batch_size=2)
    expected = [generated(lm, prompt, max_new_tokens=24, eos_token_id=-1, **theirs) for prompt in PROMPTS]
    assert ids(found) == expected
    assert ids(found) != ids(lm.generate(PROMPTS, GREEDY))


@pytest.mark.parametrize("min_tokens", [1, 9, 24])
def test_no_end_comes_early_as_in_transformers(models, min_tokens):
    lm = models()
    text = lm.generate(PROMPTS[0], GREEDY).token_ids
    ends = [text[2], text[6]]
    bias = dict.fromkeys(ends, 3.0)  # so that they would come early
    params = replace(GREEDY, stop_token_ids=ends, min_tokens=min_tokens, logit_bias=bias)
    theirs = {"min_new_tokens": min_tokens, "sequence_bias": {(end,): 3.0 for end in ends}}
    expected = generated(lm, PROMPTS[0], max_new_tokens=24, eos_token_id=ends, **theirs)
    drafted = Oracle([*PROMPTS[0], *expected], 6)
    for drafter in ("off", "auto", drafted):
        found = lm.generate(PROMPTS[0], params, drafter=drafter, num_draft_tokens=8).token_ids
        assert found == expected
    assert len(expected) >= min_tokens
    assert not set(expected[:min_tokens]) & set(ends)
    config = lm.target.forward.model.generation_config
    before, config.eos_token_id = config.eos_token_id, ends
    try:
        own_ends = replace(params, ignore_eos=False, stop_token_ids=())
        assert lm.generate(PROMPTS[0], own_ends).token_ids == expected
        ignored = replace(params, stop_token_ids=(), logit_bias={})
        assert lm.generate(PROMPTS[0], ignored).token_ids == text  # and its ends are written
    finally:
        config.eos_token_id = before


def counted(lm, prompt, params):
    """From the definitions of all of it: one pass a token, a loop over the vocabulary."""
    model, text = lm.target.forward.model, list(prompt)
    sampler = Sampler(SamplingParams(temperature=params.temperature), seed=params.seed or 0)
    for _ in range(params.max_new_tokens):
        logits = model(torch.tensor([text])).logits[0, -1].float()
        written = Counter(text[len(prompt) :])
        for token_id in range(len(logits)):
            value = logits[token_id] + params.logit_bias.get(token_id, 0.0)
            if token_id in text:
                penalty = params.repetition_penalty
                value = value / penalty if value > 0 else value * penalty
            value = value - params.frequency_penalty * written[token_id]
            logits[token_id] = value - params.presence_penalty * (token_id in written)
        text.append(int(sampler.noisy(logits, len(text)).argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", ["frequency", "presence", "all"])
@torch.inference_mode()
def test_counting_penalties_from_their_definition(models, case, params):
    lm = models()
    params = replace(params, **ALL[case])
    for prompt in PROMPTS[:2]:
        found = lm.generate(prompt, params, drafter="auto", num_draft_tokens=8)
        assert found.token_ids == counted(lm, prompt, params)


@pytest.mark.parametrize("case", ALL)
def test_drafts_change_no_text(models, case):
    lm = models()
    params = replace(SAMPLED, **ALL[case])
    plain = ids(lm.generate(PROMPTS, params, drafter="off", batch_size=1))
    assert plain != ids(lm.generate(PROMPTS, SAMPLED, drafter="off"))
    assert ids(lm.generate(PROMPTS, params, drafter="auto", num_draft_tokens=12, batch_size=3)) == plain
    oracle = Oracle([*PROMPTS[0], *plain[0]], 5)
    assert lm.generate(PROMPTS[0], params, drafter=oracle, num_draft_tokens=20).token_ids == plain[0]
    if case == "all":
        greedy = replace(params, temperature=0.0)
        expected = ids(lm.generate(PROMPTS, greedy, drafter="off"))
        for rule in ("traversal", "block", "fastest"):  # they ask for laws along texts that are never written
            found = lm.generate(PROMPTS, greedy, drafter="draft", verify=rule, num_draft_tokens=6)
            assert ids(found) == expected


def test_typical_sampling_cuts_as_transformers_does():
    from transformers import TypicalLogitsWarper

    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 97)
    logits[20:] = (2 * logits[20:]).round() / 2  # many are equal, also at the edge
    logits[:, 5] = -torch.inf
    for mass in (0.05, 0.5, 0.9, 0.999):
        expected = TypicalLogitsWarper(mass)(None, logits / 0.7)
        assert torch.equal(warp(logits, SamplingParams(temperature=0.7, typical_p=mass)), expected)
    assert Sampler(SamplingParams(temperature=1.0, typical_p=0.5)).foresee(torch.arange(1).numpy()) is None


def test_the_order_is_that_of_transformers_and_vllm(models):
    params = SamplingParams(
        logit_bias={1: 1.0},
        repetition_penalty=2.0,
        presence_penalty=1.0,
        min_tokens=2,
        logits_processors=[max],
    )
    asked = asked_processors(params, 3, {4}, torch.device("cpu"))
    names = [type(each).__name__ for each in asked]
    assert names == [
        "SequenceBiasLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "CountPenalties",
        "MinNewTokensLengthLogitsProcessor",
    ]
    [bias] = asked_processors(SamplingParams(logit_bias={2: 1.0}), 3, {}, torch.device("cpu"))
    assert in_order(asked, [min, bias], [max]) == [bias, *asked, min, max]


def test_the_order_in_numbers():
    """Bias before the repetition penalty, which comes before what is taken off."""
    params = SamplingParams(logit_bias={1: -3.0}, repetition_penalty=2.0, frequency_penalty=0.5)
    scores, ids = torch.tensor([[1.0, 2.0, 4.0, 0.0]]), torch.tensor([[0, 1, 2, 2, 1]])
    for process in asked_processors(params, 2, {}, torch.device("cpu")):
        scores = process(ids, scores)
    assert scores.tolist() == [[0.5, -1.0 * 2 - 0.5, 2.0 - 1.0, 0.0]]


def test_counting_changes_nothing_of_its_caller():
    scores = torch.zeros(1, 4)
    CountPenalties(1.0, 1.0, 0)(torch.tensor([[1, 1]]), scores)
    assert not scores.any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("frequency_penalty", 2.1),
        ("presence_penalty", "high"),
        ("logit_bias", {3: float("inf")}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"3": 1.0}),
        ("logit_bias", [3, 4]),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("typical_p", 0.0),
        ("logprobs", -1),
        ("logprobs", True),
    ],
)
def test_values_that_cannot_work_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}=.*must be"):
        SamplingParams(**{name: value})


def test_a_bias_outside_the_vocabulary_is_named(models):
    with pytest.raises(ConfigError, match=r"logit_bias=\[3, 5000\] cannot work: 5000 is outside"):
        models().generate(PROMPTS[0], SamplingParams(logit_bias={3: 1.0, 5000: 2.0}))


def test_a_sampler_of_its_own_does_not_drop_penalties():
    with pytest.raises(ConfigError, match="penalties count from the end of the prompt"):
        Sampler(SamplingParams(presence_penalty=1.0))
