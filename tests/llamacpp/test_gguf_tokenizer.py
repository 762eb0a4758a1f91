"""The tokenizer of a GGUF file says what the one of transformers says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from hasten.chat import chat_prompt, stop_strings
from hasten.errors import ModelError
from hasten.models.llamacpp.export import export_gguf
from hasten.models.llamacpp.target import load_gguf
from hasten.models.loading import load_pretrained
from hasten.models.vocabulary import ordinary_token_bytes, vocabulary_fingerprint

pytest.importorskip("llama_cpp")

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def both(gguf_file):
    """The two tokenizers of the demo model: of transformers, and of its GGUF file."""
    return load_pretrained("demo", "auto", "cpu")[1], load_gguf(gguf_file("demo"))[1]


@settings(max_examples=200)
@given(text=st.text(min_size=1))
def test_any_text_has_the_same_tokens_and_comes_back(both, text):
    theirs, ours = both
    token_ids = ours(text)["input_ids"]
    assert token_ids == theirs(text)["input_ids"]
    assert ours.decode(token_ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was   a girl.\n\n  She's 12345 years old!\t",
        "def add(a, b):\n    return a + b  # sum\n",
        "naïve café — “quotes” 日本語 🙂 \u200b",
        "<|endoftext|>Once<|pad|>",
    ],
)
def test_ordinary_texts_have_the_same_tokens(both, text):
    theirs, ours = both
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    for skip in (False, True):
        ids = theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@given(token_ids=st.lists(st.integers(0, 8191), max_size=12))
def test_any_tokens_have_the_same_text(both, token_ids):
    theirs, ours = both
    assert ours.decode(token_ids, skip_special_tokens=True) == theirs.decode(
        token_ids, skip_special_tokens=True
    )


def test_both_have_one_vocabulary(both):
    theirs, ours = both
    assert vocabulary_fingerprint(ours, 8192) == vocabulary_fingerprint(theirs, 8192)
    assert ordinary_token_bytes(ours, 8192) == ordinary_token_bytes(theirs, 8192)
    assert len(ours) == len(theirs)
    assert ours.all_special_ids == sorted(theirs.all_special_ids)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "mask_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_ids_that_only_fill_the_vocabulary_up_are_no_tokens(both, tmp_path):
    model, tokenizer = load_pretrained("demo", "auto", "cpu")
    model.resize_token_embeddings(8200)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    target, ours = load_gguf(tmp_path / "m.gguf")
    assert target.vocab_size == 8200
    assert vocabulary_fingerprint(ours, 8200) == vocabulary_fingerprint(both[0], 8192)


def test_without_a_chat_template_there_is_none(both):
    ours = both[1]
    assert ours.chat_template is None
    assert stop_strings(ours)
    with pytest.raises(ModelError, match="no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "Hello"}])


def test_a_chat_template_is_used(tmp_path):
    model, theirs = load_pretrained("demo", "auto", "cpu")
    theirs.chat_template = TEMPLATE
    export_gguf(model, theirs, tmp_path / "m.gguf")
    ours = load_gguf(tmp_path / "m.gguf")[1]
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    text = ours.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<|user|>Hello<|endoftext|><|assistant|>Hi<|endoftext|><|assistant|>"
    assert (
        ours.apply_chat_template(messages, tokenize=True)
        == ours(text.removesuffix("<|assistant|>"))["input_ids"]
    )
    assert chat_prompt(ours, messages) == chat_prompt(theirs, messages)
    assert not stop_strings(ours)


def test_tokens_that_begin_every_text_are_added(tmp_path):
    model, theirs = load_pretrained("demo", "auto", "cpu")
    theirs.backend_tokenizer.post_processor = None
    from tokenizers.processors import TemplateProcessing

    theirs.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    export_gguf(model, theirs, tmp_path / "m.gguf")
    ours = load_gguf(tmp_path / "m.gguf")[1]
    assert ours("Once")["input_ids"] == theirs("Once")["input_ids"]
    assert ours.encode("Once", add_special_tokens=False) == theirs.encode("Once", add_special_tokens=False)


def test_a_file_without_a_vocabulary_takes_token_ids(gguf_file):
    target, tokenizer = load_gguf(gguf_file("llama"))
    assert tokenizer is None
    assert target.vocab_size == 97
    assert target.stop_token_ids == {1}
    assert target.max_length == 256
