"""After `hasten.accelerate`, `model.generate` takes the same arguments and gives the same tensors."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)

import hasten
from accelerated import (
    BATCH,
    MASKED,
    PROMPTS,
    SINGLE,
    SOME,
    Counts,
    EndsAfter,
    Favours,
    Pieces,
    accelerated,
    allowed_after,
    check,
    ends_early,
    padded,
    texts_of,
)
from adversaries import ADVERSARIES, Adversary, Oracle, Recorder
from conftest import ARCHITECTURES, VOCAB, build_model


@pytest.fixture(scope="module")
def models():
    """models(name) -> an accelerated model."""
    return accelerated


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_single_text_is_that_of_generate(models, name):
    check(models(name), SINGLE)


@pytest.mark.parametrize("name", MASKED)
def test_a_batch_padded_on_the_left_is_that_of_generate(models, name):
    check(models(name), BATCH)


@pytest.mark.parametrize("name", MASKED)
def test_rows_end_at_eos_tokens_and_are_padded(models, name):
    expected = check(models(name), BATCH)
    ends = [int(expected[0, -12]), int(expected[2, -3])]
    assert ends_early(BATCH, check(models(name), BATCH, eos_token_id=ends))
    check(models(name), BATCH, eos_token_id=ends, min_new_tokens=11)
    check(models(name), BATCH, eos_token_id=ends, min_length=len(PROMPTS[0]) + 11)
    check(models(name), SINGLE, eos_token_id=ends[0])


@pytest.mark.parametrize("name", MASKED)
def test_logits_processors_see_what_generate_shows_them(models, name):
    model = models(name)
    check(model, BATCH, repetition_penalty=1.8)
    check(model, BATCH, no_repeat_ngram_size=2)
    liked = int(check(model, BATCH)[1, BATCH["input_ids"].shape[1]])  # what row 1 would write first
    padding = BATCH["input_ids"].where(BATCH["attention_mask"] == 1, liked)
    check(model, BATCH | {"input_ids": padding}, repetition_penalty=1.8)
    check(model, BATCH, prefix_allowed_tokens_fn=allowed_after)
    check(model, SINGLE, repetition_penalty=1.8, no_repeat_ngram_size=2)


@pytest.mark.parametrize("name", MASKED)
def test_a_criterion_of_ones_own_fires_in_the_middle(models, name):
    model = models(name)
    for inputs in (BATCH, SINGLE):
        criteria = StoppingCriteriaList([EndsAfter(inputs["input_ids"].shape[1])])
        written = check(model, inputs, stopping_criteria=criteria, eos_token_id=VOCAB - 1)
        assert ends_early(inputs, written)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3-next-hybrid"])
def test_scores_and_logits_are_those_of_generate(models, name):
    model = models(name)
    for inputs in (BATCH, SINGLE):
        keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        expected = check(model, inputs, repetition_penalty=1.3, **keep)
        found = model.generate(
            **inputs, max_new_tokens=20, repetition_penalty=1.3, **keep, num_draft_tokens=8
        )
        assert type(found) is type(expected)
        for kind in ("scores", "logits"):
            assert len(found[kind]) == len(expected[kind]) == 20
            for ours, theirs in zip(found[kind], expected[kind], strict=True):
                assert ours.dtype == torch.float32
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        assert found.past_key_values is None
        assert found.attentions is found.hidden_states is None
        torch.testing.assert_close(
            model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True),
            model.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True),
            atol=2e-5,
            rtol=1e-4,
        )


def test_scores_of_ended_rows_are_certain_of_the_pad_token(models):
    model = models()
    plain = check(model, BATCH)
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    eos = int(plain[0, -16])
    expected = check(model, BATCH, eos_token_id=eos, **keep)
    found = model.generate(**BATCH, max_new_tokens=20, eos_token_id=eos, **keep)
    assert len(found.scores) == len(found.logits) == len(expected.scores)
    ended = found.sequences[:, BATCH["input_ids"].shape[1] :] == 0
    assert ended.any()
    for position, (scores, logits) in enumerate(zip(found.scores, found.logits, strict=True)):
        rows = ended[:, position]
        torch.testing.assert_close(scores[~rows], expected.scores[position][~rows], atol=2e-5, rtol=1e-4)
        assert (scores[rows, 0] == 0).all()
        assert (logits[rows, 1:] == -torch.inf).all()
    transitions = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert (transitions[ended] == 0).all()
    assert (transitions[~ended] < 0).all()


OPTIONS = {
    "max_length": {"max_length": 30, "max_new_tokens": None},
    "penalty over the prompt": {"encoder_repetition_penalty": 0.5},
    "no n-grams of the prompt": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[28], [79, 22], [22]]},
    "suppressed": {"suppress_tokens": [22, 28, 10], "begin_suppress_tokens": [43]},
    "bias": {"sequence_bias": {(28, 79): -9.0, (36,): 3.0}},
    "forced end": {"forced_eos_token_id": 7, "eos_token_id": 7},
    "another padding": {"pad_token_id": 33, "eos_token_id": [22, 28, 10]},
    "decay": {"exponential_decay_length_penalty": (4, 1.6), "eos_token_id": 22},
    "renormalised": {"renormalize_logits": True, "remove_invalid_values": True},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
    "certain": {"do_sample": True, "top_k": 1},
    "certain by mass": {"do_sample": True, "top_p": 1e-6, "temperature": 0.7, "top_k": 0},
    "certain by the rest": {"do_sample": True, "min_p": 1.0},
    "typical": {"do_sample": True, "typical_p": 1e-6, "temperature": 0.01},
    "epsilon": {"do_sample": True, "epsilon_cutoff": 0.999},
    "eta": {"do_sample": True, "eta_cutoff": 0.999, "temperature": 1e-3},
    "samples": {"do_sample": True, "top_k": 1, "num_return_sequences": 3},
    "allowed by a processor": {
        "logits_processor": LogitsProcessorList([PrefixConstrainedLogitsProcessor(allowed_after, 1)])
    },
    "own instances": {
        "logits_processor": LogitsProcessorList(
            [NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=3)]
        )
    },
    "a state for every row": {"logits_processor": LogitsProcessorList([Counts()])},
    "a choice for every row": {"logits_processor": LogitsProcessorList([Favours()])},
    "all together": {
        "prefix_allowed_tokens_fn": allowed_after,
        "repetition_penalty": 1.2,
        "logits_processor": LogitsProcessorList([Counts(), Favours()]),
        "stopping_criteria": StoppingCriteriaList([EndsAfter(3)]),
        "eos_token_id": [7, 11],
        "min_new_tokens": 4,
    },
}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_means_what_it_means_to_generate(models, name, option):
    for inputs in (SINGLE, BATCH):
        if option == "no n-grams of the prompt" and inputs is BATCH and name == "mpt-alibi":
            continue  # the padding, seen as an n-gram, would be all that is tested
        check(models(name), inputs, **OPTIONS[option])


@pytest.mark.parametrize("inputs", [{}, {"inputs": SINGLE["input_ids"]}, {"input_ids": BATCH["input_ids"]}])
def test_prompts_come_in_every_form_generate_takes(models, inputs):
    model = models()
    expected = model.generate.original(**inputs, max_new_tokens=8)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8), expected)
    assert torch.equal(model.generate(*inputs.values(), max_new_tokens=8), expected) or "input_ids" in inputs


def test_a_generation_config_counts_as_it_does_for_generate(models, monkeypatch):
    model = models()
    config = GenerationConfig(max_new_tokens=9, repetition_penalty=1.4, pad_token_id=0)
    expected = model.generate.original(**BATCH, generation_config=config)
    assert torch.equal(model.generate(**BATCH, generation_config=config), expected)
    assert torch.equal(
        model.generate(BATCH["input_ids"], config, attention_mask=BATCH["attention_mask"]), expected
    )
    monkeypatch.setattr(model.generation_config, "max_new_tokens", 5)
    assert torch.equal(model.generate(**BATCH), model.generate.original(**BATCH))


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_drafter_changes_the_text(models, name):
    model = models()
    drafter = Adversary(ADVERSARIES[name])
    expected = model.generate.original(**BATCH, max_new_tokens=20, eos_token_id=1)
    found = model.generate(**BATCH, max_new_tokens=20, eos_token_id=1, drafter=drafter, num_draft_tokens=24)
    assert torch.equal(found, expected)


def test_each_row_may_have_its_own_drafter(models):
    model = models()
    expected = model.generate.original(**BATCH, max_new_tokens=20)
    texts = texts_of(BATCH, expected)
    recorder = Recorder(Oracle(texts[0]), top_k=3)
    found = model.generate(
        **BATCH, max_new_tokens=20, drafter=[recorder, "off", "token-recycling", "off"], num_draft_tokens=12
    )
    assert torch.equal(found, expected)
    stats = model.generate.stats
    assert stats[0].num_accepted_tokens > 10
    assert stats[2].num_draft_tokens > 0
    assert stats[1].num_draft_tokens == stats[3].num_draft_tokens == 0
    assert len(recorder.begun) == len(recorder.ended) == 1
    assert recorder.begun[0][1].token_ids.shape == (len(PROMPTS[0]) - 1, 3)
    assert all(seen.candidates.token_ids.shape[1] == 3 for _, _, seen in recorder.observed)
    two = model.generate(
        **padded(PROMPTS[:2]),
        max_new_tokens=8,
        do_sample=True,
        num_return_sequences=2,
        drafter=["off", "token-recycling"],
        num_draft_tokens=8,
    )
    assert len(two) == 4
    assert [stats.num_draft_tokens > 0 for stats in model.generate.stats] == [False, False, True, True]
    with pytest.raises(hasten.ConfigError, match="3 drafters for 4 rows"):
        model.generate(**BATCH, max_new_tokens=8, drafter=["off", "off", "auto"])


def test_nothing_is_drafted_beyond_the_positions_of_the_model():
    model = hasten.accelerate(build_model("gpt2", n_positions=24, seed=1))
    expected = model.generate.original(**SINGLE, max_new_tokens=12, pad_token_id=0)
    options = {"max_new_tokens": 60, "eos_token_id": int(expected[0, -1]), "pad_token_id": 0}
    assert torch.equal(model.generate.original(**SINGLE, **options), expected)
    deep = Adversary(ADVERSARIES["too_deep"])
    assert torch.equal(model.generate(**SINGLE, **options, drafter=deep, num_draft_tokens=30), expected)


def test_time_limits_end_a_text(models):
    written = models().generate(**BATCH, max_new_tokens=200, max_time=0.0, num_draft_tokens=4)
    assert BATCH["input_ids"].shape[1] < written.shape[1] < BATCH["input_ids"].shape[1] + 10


class Flag(StoppingCriteria):
    """An event that another thread may set, as servers cancel requests."""

    def __init__(self, after):
        self.event, self.after, self.calls = threading.Event(), after, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        if self.calls == self.after:
            self.event.set()
        return self.event.is_set()


def test_criteria_are_the_callers_own_objects(models):
    flag = Flag(after=5)
    written = models().generate(**SINGLE, max_new_tokens=30, stopping_criteria=StoppingCriteriaList([flag]))
    assert written.shape[1] == len(PROMPTS[0]) + 5
    assert flag.calls == 5
    flag = Flag(after=5)
    together = models().generate(
        **BATCH, max_new_tokens=30, stopping_criteria=StoppingCriteriaList([flag]), drafter="off"
    )
    assert flag.event.is_set()
    assert together.shape[1] == BATCH["input_ids"].shape[1] + 5
    assert flag.calls == 0  # rows count for themselves


class LimitPerRow(StoppingCriteria):
    """Every row of the batch may write another number of tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        written = input_ids.shape[1] - BATCH["input_ids"].shape[1]
        return torch.tensor([written >= 12 - 3 * row for row in range(len(input_ids))])


