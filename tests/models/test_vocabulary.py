"""Two tokenizers: which tokens are the same, and what a text in one becomes in the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hasten.errors import ConfigError, IncompatibleModels
from hasten.models.vocabulary import SharedTokens, VocabularyMap, vocabulary_fingerprint, vocabulary_map
from hasten.training.tokenizer import END_OF_TEXT, MASK, train_tokenizer

TALES = "the old mill by the stream, the miller and the mill's wheel, thirty-three wheels. "
NUMBERS = "1 22 333 miles to the mill; 4444 streams and 55555 dreams of theirs — naïve, déjà vu! "


@pytest.fixture(scope="module")
def tales() -> Any:
    return train_tokenizer([TALES * 3], 290)


@pytest.fixture(scope="module")
def numbers() -> Any:
    return train_tokenizer([NUMBERS * 3], 310)


@pytest.fixture(scope="module")
def shared(tales: Any, numbers: Any) -> VocabularyMap:
    return vocabulary_map(tales, len(tales), numbers, len(numbers))


def sentencepiece(words: list[str]) -> Any:
    """As Llama 2 has it: a space is ▁ and stands before every text; bytes are <0x00> to <0xFF>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for word in words for letter in word})
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *letters, *words]))}
    merges = [(word[:-1], word[-1]) for word in words if len(word) > 1]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def vocabulary_of(tokenizer: Any) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def test_shared_are_the_tokens_of_equal_bytes(tales, numbers, shared):
    ours, theirs = vocabulary_of(tales), numbers.get_vocab()
    expected = [theirs.get(ours[index], -1) for index in range(len(tales))]
    assert shared.draft_of.tolist() == expected
    assert 256 < shared.num_shared < len(tales)
    assert not shared.is_same


def test_control_tokens_are_shared_by_name(tales, numbers, shared):
    assert shared.draft_of[tales.eos_token_id] == numbers.eos_token_id
    other = train_tokenizer([NUMBERS], 280)
    other.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    plain = train_tokenizer([TALES], 280)
    plain.add_tokens([AddedToken("<|user|>", special=False)])
    found = SharedTokens(other, len(other), plain, len(plain))
    assert found.draft_of[other.convert_tokens_to_ids("<|user|>")] == -1
    assert found.draft_of[other.convert_tokens_to_ids(MASK)] == plain.convert_tokens_to_ids(MASK)


@given(text=st.text(alphabet=st.sampled_from("the mil wrs.13é—😀\n"), max_size=40))
def test_a_text_is_read_as_the_same_text(tales, numbers, shared, text):
    for way, one, other in (
        (shared, tales, numbers),
        (SharedTokens(numbers, len(numbers), tales, len(tales)), numbers, tales),
    ):
        ids = one.encode(text, add_special_tokens=False)
        assert other.decode(way.to_draft(ids)) == text


@given(cut=st.integers(0, 60))
def test_a_text_is_read_as_its_parts_are(tales, shared, cut):
    ids = tales.encode(TALES)
    assert shared.to_draft(ids[:cut]) + shared.to_draft(ids[cut:]) == shared.to_draft(ids)


def test_an_unshared_token_is_read_as_the_draft_would_write_it(tales, numbers, shared):
    unshared = np.flatnonzero(shared.draft_of < 0).tolist()
    assert len(unshared) > 5
    for target_id in unshared:
        text = tales.decode([target_id])
        assert shared.to_draft([target_id]) == numbers.encode(text, add_special_tokens=False)


def test_half_a_character_is_read_byte_by_byte(tales):
    numbers = train_tokenizer([NUMBERS + "😀😀😀 😃😃😃 "], 310)
    halves = [index for index, token in vocabulary_of(numbers).items() if token == "ðŁĺ"]
    assert halves, "the tokenizer has a token for three of the four bytes"
    found = SharedTokens(numbers, len(numbers), tales, len(tales)).to_draft(halves)
    assert [vocabulary_of(tales)[each] for each in found] == ["ð", "Ł", "ĺ"]


def test_sentencepiece_and_byte_level_tokens_are_compared_by_bytes(tales):
    spiece = sentencepiece(["▁t", "▁th", "▁the", "mi", "mil", "é"])
    way = SharedTokens(spiece, len(spiece), tales, len(tales))
    pairs = {"▁the": "Ġthe", "mil": "mil", "<0x0A>": "Ċ", "h": "h", "<0xC3>": "Ã"}
    for theirs, ours in pairs.items():
        assert way.draft_of[spiece.get_vocab()[theirs]] == tales.get_vocab()[ours], theirs
    # Two tokens for one byte: the letter is the one that is shared, the byte token is read as it.
    assert way.draft_of[spiece.get_vocab()["<0x68>"]] == -1
    assert way.to_draft([spiece.get_vocab()["<0x68>"]]) == [tales.get_vocab()["h"]]
    back = SharedTokens(tales, len(tales), spiece, len(spiece))
    assert back.draft_of[tales.get_vocab()["Ġthe"]] == spiece.get_vocab()["▁the"]
    assert back.draft_of[tales.get_vocab()["h"]] == spiece.get_vocab()["h"]


