"""generate and stream: samples, stops, limits, interrupts; one request never shows in another."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, strategies as st

import hasten
from adversaries import VOCAB, Adversary, Oracle, Recorder, random_tree
from conftest import build_model, shared_file
from hasten.core import SamplingParams
from hasten.drafters import DRAFTERS
from hasten.errors import ConfigError, GenerationInterrupted, ModelError
from hasten.models.causal_lm import CausalLM
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.engine import LanguageModel

PROMPTS = [[5, 6, 7, 8], [40], [3, 60, 61, 62, 63, 3, 60]]
PARAMS = SamplingParams(max_new_tokens=16, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=1.0, seed=7)


def ids(outputs):
    return [output.token_ids for output in outputs]


def test_one_prompt_gives_one_output_and_a_list_gives_a_list(models):
    lm = models()
    alone = lm.generate(PROMPTS[0], PARAMS)
    assert ids([alone]) == ids(lm.generate([PROMPTS[0]], PARAMS))
    assert alone.prompt_ids == PROMPTS[0]
    assert len(lm.generate(tuple(map(tuple, PROMPTS)), PARAMS)) == 3


def test_batches_of_any_size_write_the_same(models):
    lm = models()
    expected = ids(lm.generate(PROMPTS, SAMPLED, drafter="off"))
    for batch_size in (1, 2, 3, 99):
        found = lm.generate(PROMPTS, SAMPLED, drafter="auto", num_draft_tokens=8, batch_size=batch_size)
        assert ids(found) == expected


def sampled(n=1, seed=7):
    return SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=1.0, seed=seed, n=n)


def test_samples_differ_and_each_is_the_same_whatever_n_and_batch(models):
    lm = models()
    five = lm.generate([PROMPTS[0]], sampled(5), drafter="off")
    assert len({tuple(one) for one in ids(five)}) == 5
    assert ids(lm.generate([PROMPTS[0]], sampled(2), drafter="auto", num_draft_tokens=8)) == ids(five)[:2]
    both = lm.generate([PROMPTS[0], PROMPTS[1]], sampled(5), drafter="auto", num_draft_tokens=8, batch_size=4)
    assert ids(both)[:5] == ids(five)
    assert lm.generate(PROMPTS[0], sampled()).token_ids == five[0].token_ids


def test_another_seed_writes_another_text_and_a_drawn_seed_is_reported(models):
    lm = models()
    assert lm.generate(PROMPTS[0], sampled(seed=8)).token_ids != lm.generate(PROMPTS[0], sampled()).token_ids
    drawn = lm.generate(PROMPTS[0], sampled(seed=None))
    assert lm.generate(PROMPTS[0], sampled(seed=drawn.seed)).token_ids == drawn.token_ids
    assert lm.generate(PROMPTS[0], sampled(seed=None)).seed != drawn.seed


@pytest.mark.parametrize("drafter", [*sorted(DRAFTERS), "auto"])
def test_one_request_never_shows_in_the_text_of_another(models, drafter):
    fresh = ids(models().generate(PROMPTS, SAMPLED, drafter=drafter, num_draft_tokens=12))
    used = models()
    for seed in range(3):
        used.generate([PROMPTS[2], [seed, 9]], sampled(seed=seed), drafter=drafter, num_draft_tokens=12)
    assert ids(used.generate(PROMPTS, SAMPLED, drafter=drafter, num_draft_tokens=12)) == fresh


@pytest.mark.parametrize("name", ["llama", "lfm2-hybrid", "rwkv"])
def test_the_context_limit_ends_a_text(name):
    limit = {"context_length" if name == "rwkv" else "max_position_embeddings": 20}
    lm = LanguageModel(CausalLM(build_model(name, **limit)), drafter="off")
    if lm.target.max_length is None:
        pytest.skip("the config names no limit")
    params = SamplingParams(max_new_tokens=50, ignore_eos=True)
    plain = lm.generate(PROMPTS, params, drafter="off")
    assert [len(one.prompt_ids) + len(one.token_ids) for one in plain] == [20, 20, 20]
    assert {one.finish_reason for one in plain} == {"length"}
    for one in plain:
        oracle = Oracle([*one.prompt_ids, *one.token_ids, 4, 4, 4, 4], 5)
        assert lm.generate(one.prompt_ids, params, drafter=oracle).token_ids == one.token_ids
    assert ids(lm.generate(PROMPTS, params, drafter="auto", num_draft_tokens=30)) == ids(plain)


def test_a_draft_may_run_into_a_stop_token_at_every_place(models):
    lm = models()
    text = lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids
    for token in set(text):
        params = SamplingParams(max_new_tokens=16, ignore_eos=True, stop_token_ids=[token])
        found = lm.generate(PROMPTS[0], params, drafter=Oracle([*PROMPTS[0], *text], 6), num_draft_tokens=20)
        assert found.token_ids == text[: text.index(token) + 1]
        assert found.finish_reason == "stop"


def test_end_of_text_counts_unless_ignored(models):
    lm = models()
    text = lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids
    config = lm.target.forward.model.generation_config
    before, config.eos_token_id = config.eos_token_id, [text[4], VOCAB + 5]
    try:
        end = text.index(text[4]) + 1
        assert lm.generate(PROMPTS[0], SamplingParams(max_new_tokens=16)).token_ids == text[:end]
        assert lm.generate(PROMPTS[0], PARAMS).token_ids == text
    finally:
        config.eos_token_id = before


PROMPT = "User: Tell me a story about a cat.\nAssistant:"


def check_stop_strings(lm, prompt):
    plain = lm.generate(prompt, SamplingParams(max_new_tokens=40, ignore_eos=True), drafter="off")
    oracle = Oracle([*plain.prompt_ids, *plain.token_ids], 9)
    for start, size in itertools.product((5, 17, 40), (1, 4, 11)):
        stop = plain.text[start : start + size]
        params = SamplingParams(max_new_tokens=40, ignore_eos=True, stop=["no such text", stop])
        expected = lm.generate(prompt, params, drafter="off")
        assert expected.text == plain.text[: plain.text.index(stop)]
        assert expected.finish_reason == "stop"
        assert expected.token_ids == plain.token_ids[: len(expected.token_ids)]
        found = lm.generate(prompt, params, drafter=oracle, num_draft_tokens=30)
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        pieces = list(lm.stream(prompt, params, drafter=oracle, num_draft_tokens=30))
        assert "".join(piece.text for piece in pieces) == expected.text
        assert pieces[-1].output.token_ids == expected.token_ids


def test_stop_strings_inside_an_accepted_run_cut_exactly_there(demo):
    check_stop_strings(demo, PROMPT)


@pytest.mark.parametrize("name", ["stories260K", "TinyStories-656K"])
def test_stop_strings_are_exact_with_other_tokenizers(name):
    lm = hasten.load(
        shared_file("models", name), dtype="float32", device="cpu", drafter="off", forward="stock"
    )
    check_stop_strings(lm, "Once upon a time")


@pytest.mark.parametrize("params", [PARAMS, SAMPLED])
def test_a_stream_is_the_text_of_generate_token_by_token(models, params):
    lm = models()
    expected = lm.generate(PROMPTS[0], params, drafter="off")
    oracle = Oracle([*PROMPTS[0], *expected.token_ids], 3)
    pieces = list(lm.stream(PROMPTS[0], params, drafter=oracle, num_draft_tokens=20))
    assert [piece.token_id for piece in pieces] == expected.token_ids
    assert [piece.output is None for piece in pieces] == [True] * 15 + [False]
    assert pieces[-1].output.finish_reason == "length"
    assert [piece.source for piece in pieces[:4]] == ["draft"] * 3 + ["target"]


@settings(max_examples=10)
@given(prompt=st.text(min_size=1, max_size=20), seed=st.integers(0, 99))
def test_streamed_pieces_add_up_to_the_text(demo, prompt, seed):
    params = SamplingParams(max_new_tokens=12, temperature=2.5, seed=seed, ignore_eos=True, stop=["a ", "é"])
    expected = demo.generate(prompt, params, drafter="off")
    pieces = list(demo.stream(prompt, params, drafter="auto", num_draft_tokens=6))
    assert "".join(piece.text for piece in pieces) == expected.text == pieces[-1].output.text


def test_a_closed_stream_ends_the_request_and_the_next_one_works(models):
    lm = models()
    recorder = Recorder(Adversary(random_tree))
    stream = lm.stream(PROMPTS[0], PARAMS, drafter=recorder, num_draft_tokens=8)
    next(stream)
    stream.close()
    assert [sequence for sequence, _ in recorder.begun] == recorder.ended
    assert lm.generate(PROMPTS, PARAMS, drafter=recorder, num_draft_tokens=8)[0].finish_reason == "length"


def interrupt(monkeypatch, method, call):
    """Ctrl-C during the ``call``-th call of a session's method."""
    original, count = getattr(TreeSession, method), itertools.count(1)

    def interrupted(session, *arguments):
        if next(count) == call:
            raise KeyboardInterrupt
        return original(session, *arguments)

    monkeypatch.setattr(TreeSession, method, interrupted)