def test_criteria_may_treat_each_row_of_a_batch_in_its_own_way(models):
    criteria = StoppingCriteriaList([LimitPerRow()])
    expected = check(models(), BATCH, stopping_criteria=criteria, eos_token_id=96)
    assert [len(row) for row in texts_of(BATCH, expected)] == [24, 13, 19, 15]
    assert (expected[3, -9:] == 0).all()


class SeesScores(StoppingCriteria):
    """Ends a row where the model was sure of its token."""

    def __call__(self, input_ids, scores, **kwargs):
        assert len(scores[-1]) == len(input_ids)
        return scores[-1].softmax(-1).amax(-1) > 0.25


def test_criteria_see_scores_where_they_are_kept(models):
    keep = {"return_dict_in_generate": True, "output_scores": True, "eos_token_id": 96}
    expected = check(models(), BATCH, stopping_criteria=StoppingCriteriaList([SeesScores()]), **keep)
    assert ends_early(BATCH, expected.sequences)


@pytest.mark.parametrize("inputs", [SINGLE, BATCH])
def test_a_streamer_gets_what_generate_gives_it(models, inputs):
    model = models()
    plain = model.generate.original(**inputs, max_new_tokens=20)
    eos = int(plain[0, -8])
    theirs = Pieces()
    expected = model.generate.original(**inputs, max_new_tokens=20, eos_token_id=eos, streamer=theirs)
    ours = Pieces()
    oracles = [Oracle(text) for text in texts_of(inputs, expected)]
    model.generate(
        **inputs, max_new_tokens=20, eos_token_id=eos, streamer=ours, drafter=oracles, num_draft_tokens=9
    )
    assert ours.pieces == theirs.pieces
    assert ours.pieces[-1] == "end"


