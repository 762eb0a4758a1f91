"""From a name to a model, or to an error that says what to do."""

from __future__ import annotations

import pytest
import torch

import hasten
from conftest import build_model
from hasten.errors import ConfigError, ModelError
from hasten.models.loading import load_pretrained, resolve_device, resolve_dtype

CPU = torch.device("cpu")


def test_a_bundled_name_loads_with_its_tokenizer():
    model, tokenizer = load_pretrained("demo-draft", "float32", "cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size


def test_auto_keeps_the_dtype_of_the_checkpoint():
    assert load_pretrained("demo-draft", "auto", "cpu")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such", "./nothing", "~/nothing-here", "nothing"])
def test_a_missing_folder_is_named_with_the_choices(name):
    with pytest.raises(ModelError, match=r"no model at .*demo, demo-draft") as caught:
        hasten.load(name)
    assert repr(name) in str(caught.value)


def test_a_file_is_not_a_model(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match="existing folder"):
        hasten.load(file)


def test_a_folder_without_config_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json"):
        hasten.load(tmp_path)


def test_a_damaged_folder_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ModelError, match="cannot load"):
        hasten.load(tmp_path)


def test_damaged_weights_say_so(tmp_path):
    model, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load"):
        hasten.load(tmp_path)


def test_a_saved_folder_loads(tmp_path):
    model, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = hasten.load(tmp_path, drafter="off", forward="stock")
    assert lm.generate("Hello", hasten.SamplingParams(max_new_tokens=3)).text


def test_float16_is_refused_on_the_cpu():
    with pytest.raises(ConfigError, match=r"float16.*bfloat16"):
        resolve_dtype("float16", CPU)
    with pytest.raises(ConfigError, match=r"float16.*bfloat16"):
        hasten.load("demo-draft", dtype="float16", device="cpu")


def test_an_unknown_dtype_names_the_choices():
    with pytest.raises(ConfigError, match=r"dtype='int4'.*float32"):
        resolve_dtype("int4", CPU)


@pytest.mark.parametrize("device", ["tpu-of-my-dreams", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ConfigError, match=rf"device='{device}'.*cpu") as caught:
        resolve_device(device)
    assert len(str(caught.value)) < 300


def test_options_that_belong_to_names_are_refused_for_objects():
    for wrong in ({"dtype": "float32"}, {"device": "cpu"}, {"forward": "packed"}):
        with pytest.raises(ConfigError, match="name or folder"):
            hasten.load(build_model(), **wrong)
    with pytest.raises(ConfigError, match="tokenizer="):
        hasten.load("demo-draft", tokenizer=object())


def test_an_unknown_forward_names_the_choices():
    with pytest.raises(ConfigError, match=r"forward='fast'.*auto, stock, packed"):
        hasten.load("demo-draft", forward="fast")
