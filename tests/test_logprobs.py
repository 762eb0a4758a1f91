"""Log-probabilities of written tokens: those of transformers, whatever is drafted; one for each token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adversaries import Oracle
from hasten.core import SamplingParams

PROMPTS = [[5, 6, 7, 8], [40, 5], [3, 60, 61, 62, 63, 3, 60]]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True, logprobs=3)
PENALISED = replace(GREEDY, repetition_penalty=1.5, logit_bias={9: 3.0})
SAMPLED = replace(PENALISED, temperature=1.2, top_k=30, seed=5)


def numbers(output):
    return np.array([[each.logprob, *each.top.values()] for each in output.logprobs])


def reference(lm, output, num_top=3):
    """Of transformers' own pass over the finished text."""
    text, start = [*output.prompt_ids, *output.token_ids], len(output.prompt_ids)
    with torch.inference_mode():
        logits = lm.target.forward.model(torch.tensor([text])).logits[0, start - 1 : -1].float()
    scores = torch.log_softmax(logits, -1)
    written = scores.gather(-1, torch.tensor(output.token_ids)[:, None])
    return torch.cat([written, scores.topk(num_top, -1).values], -1).numpy()


@pytest.mark.parametrize("params", [GREEDY, PENALISED, SAMPLED], ids=["greedy", "penalised", "sampled"])
@pytest.mark.parametrize("drafter", ["off", "auto", "draft"])
def test_they_are_those_of_transformers(models, drafter, params):
    lm = models()
    for output in lm.generate(PROMPTS, params, drafter=drafter, num_draft_tokens=8, batch_size=2):
        assert [each.token_id for each in output.logprobs] == output.token_ids
        assert np.allclose(numbers(output), reference(lm, output), atol=2e-5)
        for each in output.logprobs:
            assert each.top.get(each.token_id, each.logprob) == pytest.approx(each.logprob, abs=1e-6)
            assert list(each.top.values()) == sorted(each.top.values(), reverse=True)


def test_they_are_the_logits_that_generate_returns(models):
    lm = models()
    output = lm.generate(PROMPTS[0], PENALISED, drafter="auto", num_draft_tokens=8)
    theirs = lm.target.forward.model.generate(
        torch.tensor([PROMPTS[0]]),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=-1,
        pad_token_id=0,
        repetition_penalty=1.5,
        sequence_bias={(9,): 3.0},
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert theirs.sequences[0, 4:].tolist() == output.token_ids
    scores = torch.log_softmax(torch.cat(theirs.logits).float(), -1)
    expected = scores.gather(-1, torch.tensor(output.token_ids)[:, None])[:, 0]
    assert np.allclose([each.logprob for each in output.logprobs], expected, atol=2e-5)


@pytest.mark.parametrize("rule", ["traversal", "typical", "fastest"])
def test_rules_of_other_laws_tell_those_of_the_target(models, rule):
    lm = models()
    output = lm.generate(PROMPTS[0], SAMPLED, drafter="draft", verify=rule, num_draft_tokens=8)
    assert np.allclose(numbers(output), reference(lm, output), atol=2e-5)


def test_none_are_told_unasked_and_none_beside_the_written_ones(models):
    lm = models()
    assert lm.generate(PROMPTS[0], replace(GREEDY, logprobs=None)).logprobs is None
    alone = lm.generate(PROMPTS[0], replace(GREEDY, logprobs=0))
    assert {len(each.top) for each in alone.logprobs} == {0}
    everything = lm.generate(PROMPTS[0], replace(GREEDY, logprobs=10**6)).logprobs
    assert {len(each.top) for each in everything} == {lm.target.vocab_size}
    assert sum(np.exp(list(everything[3].top.values()))) == pytest.approx(1.0, abs=1e-5)


def test_tokens_behind_a_stop_leave_none(models, demo):
    lm = models()
    text = lm.generate(PROMPTS[0], GREEDY, drafter="off").token_ids
    params = replace(GREEDY, stop_token_ids=[text[7]])
    drafted = Oracle([*PROMPTS[0], *text], 9)  # drafts run on behind the stop
    output = lm.generate(PROMPTS[0], params, drafter=drafted, num_draft_tokens=12)
    assert [each.token_id for each in output.logprobs] == text[: text.index(text[7]) + 1]
    prompt = "User: Tell me a story about a cat.\nAssistant:"
    written = demo.generate(prompt, SamplingParams(max_new_tokens=40))
    stop = written.text[30:34]
    drafted = Oracle([*written.prompt_ids, *written.token_ids], 9)
    params = SamplingParams(max_new_tokens=40, logprobs=1, stop=stop)
    output = demo.generate(prompt, params, drafter=drafted, num_draft_tokens=12)
    assert output.text == written.text[: written.text.index(stop)]
    assert [each.token_id for each in output.logprobs] == output.token_ids
    assert len(output.token_ids) < len(written.token_ids)


def test_they_are_streamed_with_their_tokens(models):
    lm = models()
    pieces = list(lm.stream(PROMPTS[0], GREEDY, drafter="auto", num_draft_tokens=8))
    assert [piece.logprob.token_id for piece in pieces] == [piece.token_id for piece in pieces]
    assert [piece.logprob for piece in pieces] == pieces[-1].output.logprobs
    plain = lm.stream(PROMPTS[0], replace(GREEDY, logprobs=None))
    assert {piece.logprob for piece in plain} == {None}


def test_samples_have_their_own(models):
    lm = models()
    outputs = lm.generate([PROMPTS[0]], replace(SAMPLED, n=2), drafter="auto", num_draft_tokens=8)
    for output in outputs:
        assert np.allclose(numbers(output), reference(lm, output), atol=2e-5)