@pytest.mark.parametrize(("method", "call"), [("reading", 1), ("find", 1), ("find", 4), ("keep", 3)])
def test_an_interrupt_keeps_what_was_written(models, monkeypatch, method, call):
    lm = models()
    lm.target.probe  # noqa: B018 (probes use sessions too)
    expected = lm.generate(PROMPTS, PARAMS, drafter="off")
    recorder = Recorder(Adversary(random_tree))
    with monkeypatch.context() as patch:
        interrupt(patch, method, call)
        with pytest.raises(GenerationInterrupted, match="interrupted") as caught:
            lm.generate(PROMPTS, PARAMS, drafter=recorder, num_draft_tokens=8)
    assert [one.prompt_ids for one in caught.value.outputs] == PROMPTS
    for part, whole in zip(caught.value.outputs, expected, strict=True):
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]
        assert len(part.token_ids) >= call - 1
        assert part.finish_reason == "interrupted"
    assert [sequence for sequence, _ in recorder.begun] == recorder.ended
    assert ids(lm.generate(PROMPTS, PARAMS, drafter=recorder, num_draft_tokens=8)) == ids(expected)


def test_finished_texts_of_an_interrupted_call_say_so(models, monkeypatch):
    lm = models()
    lm.generate(PROMPTS[0], PARAMS)
    with monkeypatch.context() as patch:
        interrupt(patch, "find", 20)
        with pytest.raises(GenerationInterrupted) as caught:
            lm.generate(PROMPTS, PARAMS, batch_size=1, drafter="off")
    assert [one.finish_reason for one in caught.value.outputs] == ["length", "interrupted", "interrupted"]


