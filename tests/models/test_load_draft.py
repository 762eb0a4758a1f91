"""Loading a draft model: from a name, a folder, an object; what is found beside it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from conftest import VOCAB, build_model
from hasten.errors import ConfigError, IncompatibleModels, ModelError, StoreError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.models.draft.trimmed_vocabulary import TRIM_FILE, load_kept_ids, save_kept_ids
from hasten.models.encoder_decoder.target import Seq2SeqLM
from hasten.models.forwards.packed import PackedLinear
from hasten.models.loading import load_pretrained
from hasten.models.vocabulary import vocabulary_fingerprint
from hasten.text.engine import LanguageModel
from seq2seq_models import build_seq2seq


@pytest.fixture
def load(demo: LanguageModel) -> Any:
    """load(draft, ...) -> DraftLM for the bundled target."""
    return lambda draft="demo-draft", **options: load_draft(
        draft, target=demo.target, target_tokenizer=demo.tokenizer, **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundled draft model."""
    model, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    path = tmp_path_factory.mktemp("draft") / "mine"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_bundled_draft_has_the_targets_tokenizer(load):
    draft = load()
    assert draft.name == "demo-draft"
    assert draft.vocabulary.is_same
    assert draft.exits[-1] == draft.model.forward.config.num_hidden_layers
    assert draft.context is None
    assert draft.model.dtype == torch.bfloat16
    assert draft.model.device.type == "cpu"


def test_dtype_forward_and_context_are_heeded(load):
    draft = load(dtype="float32", device="cpu", forward="packed", context=64)
    assert draft.model.dtype == torch.float32
    assert draft.context == 64
    assert any(isinstance(module, PackedLinear) for module in draft.model.forward.model.modules())
    stock = load(forward="stock")
    assert not any(isinstance(module, PackedLinear) for module in stock.model.forward.model.modules())


def test_a_folder_loads_with_the_exits_in_its_config(load, folder):
    other = folder.parent / "exits"
    model, tokenizer = load_pretrained(str(folder), "auto", "cpu")
    model.config.hasten_exits = [1]
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    draft = load(other)
    assert draft.name == str(other)
    assert draft.exits == (1, model.config.num_hidden_layers)
    assert len(draft.at_exit(1).model.forward.model.model.layers) == 1


def test_a_trimmed_vocabulary_beside_the_draft_is_used(load, folder):
    _, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    fingerprint = vocabulary_fingerprint(tokenizer, len(tokenizer))
    elsewhere = folder.parent / "kept.safetensors"
    save_kept_ids(elsewhere, np.array([5, 9, 700]), fingerprint, 0.5)
    trimmed = load(draft_vocab=elsewhere)
    assert trimmed.head_ids.tolist() == [5, 9, 700]
    assert trimmed.model.vocab_size == trimmed.num_proposable == 3
    assert load(folder).num_proposable == 8192
    save_kept_ids(folder / TRIM_FILE, np.array([4, 8]), fingerprint, 0.5)
    assert load(folder).num_proposable == 2
    assert load(folder, draft_vocab=elsewhere).num_proposable == 3
    (folder / TRIM_FILE).unlink()


def test_a_packed_draft_has_a_packed_trimmed_head(load, folder):
    path = folder.parent / "kept.safetensors"
    _, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    save_kept_ids(path, np.arange(64), vocabulary_fingerprint(tokenizer, 0), 0.5)
    draft = load(draft_vocab=path, forward="packed", dtype="float32")
    head = draft.model.forward.model.lm_head
    assert isinstance(head, PackedLinear)
    assert head.out_features == 64


def test_a_trimmed_vocabulary_of_another_tokenizer_is_refused(load, tmp_path):
    path = tmp_path / "kept.safetensors"
    save_kept_ids(path, np.array([5]), "another", 0.5)
    with pytest.raises(IncompatibleModels, match=r"counted with tokenizer 'another'.*train trim"):
        load(draft_vocab=path)
    with pytest.raises(StoreError, match=r"no trimmed vocabulary at .*train trim"):
        load(draft_vocab=tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="not a trimmed vocabulary"):
        load(draft_vocab=tmp_path / "bad")
    save_file({"kept_ids": np.arange(3)}, tmp_path / "other", {"format": "other"})
    with pytest.raises(StoreError, match="format 'other'"):
        load_kept_ids(tmp_path / "other", "any")
    save_file({"wrong": np.arange(3)}, tmp_path / "wrong")
    with pytest.raises(StoreError, match="not a trimmed vocabulary"):
        load_kept_ids(tmp_path / "wrong", "any")
    with pytest.raises(StoreError, match="cannot write"):
        save_kept_ids(Path("/dev/null/x"), np.arange(3), "any", 1)


def test_a_trimmed_vocabulary_beyond_the_head_is_refused(load, tmp_path):
    _, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    path = tmp_path / "kept.safetensors"
    save_kept_ids(path, np.array([5, 9000]), vocabulary_fingerprint(tokenizer, 0), 0.5)
    with pytest.raises(ConfigError, match="no token 9000"):
        load(draft_vocab=path)


def test_a_model_object_is_used_as_it_is(targets):
    target, model = targets(), build_model(seed=3)
    draft = load_draft(model, target=target, target_tokenizer=None)
    assert draft.model.forward.model is model
    assert draft.name == "LlamaForCausalLM"
    for wrong in ({"dtype": "float32"}, {"device": "cpu"}, {"forward": "packed"}):
        with pytest.raises(ConfigError, match="name or folder"):
            load_draft(model, target=target, target_tokenizer=None, **wrong)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_draft(build_model(vocab_size=99), target=target, target_tokenizer=None)


def test_a_draft_lm_is_checked_only(targets):
    target = targets()
    draft = load_draft(build_model(seed=3), target=target, target_tokenizer=None)
    assert load_draft(draft, target=target, target_tokenizer=None) is draft
    with pytest.raises(ConfigError, match="chosen when it was made"):
        load_draft(draft, target=target, target_tokenizer=None, context=5)
    with pytest.raises(ConfigError, match="name or folder"):
        load_draft(draft, target=target, target_tokenizer=None, device="cpu")
    other = CausalLM(build_model(vocab_size=VOCAB + 1))
    with pytest.raises(IncompatibleModels, match=r"target of 97 tokens, this one has 98"):
        load_draft(draft, target=other, target_tokenizer=None)


def test_a_larger_draft_is_nobodys_business(targets):
    big = build_model(num_hidden_layers=5)
    assert load_draft(big, target=targets(), target_tokenizer=None).exits == (5,)


def test_what_cannot_draft_says_so(load, targets):
    seq2seq = build_seq2seq("t5")
    with pytest.raises(ConfigError, match="reads with an encoder"):
        load_draft("demo-draft", target=Seq2SeqLM(seq2seq), target_tokenizer=None)
    with pytest.raises(ModelError, match="not a causal language model"):
        load_draft(seq2seq, target=targets(), target_tokenizer=None)
    with pytest.raises(ModelError, match="no model at"):
        load("./nothing-here")
    with pytest.raises(ConfigError, match="tokenizer="):
        load(tokenizer=object())
    with pytest.raises(ConfigError, match="context=0"):
        load(context=0)
    with pytest.raises(ConfigError, match="dtype='int4'"):
        load(dtype="int4")
    with pytest.raises(ConfigError, match="cuda:99"):
        load(device="cuda:99")
