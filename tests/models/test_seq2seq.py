"""Encoder-decoder targets: what they can verify, what they encode, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import hasten
from conftest import build_model
from hasten.core import Acceptance, SamplingParams
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.models.bundled_models import bundled_path
from hasten.models.causal_lm import CausalLM
from hasten.models.encoder_decoder.target import Seq2SeqLM, target_of
from hasten.models.forwards.packed import PackedLinear, pack_linears
from hasten.text.engine import LanguageModel
from hasten.text.requests import Requests
from hasten.tree import DraftTree
from seq2seq_models import SEQ2SEQ, VOCAB, build_seq2seq, sources_for

PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


def language_model(name="t5", tokenizer=None, **changes):
    return LanguageModel(Seq2SeqLM(build_seq2seq(name, **changes)), tokenizer, drafter="off")


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_every_architecture_gets_its_best_mode(name):
    found = Seq2SeqLM(build_seq2seq(name)).probe
    assert found.mode == SEQ2SEQ[name][2]
    assert found.noise < 5e-3  # another token moves logits by 50 (LED); CPUs add in different orders


def test_a_mode_can_be_given_and_the_text_stays():
    texts = []
    for mode in ("tree", "chain", "chain with snapshots", "off", "recompute"):
        lm = LanguageModel(Seq2SeqLM(build_seq2seq(), mode), drafter="auto")
        texts.append([one.token_ids for one in lm.generate(sources_for("t5gemma"), PARAMS)])
    assert all(one == texts[0] for one in texts)


def test_a_model_that_attends_to_the_padding_of_its_sources_is_not_given_batches():
    model = build_seq2seq()
    stock = model.forward

    def no_source_mask(attention_mask=None, decoder_position_ids=None, **kwargs):
        return stock(attention_mask=None, decoder_position_ids=decoder_position_ids, **kwargs)

    model.forward = no_source_mask
    target = Seq2SeqLM(model)
    assert target.probe.mode == "chain"
    assert "logits differ" in target.probe.rejected["tree"]
    sources = sources_for("t5gemma")
    expected = [one.token_ids for one in language_model("t5gemma").generate(sources, PARAMS)]
    found = LanguageModel(target, drafter="auto").generate(sources, PARAMS)
    assert [one.token_ids for one in found] == expected


def test_a_model_whose_passes_cannot_be_compared_is_refused():
    model = build_seq2seq()
    stock, calls = model.forward, []

    def drifts(decoder_input_ids=None, **kwargs):
        output = stock(decoder_input_ids=decoder_input_ids, **kwargs)
        calls.append(decoder_input_ids.shape[1])
        output.logits = output.logits + len(calls)
        return output

    model.forward = drifts
    with pytest.raises(ModelError, match="drafts cannot be verified"):
        Seq2SeqLM(model).probe  # noqa: B018


def test_each_source_is_encoded_once_and_equal_lengths_together():
    target = Seq2SeqLM(build_seq2seq(), mode="tree")
    shapes = []
    encoder = target.forward.model.get_encoder()
    encoder.register_forward_pre_hook(
        lambda module, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    lm = LanguageModel(target, drafter="off")
    lm.generate([[5, 6, 7], [8, 9], [10, 11, 12]], SamplingParams(max_new_tokens=5, n=3, temperature=1.0))
    assert sorted(shapes) == [(1, 2), (2, 3)]


def test_keys_of_the_sources_are_computed_once_and_leave_with_their_rows():
    target = Seq2SeqLM(build_seq2seq(), mode="tree")
    jobs = Requests(target, None).jobs([[5, 6, 7, 8, 9], [8, 9], [10, 11, 12]], PARAMS)
    session = target.open([job.sequence for job in jobs])
    keys = lambda: session._forward._sources.keys.layers[0].keys  # noqa: E731
    session.prefill([job.sequence.token_ids for job in jobs])
    session.forward([DraftTree()] * 3)
    session.keep([Acceptance([], [4])] * 3)
    first = keys()
    assert first.shape[0::2] == (3, 5)
    session.forward([DraftTree.chain([4, 5])] * 3)
    session.keep([Acceptance([0], [4, 9])] * 3)
    assert keys() is first
    session.select([1, 2])
    torch.testing.assert_close(keys(), first[1:, :, :3])
    assert session._forward._sources.states.shape[:2] == (2, 3)


def test_an_unbound_model_says_what_it_lacks():
    target = Seq2SeqLM(build_seq2seq())
    with pytest.raises(ModelError, match="writes about a source"):
        target.forward(np.array([[4]]), np.array([[0]]), None, None)


def test_costs_can_be_measured():
    for name in ("t5", "whisper"):
        assert set(Seq2SeqLM(build_seq2seq(name)).measure_cost(rows=(1, 4), context=20, repeats=2)) == {1, 4}


def test_the_kind_of_target_follows_the_config():
    assert type(target_of(build_model())) is CausalLM
    assert type(target_of(build_seq2seq())) is Seq2SeqLM
    with pytest.raises(ModelError, match="not an encoder-decoder model"):
        Seq2SeqLM(build_model())
    with pytest.raises(ModelError, match="not a causal language model"):
        CausalLM(build_seq2seq())


def test_models_that_read_something_else_are_refused():
    model = build_seq2seq("whisper")
    model.main_input_name = "pixel_values"
    with pytest.raises(ModelError, match="reads pixel_values"):
        Seq2SeqLM(model)


def test_an_empty_source_and_one_too_long_are_refused():
    lm = language_model("bart", max_position_embeddings=100)
    with pytest.raises(PromptError, match="no tokens"):
        lm.generate([[], [5]])
    with pytest.raises(PromptError, match="no prompts"):
        lm.generate([])
    with pytest.raises(PromptError, match=r"source has 101 tokens, the encoder reads 100"):
        lm.generate([5] * 101)
    assert lm.generate([5] * 100, PARAMS).token_ids
    assert language_model("t5").target.max_source_length is None


def test_limits_are_those_of_each_side():
    lm = language_model("led")
    assert (lm.target.max_source_length, lm.target.max_length) == (256, 128)
    long = lm.generate([5] * 20, SamplingParams(max_new_tokens=500, ignore_eos=True))
    assert len(long.token_ids) == 127
    assert long.finish_reason == "length"
    assert language_model("t5").target.max_length is None


def test_each_side_knows_its_own_vocabulary():
    lm = language_model("marian-two-vocabularies")
    assert (lm.target.source_vocab_size, lm.target.vocab_size) == (VOCAB, 61)
    assert lm.generate([96, 5], PARAMS, drafter="aggressive", num_draft_tokens=8).token_ids
    with pytest.raises(PromptError, match=r"token id 97 .* 97 tokens"):
        lm.generate([97])
    with pytest.raises(PromptError, match=r"token id 61 .* 61 tokens"):
        lm.generate([5], decoder_prompt=[61])


def test_decoder_prompts_that_cannot_work_are_refused(models):
    with pytest.raises(ConfigError, match="decoder_prompt= is for encoder-decoder models"):
        models().generate([5], decoder_prompt=[4])
    with pytest.raises(PromptError, match=r"decoder's prompt has 128 tokens, its context holds 128"):
        language_model("led").generate([5], decoder_prompt=[4] * 128)
    with pytest.raises(PromptError, match="tokenizer="):
        language_model().generate([5], decoder_prompt="a")


def test_a_speech_model_names_the_features_it_reads():
    lm = language_model("whisper")
    for wrong in ("hello", [4, 5], np.zeros((8, 40), np.int64)):
        with pytest.raises(PromptError, match=r"reads sound, not text: .*float array \[8, 40\]"):
            lm.generate(wrong)
    with pytest.raises(PromptError, match=r"shape \[8, 39\] do not fit"):
        lm.generate(np.zeros((8, 39), np.float32))


def test_features_are_no_prompt_for_a_model_of_text(models):
    for lm in (models(), language_model()):
        with pytest.raises(PromptError, match="token ids"):
            lm.generate(np.zeros((8, 40), np.float32))


def test_a_model_without_a_start_token_says_so():
    lm = language_model()
    lm.target.forward.model.generation_config.decoder_start_token_id = None
    lm.target.forward.model.generation_config.bos_token_id = None
    lm.target.forward.config.decoder_start_token_id = lm.target.forward.config.bos_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        lm.generate([5])


def test_own_processors_replace_the_models_of_the_same_type(models):
    from transformers import NoRepeatNGramLogitsProcessor

    lm = language_model("t5")
    lm.target.forward.model.generation_config.no_repeat_ngram_size = 1
    source = sources_for("t5")[0]
    assert len(set(lm.generate(source, PARAMS).token_ids)) == 12
    own = SamplingParams(
        max_new_tokens=12, ignore_eos=True, logits_processors=[NoRepeatNGramLogitsProcessor(12)]
    )
    plain = language_model("t5").generate(source, PARAMS)
    assert lm.generate(source, own).token_ids == plain.token_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 with the tokenizer of the bundled models."""
    path = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("demo"))
    build_seq2seq("t5", vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_is_loaded_as_what_its_config_says(folder, tmp_path):
    lm = hasten.load(folder, device="cpu", forward="stock")
    assert isinstance(lm.target, Seq2SeqLM)
    build_seq2seq("whisper").save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    speech = hasten.load(tmp_path, device="cpu", forward="stock")
    assert speech.target.reads_features
    assert speech.generate(sources_for("whisper")[0], PARAMS).token_ids


def test_text_goes_in_and_text_comes_out(folder):
    lm = hasten.load(folder, device="cpu", forward="stock")
    source = "a table for two in San Jose"
    plain = lm.generate(source, PARAMS, drafter="off")
    assert plain.text == lm.tokenizer.decode(plain.token_ids, skip_special_tokens=True)
    assert plain.text
    assert plain.prompt_ids == [0]
    ids = lm.tokenizer(source)["input_ids"]
    for drafter in ("aggressive", "auto"):
        found = lm.generate([source, ids, "b"], PARAMS, drafter=drafter, num_draft_tokens=9)
        assert [one.token_ids for one in found[:2]] == [plain.token_ids] * 2
    begun = lm.generate(source, PARAMS, decoder_prompt="so")
    assert begun.prompt_ids == [0, *lm.tokenizer("so", add_special_tokens=False)["input_ids"]]


def test_stop_strings_end_the_decoders_text(folder):
    lm = hasten.load(folder, device="cpu", forward="stock")
    text = lm.generate("a table", PARAMS).text
    stop = text[len(text) // 2 :][:2]
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, stop=stop)
    for drafter in ("off", "auto"):
        found = lm.generate("a table", params, drafter=drafter)
        assert found.text == text[: text.index(stop)]
        pieces = list(lm.stream("a table", params, drafter=drafter))
        assert "".join(piece.text for piece in pieces) == found.text


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_layers_whose_weight_is_looked_at_in_every_pass_stay_unpacked():
    expected = [one.token_ids for one in language_model("t5").generate(sources_for("t5"), PARAMS)]
    model = build_seq2seq("t5")
    pack_linears(model)
    packed = {
        name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, PackedLinear)
    }
    assert {"q", "k", "v", "o", "wi"} <= packed
    assert "wo" not in packed
    found = LanguageModel(Seq2SeqLM(model), drafter="aggressive").generate(sources_for("t5"), PARAMS)
    assert [one.token_ids for one in found] == expected