@given(text=st.text(alphabet=st.sampled_from("the mil é😀\n"), max_size=30))
def test_a_text_is_read_by_sentencepiece_without_added_spaces(tales, text):
    spiece = sentencepiece(["▁t", "▁th", "▁the", "mi", "mil", "é"])
    ids = SharedTokens(tales, len(tales), spiece, len(spiece)).to_draft(
        tales.encode(text, add_special_tokens=False)
    )
    assert spiece.backend_tokenizer.decoder is not None
    written = b""
    for token in spiece.convert_ids_to_tokens(ids):
        is_byte = token.startswith("<0x")
        written += bytes([int(token[3:5], 16)]) if is_byte else token.replace("▁", " ").encode()
    assert written.decode() == text


def test_the_beginning_is_read_as_the_drafts_own(tales):
    spiece = sentencepiece(["▁t", "▁th"])
    way = SharedTokens(spiece, len(spiece), tales, len(tales))
    end = tales.convert_tokens_to_ids(END_OF_TEXT)
    assert way.to_draft([spiece.bos_token_id]) == [end]
    assert way.draft_of[spiece.bos_token_id] == -1
    back = SharedTokens(tales, len(tales), spiece, len(spiece))
    assert back.to_draft([end]) == [spiece.bos_token_id]


def test_a_text_that_looks_like_a_control_token_stays_text(tales):
    other = train_tokenizer([NUMBERS], 280)
    other.add_tokens([AddedToken(END_OF_TEXT + "x", special=False)])
    target_id = other.convert_tokens_to_ids(END_OF_TEXT + "x")
    found = SharedTokens(other, len(other), tales, len(tales)).to_draft([target_id])
    assert tales.eos_token_id not in found
    assert tales.decode(found) == END_OF_TEXT + "x"


def test_bytes_the_draft_cannot_write_become_its_unknown_token(tales):
    vocabulary = {f"letter{index}": index + 1 for index in range(40)} | {"<unk>": 0}
    vocabulary |= {letter: 41 + index for index, letter in enumerate("abcdefghijklmnopqrs")}
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), unk_token="<unk>"
    )
    way = SharedTokens(tales, len(tales), words, len(words))
    assert way.to_draft([tales.get_vocab()["z"]]) == [0]
    assert way.to_draft([tales.get_vocab()["Ġthe"]]) == [0, 0, *(words.get_vocab()[each] for each in "he")]


def test_padding_ids_mean_nothing(tales, numbers):
    way = SharedTokens(tales, len(tales) + 8, numbers, len(numbers) + 64)
    assert way.to_draft([len(tales) + 3]) == []
    assert len(way.draft_of) == len(tales) + 8


def test_one_tokenizer_is_the_same_whatever_the_padding(tales):
    way = vocabulary_map(tales, 320, tales, 304)
    assert way.is_same
    assert way.to_draft([5, 303, 310, 6]) == [5, 303, 6]
    assert way.num_shared == 304
    assert vocabulary_map(tales, 304, tales, 320).num_shared == 304


def test_equal_sizes_do_without_tokenizers_and_others_do_not(tales):
    assert vocabulary_map(None, 97, None, 97).is_same
    assert vocabulary_map(tales, 290, None, 290).is_same
    for target, draft, whose in ((tales, None, "draft"), (None, tales, "target")):
        with pytest.raises(ConfigError, match=rf"300 and 97 tokens, and the {whose} has no tokenizer"):
            vocabulary_map(target, 300, draft, 97)


def test_strangers_are_refused_with_the_number_they_share(tales):
    words = {f"word{index}": index for index in range(400)} | {"a": 400, "b": 401}
    stranger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")))
    with pytest.raises(IncompatibleModels, match=r"shares 2 tokens .* of 290, at least 16"):
        vocabulary_map(tales, len(tales), stranger, len(stranger))


def test_the_fingerprint_is_of_the_vocabulary(tales, numbers):
    prints = {vocabulary_fingerprint(one, 0) for one in (tales, numbers, None)}
    assert len(prints) == 3
    assert vocabulary_fingerprint(None, 97) == "token-ids-97"


def test_added_tokens_are_spelled_as_they_are_written(tales):
    other = train_tokenizer([NUMBERS], 280)
    other.add_tokens(["déjà vu", "çà"])
    way = SharedTokens(other, len(other), tales, len(tales))
    for text in ("déjà vu", "çà"):
        assert tales.decode(way.to_draft([other.convert_tokens_to_ids(text)])) == text


def test_a_word_is_cut_as_sentencepiece_cuts_it(tales):
    spiece = sentencepiece(["il", "▁m", "▁mi", "ill"])
    way = SharedTokens(tales, len(tales), spiece, len(spiece))
    found = way.to_draft([tales.get_vocab()["Ġmill"]])
    assert spiece.convert_ids_to_tokens(found) == ["▁m", "ill"]


def test_a_piece_that_sentencepiece_would_put_a_space_before_is_cut_longest_first(tales):
    spiece = sentencepiece(["▁t", "re", "am"])
    way = SharedTokens(tales, len(tales), spiece, len(spiece))
    assert spiece.convert_ids_to_tokens(way.to_draft([tales.get_vocab()["ream"]])) == ["re", "am"]
