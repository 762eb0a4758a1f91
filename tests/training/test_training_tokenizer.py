"""A trained tokenizer writes any text and is what AutoTokenizer loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hasten.errors import ConfigError, ModelError
from hasten.training.tokenizer import load_tokenizer, text_encoder, train_tokenizer

TEXT = ["The quick brown fox jumps over the lazy dog. " * 3, "def main():\n    return 'quick'\n"]


def test_trained_tokenizer_round_trips_through_auto_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXT, 280)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 280
    assert loaded.convert_tokens_to_ids(["<|endoftext|>", "<|mask|>", "<|pad|>"]) == [0, 1, 2]
    assert (loaded.eos_token_id, loaded.mask_token_id, loaded.pad_token_id) == (0, 1, 2)
    for text in (*TEXT, "naïve 文字 🙂\n\n  x", "a , b ."):
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_training_is_deterministic() -> None:
    first, second = train_tokenizer(TEXT, 280), train_tokenizer(TEXT, 280)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_text_encoder_takes_special_tokens_as_text() -> None:
    tokenizer = load_tokenizer("demo")
    assert 1 in tokenizer("a<|mask|>b")["input_ids"]
    assert 1 not in text_encoder(tokenizer).encode("a<|mask|>b").ids
    assert 1 in tokenizer("a<|mask|>b")["input_ids"]


@pytest.mark.parametrize(("size", "message"), [(100, "at least 259"), (5000, "too large for this text")])
def test_impossible_sizes_are_refused(size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size={size}.*{message}"):
        train_tokenizer(TEXT, size)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))
