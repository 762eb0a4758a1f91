"""A checkpoint gives all weights of its model, or an error that names those it does not give."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import hasten
from conftest import build_model
from hasten.errors import ModelError
from seq2seq_models import build_seq2seq

MISSING = "model.layers.1.mlp.up_proj.weight"
PARAMS = hasten.SamplingParams(max_new_tokens=8, ignore_eos=True)


@pytest.fixture
def folder(tmp_path):
    build_model(tie_word_embeddings=False).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    """Rewrite the weights of a folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, {"format": "pt"})


def configure(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_folder_without_a_tokenizer_reads_token_ids(folder):
    lm = hasten.load(folder, drafter="off")
    assert lm.tokenizer is None
    assert (
        lm.generate([5, 9], PARAMS).token_ids == hasten.load(build_model()).generate([5, 9], PARAMS).token_ids
    )
    with pytest.raises(hasten.HastenError, match="token ids"):
        lm.generate("a text", PARAMS)


def test_a_tokenizer_whose_files_are_missing_is_an_error(folder):
    """transformers makes up an empty GPT2Tokenizer, which reads every text as no tokens at all."""
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ModelError, match="special tokens only"):
        hasten.load(folder)


@pytest.mark.parametrize("forward", ["stock", "auto"])
def test_a_missing_weight_is_named(folder, forward):
    change(folder, lambda weights: weights.pop(MISSING))
    with pytest.raises(ModelError, match=rf"do not have the weights of {MISSING}.*random"):
        hasten.load(folder, forward=forward)


def test_a_draft_model_has_to_be_complete_too(folder):
    change(folder, lambda weights: weights.pop(MISSING))
    with pytest.raises(ModelError, match=MISSING):
        hasten.load(build_model(), draft=folder)


def test_an_encoder_decoder_model_has_to_be_complete_too(tmp_path):
    build_seq2seq("t5").save_pretrained(tmp_path)
    hasten.load(tmp_path, drafter="off")
    name = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    change(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=name):
        hasten.load(tmp_path)


def test_a_weight_too_many_is_named_with_the_way_out(folder):
    change(folder, lambda weights: weights.update({"model.layers.2.extra.weight": torch.zeros(3)}))
    with pytest.raises(
        ModelError, match=r"no place for model\.layers\.2\.extra\.weight.*give hasten the object"
    ):
        hasten.load(folder)


def test_a_weight_of_another_shape_is_named_with_both(folder):
    change(folder, lambda weights: weights.update({MISSING: torch.zeros(63, 32)}))
    with pytest.raises(ModelError, match=rf"{MISSING} is \[63, 32\], not \[64, 32\]"):
        hasten.load(folder)


def test_integers_without_their_recipe_are_an_error(folder):
    change(folder, lambda weights: weights.update({MISSING: torch.ones(64, 32, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=rf"integers for {MISSING}.*quantization_config"):
        hasten.load(folder)


def test_integers_are_found_in_any_part_of_a_checkpoint(folder):
    file = folder / "model.safetensors"
    weights = load_file(file) | {MISSING: torch.ones(64, 32, dtype=torch.int8)}
    file.unlink()
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(sorted(weights))}
    for part in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(ModelError, match=rf"{places[MISSING]} holds integers for {MISSING}"):
        hasten.load(folder)


def test_what_else_lies_in_the_folder_is_not_the_checkpoint(folder):
    (folder / "confidence_filter.safetensors").write_bytes(b"nothing")
    save_file({MISSING: torch.ones(64, 32, dtype=torch.int8)}, folder / "other.safetensors")
    names = load_file(folder / "model.safetensors")
    stale = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "other.safetensors")})
    (folder / "model.safetensors.index.json").write_text(stale)
    assert hasten.load(folder).generate([5], PARAMS).token_ids


@pytest.mark.parametrize("wrong", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 64}])
def test_a_config_of_another_model_is_an_error(folder, wrong):
    configure(folder, **wrong)
    with pytest.raises(ModelError, match=r"model\.layers|model\.norm|lm_head"):
        hasten.load(folder)


def test_a_checkpoint_of_another_architecture_is_an_error(folder):
    configure(folder, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    with pytest.raises(ModelError, match="do not have the weights of"):
        hasten.load(folder)


def test_a_missing_shard_is_an_error(tmp_path):
    build_model().save_pretrained(tmp_path, max_shard_size="20KB")
    hasten.load(tmp_path, drafter="off")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"cannot load .*{shards[1].name}"):
        hasten.load(tmp_path)


def test_a_shard_that_was_cut_off_is_an_error(tmp_path):
    build_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load"):
        hasten.load(tmp_path)


@pytest.mark.parametrize("saves_head", [True, False])
def test_a_tied_head_may_be_saved_or_not(tmp_path, saves_head):
    model = build_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    if saves_head:
        head = model.lm_head.weight.detach().clone()
        change(tmp_path, lambda weights: weights.update({"lm_head.weight": head}))
    expected = hasten.load(model).generate([5, 9], PARAMS).token_ids
    assert hasten.load(tmp_path).generate([5, 9], PARAMS).token_ids == expected


def test_an_untied_head_that_is_missing_is_an_error(folder):
    change(folder, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        hasten.load(folder)