def test_the_text_of_an_interrupted_request_is_that_of_its_tokens(demo, monkeypatch):
    """Even where stop strings were watched, and the interrupt came after verifying but before committing."""
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, stop="no such text")
    plain = demo.generate(PROMPT, params, drafter="off")
    with monkeypatch.context() as patch:
        interrupt(patch, "keep", 3)
        with pytest.raises(GenerationInterrupted) as caught:
            demo.generate(
                PROMPT, params, drafter=Oracle([*plain.prompt_ids, *plain.token_ids], 3), num_draft_tokens=9
            )
    [output] = caught.value.outputs
    assert len(output.token_ids) == 8
    assert output.text == demo.tokenizer.decode(output.token_ids)


def test_an_error_in_the_middle_ends_the_drafters_sequences(models, monkeypatch):
    lm = models()
    recorder = Recorder(Adversary(random_tree))
    monkeypatch.setattr(
        TreeSession, "find", lambda session, *asked: (_ for _ in ()).throw(ModelError("broken"))
    )
    with pytest.raises(ModelError, match="broken"):
        lm.generate(PROMPTS, PARAMS, drafter=recorder)
    assert [sequence for sequence, _ in recorder.begun] == recorder.ended


def test_drafters_are_kept_by_name(models):
    lm = models()
    assert lm.drafter("suffix") is lm.drafter("suffix")
    assert lm.drafter() is lm.drafter("off")
    mine = Adversary(random_tree)
    assert lm.drafter(mine) is mine


def test_many_samples_cannot_be_streamed(models):
    with pytest.raises(ConfigError, match="n=3"):
        models().stream(PROMPTS[0], SamplingParams(n=3))


def test_costs_can_be_measured(models):
    costs = models().target.measure_cost(rows=(1, 4), context=20, repeats=2)
    assert set(costs) == {1, 4}
    assert min(costs.values()) > 0


def test_every_prompt_may_have_params_of_its_own(models):
    lm = models()
    each = [PARAMS, SAMPLED, SamplingParams(max_new_tokens=5, temperature=0.7, top_k=9, seed=3, n=2)]
    found = lm.generate(PROMPTS, each, drafter="auto", num_draft_tokens=6)
    alone = [lm.generate([prompt], own, drafter="off") for prompt, own in zip(PROMPTS, each, strict=True)]
    assert ids(found) == [token_ids for of_one in alone for token_ids in ids(of_one)]
    with pytest.raises(ConfigError, match="holds 1 SamplingParams for 3 prompts"):
        lm.generate(PROMPTS, [PARAMS])