def test_tokens_are_streamed_while_they_are_written(models):
    class Stops(Pieces):
        def put(self, value):
            super().put(value)
            if len(self.pieces) == 5:
                raise KeyboardInterrupt

    streamer, recorder = Stops(), Recorder(Oracle([]))
    with pytest.raises(KeyboardInterrupt):
        models().generate(**SINGLE, max_new_tokens=200, streamer=streamer, drafter=recorder)
    assert len(streamer.pieces) == 5
    # The drafter is told step by step, or of several steps at once.
    told = [token for *_, seen in recorder.observed for token in seen.acceptance.token_ids]
    assert [[token] for token in told] == streamer.pieces[1:]
    assert len(recorder.ended) == 1


def test_texts_can_be_written_in_several_threads(models):
    model = models()
    expected = model.generate.original(**BATCH, max_new_tokens=24)
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(model.generate(**BATCH, max_new_tokens=24, drafter="auto"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.tolist() for one in found] == [expected.tolist()] * 4


def test_the_first_call_of_a_large_model_says_what_it_does(monkeypatch, caplog):
    monkeypatch.setattr("hasten.dropin.accelerated._LARGE_BYTES", 0)
    model = hasten.accelerate(build_model())
    for _ in range(2):
        model.generate(torch.tensor([[5, 9, 13]]), max_new_tokens=2, do_sample=False)
    assert [record.message.partition(":")[0] for record in caplog.records if record.name == "hasten"] == [
        "first call"
    ]
