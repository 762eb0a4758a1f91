"""Trains and loads the tokenizers of small models; knows nothing of what is trained with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hasten.errors import ConfigError, ModelError
from hasten.models.bundled_models import BUNDLED, bundled_path

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = [END_OF_TEXT, MASK, PAD]
"""Their ids are 0, 1 and 2."""


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which can write any text; `save_pretrained` makes it AutoTokenizer's.

    Raises ConfigError when `vocab_size` is too small for the bytes or too large for the text.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size={vocab_size} cannot work; it must be at least {smallest}, for every byte"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"vocab_size={vocab_size} is too large for this text, which gives {tokenizer.get_vocab_size()}"
            " tokens; give more text or a smaller vocab_size"
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        mask_token=MASK,
        pad_token=PAD,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, a bundled model or a hub name."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        raise ModelError(f"tokenizer {name!r} cannot be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"tokenizer {name!r} has no tokenizer.json; choose one that has")
    if tokenizer.eos_token is None:
        raise ModelError(
            f"tokenizer {name!r} has no eos_token, which must end each document; choose one that has"
        )
    return tokenizer


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy that reads `<|mask|>` and the like in a text as text, never as control tokens."""
    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def resolve_model(name: str) -> str:
    """The folder of a bundled model's name, unless a folder of that name is at hand; else the name itself."""
    return str(bundled_path(name)) if name in BUNDLED and not Path(name).is_dir() else name
