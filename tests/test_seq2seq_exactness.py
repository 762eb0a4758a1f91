"""The promise, for encoder-decoder models: every drafter writes the text of plain decoding.

Plain decoding itself is compared with transformers' `generate`, generation settings included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adversaries import ADVERSARIES, Adversary, Oracle
from conftest import drawn_as, each_alone
from coverings import some_of
from hasten.core import SamplingParams, prompt_seeds
from hasten.drafters.lookup.aggressive import AggressiveDecoding
from hasten.models.encoder_decoder.target import Seq2SeqLM
from hasten.text.engine import LanguageModel
from seq2seq_models import EOS, SEQ2SEQ, build_seq2seq, sources_for, transformers_greedy

DRAFTER_NAMES = ["token-recycling", "suffix", "aggressive", "auto"]
GREEDY = SamplingParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.9, seed=11)
ENDING = SamplingParams(max_new_tokens=40, stop_token_ids=[7, 20, 33, 44], temperature=1.5, seed=2)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED, "ending": ENDING}
SETTINGS = {
    "summary": {
        "forced_bos_token_id": 5,
        "forced_eos_token_id": EOS,
        "min_length": 12,
        "no_repeat_ngram_size": 2,
    },
    "penalties": {
        "repetition_penalty": 1.5,
        "encoder_repetition_penalty": 1.2,
        "encoder_no_repeat_ngram_size": 2,
        "min_new_tokens": 9,
    },
    "suppressed": {"suppress_tokens": list(range(10, 40)), "begin_suppress_tokens": list(range(40, 60))},
    "bad words": {"bad_words_ids": [[8], [9, 11]], "exponential_decay_length_penalty": (5, 1.5)},
}
"""Generation settings as checkpoints carry them"""


def texts(outputs):
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.fixture(scope="module")
def seq2seq():
    """seq2seq(name, dtype) -> a fresh LanguageModel around a target that is made once."""
    made = {}

    def get(name="t5gemma", dtype=torch.float32):
        if (name, dtype) not in made:
            made[name, dtype] = Seq2SeqLM(build_seq2seq(name, dtype))
        return LanguageModel(made[name, dtype], drafter="off")

    return get


@pytest.fixture(scope="module")
def plain(seq2seq):
    """plain(name, params) -> the outputs of plain decoding, each source alone."""
    known = {}

    def get(name, params):
        if (name, params) not in known:
            lm = seq2seq(name)
            known[name, params] = each_alone(lm, sources_for(name), PARAMS[params])
        return known[name, params]

    return get


@pytest.fixture
def settings():
    """settings(model, values): generation settings for the time of one test."""
    changed = []

    def change(model, **values):
        for name, value in values.items():
            changed.append((model.generation_config, name, getattr(model.generation_config, name)))
            setattr(model.generation_config, name, value)

    yield change
    for config, name, value in reversed(changed):
        setattr(config, name, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_plain_greedy_is_generate_of_transformers(seq2seq, name, dtype):
    lm = seq2seq(name, dtype)
    sources = sources_for(name)
    expected = [transformers_greedy(lm.target.forward.model, source, 20) for source in sources]
    assert [lm.generate(source, GREEDY).token_ids for source in sources] == expected
    assert [output.token_ids for output in lm.generate(sources, GREEDY)] == expected


@pytest.mark.parametrize("params", ["greedy", "sampled"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_the_texts_of_the_battery_wander_and_tell_their_sources_apart(plain, name, params):
    written = [output.token_ids for output in plain(name, params)]
    assert len(set(map(tuple, written))) == len(written)
    assert sum(len(set(text)) for text in written) >= 16


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_ragged_batch_is_its_rows_alone(seq2seq, plain, name, params):
    assert texts(seq2seq(name).generate(sources_for(name), PARAMS[params])) == texts(plain(name, params))


def test_rows_leave_a_batch_at_different_times(plain):
    for name in ("t5", "whisper", "t5gemma"):
        assert len({len(output.token_ids) for output in plain(name, "ending")}) > 2


@some_of(7, name=SEQ2SEQ, drafter=DRAFTER_NAMES)
def test_every_drafter_writes_the_plain_text(seq2seq, plain, name, drafter):
    lm = seq2seq(name)
    sources = sources_for(name)
    drafted = 0
    for params_name, params in PARAMS.items():
        expected = texts(plain(name, params_name))
        alone = lm.generate(sources[0], params, drafter=drafter, num_draft_tokens=12)
        assert texts([alone]) == expected[:1]
        for _ in range(2):
            batch = lm.generate(sources, params, drafter=drafter, num_draft_tokens=12)
            assert texts(batch) == expected
            drafted += sum(output.stats.num_draft_tokens for output in [alone, *batch])
        assert texts(lm.generate(sources, params, drafter=drafter)) == expected
    assert drafted > 0


@some_of(
    5,
    name=["t5-gated", "marian-two-vocabularies", "whisper", "t5gemma"],
    adversary=ADVERSARIES,
    params=PARAMS,
)
def test_hostile_drafters_change_nothing(seq2seq, plain, name, adversary, params):
    drafter = Adversary(ADVERSARIES[adversary])
    found = seq2seq(name).generate(sources_for(name), PARAMS[params], drafter=drafter, num_draft_tokens=256)
    assert texts(found) == texts(plain(name, params))
    small = name == "marian-two-vocabularies" and adversary == "outside_vocabulary"  # all of it is
    assert small or sum(output.stats.num_draft_tokens for output in found) > 0


@pytest.mark.parametrize("params", ["greedy", "sampled"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_long_accepted_runs_are_exact(seq2seq, plain, name, params):
    for source, expected in zip(sources_for(name), plain(name, params), strict=True):
        oracle = Oracle([*expected.prompt_ids, *expected.token_ids], depth=4, error_rate=0.1)
        found = seq2seq(name).generate(
            source, drawn_as(expected, PARAMS[params]), drafter=oracle, num_draft_tokens=20
        )
        assert texts([found]) == texts([expected])
        assert found.stats.mean_acceptance_length > 2


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", ["t5", "bart", "pegasus", "t5gemma"])
def test_generation_settings_of_the_model_apply_as_in_transformers(seq2seq, settings, name, kind):
    lm = seq2seq(name)
    model = lm.target.forward.model
    unset = [output.token_ids for output in lm.generate(sources_for(name), GREEDY)]
    stops = [EOS, 7, 20, 33, 44]
    settings(model, **SETTINGS[kind], eos_token_id=stops)
    sources = sources_for(name)
    expected = [transformers_greedy(model, source, 20, stops) for source in sources]
    params = SamplingParams(max_new_tokens=20)
    assert [output.token_ids for output in lm.generate(sources, params)] == expected
    assert expected != unset
    for drafter in DRAFTER_NAMES:
        found = lm.generate(sources, params, drafter=drafter, num_draft_tokens=12)
        assert [output.token_ids for output in found] == expected
    oracle = Oracle([model.generation_config.decoder_start_token_id, *expected[3]], depth=4)
    found = lm.generate(sources[3], params, drafter=oracle, num_draft_tokens=12)
    assert found.token_ids == expected[3]


def test_suppressed_tokens_of_a_speech_model_stay_away(seq2seq, settings):
    lm = seq2seq("whisper")
    model = lm.target.forward.model
    settings(model, **SETTINGS["suppressed"])
    prompt = [2, 50, 51, 52]
    for source in sources_for("whisper"):
        expected = transformers_greedy(model, source, 20, decoder_input_ids=torch.tensor([prompt]))
        for drafter in ("off", "auto"):
            found = lm.generate(source, GREEDY, drafter=drafter, num_draft_tokens=9, decoder_prompt=prompt)
            assert found.token_ids == expected
            assert found.prompt_ids == prompt


@pytest.mark.parametrize("name", ["t5", "whisper", "t5gemma"])
def test_a_decoder_prompt_is_gone_on_from(seq2seq, name):
    lm = seq2seq(name)
    start = lm.generate(sources_for(name)[0], GREEDY).prompt_ids
    for prompt in ([*start, 8, 9], [*start]):
        for source in sources_for(name):
            expected = transformers_greedy(
                lm.target.forward.model, source, 20, decoder_input_ids=torch.tensor([prompt])
            )
            for drafter in ("off", "aggressive", "auto"):
                found = lm.generate(
                    source, GREEDY, drafter=drafter, num_draft_tokens=9, decoder_prompt=prompt
                )
                assert found.token_ids == expected


def test_a_decoder_prompt_gets_its_start_token_as_in_transformers(seq2seq):
    lm = seq2seq("t5")
    source = sources_for("t5")[0]
    found = lm.generate(source, GREEDY, decoder_prompt=[8, 9])
    assert found.prompt_ids == [0, 8, 9]
    prompt = torch.tensor([[8, 9]])
    model = lm.target.forward.model
    assert found.token_ids == transformers_greedy(model, source, 20, decoder_input_ids=prompt)


@pytest.mark.parametrize("name", ["t5", "t5gemma", "whisper"])
def test_samples_of_one_source_are_the_same_whatever_the_batch(seq2seq, name):
    lm = seq2seq(name)
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=1.0, seed=5, n=3)
    sources = sources_for(name)[:2]
    seeds = prompt_seeds(params.seed, len(sources))
    expected = [
        texts(lm.generate([source], replace(params, seed=seed)))
        for source, seed in zip(sources, seeds, strict=True)
    ]
    assert len({tuple(token_ids) for token_ids, _ in expected[0]}) == 3
    for batch_size in (2, 4, 16):
        found = lm.generate(sources, params, drafter="auto", num_draft_tokens=8, batch_size=batch_size)
        assert texts(found) == [one for of_one in expected for one in of_one]


class Reads(AggressiveDecoding):
    """Takes the given token ids for the source."""

    def __init__(self, source_ids):
        super().__init__()
        self._source_ids = source_ids

    def begin(self, sequence, prompt_candidates):
        sequence.source_ids = self._source_ids  # the model has read its own by now
        super().begin(sequence, prompt_candidates)


@pytest.mark.parametrize("params", ["greedy", "sampled"])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_text_that_is_its_source_takes_two_passes(seq2seq, plain, name, params):
    lm = seq2seq(name)
    for source, expected in zip(sources_for(name), plain(name, params), strict=True):
        found = lm.generate(
            source, drawn_as(expected, PARAMS[params]), drafter=Reads(expected.token_ids), num_draft_tokens=64
        )
        assert texts([found]) == texts([expected])
        assert found.stats.num_steps <= 2


def test_an_edited_source_costs_a_few_passes_an_edit(seq2seq, plain):
    for source, expected in zip(sources_for("t5gemma"), plain("t5gemma", "sampled"), strict=True):
        edited = list(expected.token_ids)
        edited[6] = 96
        del edited[12]
        found = seq2seq().generate(
            source, drawn_as(expected, SAMPLED), drafter=Reads(edited), num_draft_tokens=64
        )
        assert texts([found]) == texts([expected])
        assert found.stats.num_steps <= 10


@pytest.mark.parametrize("name", ["t5", "whisper", "t5gemma"])
def test_a_stream_is_the_text_of_generate(seq2seq, plain, name):
    for source, expected in zip(sources_for(name), plain(name, "sampled"), strict=True):
        oracle = Oracle([*expected.prompt_ids, *expected.token_ids], 3)
        pieces = list(
            seq2seq(name).stream(source, drawn_as(expected, SAMPLED), drafter=oracle, num_draft_tokens=20)
        )
        assert [piece.token_id for piece in pieces] == expected.token_ids
        assert pieces[-1].output.finish_reason == "length"
        assert [piece.source for piece in pieces[:4]] == ["draft"] * 3 + ["target"]


def test_a_recording_may_be_a_tensor(seq2seq, plain):
    features = torch.from_numpy(np.stack(sources_for("whisper")))
    found = seq2seq("whisper").generate(list(features), GREEDY)
    assert texts(found) == texts(plain("whisper", "greedy"))
    assert seq2seq("whisper").generate(features[0], GREEDY).token_ids == found[0].token_ids
