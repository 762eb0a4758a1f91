"""Pieces of a text add up to it, and to what the tokenizer itself decodes."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from conftest import build_model, shared_file
from hasten.core import SamplingParams
from hasten.detokenising import Detokeniser, GrowingText
from hasten.models.bundled_models import bundled_path
from hasten.models.causal_lm import CausalLM
from hasten.stopping import TextStream
from hasten.text.engine import LanguageModel

HARD = ["Zoë ﷺ 𓀀𓁐 naïve 👩‍👩‍👧 日本\n\n", "", "  é", "\ufffd", " \u2028x"]
NAMES = ["stories260K", "llama2xs-tok512-280K", "babyllama-tok105-1M", "TinyStories-656K"]


def byte_fallback(*, strips: bool) -> PreTrainedTokenizerFast:
    """As Llama's (which strips the first space) and Gemma's: a few pieces, and a token for every byte."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "▁ab", "é", "\n", "▁▁", "a▁"]
    made = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if strips else "never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@cache
def tokenizer_of(name: str):
    if name in {"llama", "gemma"}:
        return byte_fallback(strips=name == "llama")
    if name == "bytes":
        return ByT5Tokenizer()
    return AutoTokenizer.from_pretrained(
        bundled_path("demo") if name == "demo" else shared_file("models", name)
    )


EVERY = pytest.mark.parametrize("name", ["demo", "llama", "gemma", "bytes", *NAMES])


def pieces_of(tokenizer, token_ids) -> list[str]:
    growing = GrowingText(Detokeniser(tokenizer))
    return [*map(growing.push, token_ids), growing.finish()]


def decode(tokenizer, token_ids) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def bytes_of(tokenizer, token_ids) -> list[list[int]]:
    """Runs of byte tokens, as bytes."""
    table = Detokeniser(tokenizer).byte_tokens
    runs = itertools.groupby(token_ids, key=lambda token_id: token_id in table)
    return [[table[token_id] for token_id in run] for is_bytes, run in runs if is_bytes]


def is_utf8(run: list[int]) -> bool:
    return bytes(run).decode(errors="ignore").encode() == bytes(run)


@EVERY
@settings(max_examples=40)
@given(text=st.text(max_size=12), cut=st.integers(0, 12))
@example(text=HARD[0], cut=0)
@example(text=HARD[2], cut=1)
def test_a_text_cut_anywhere_is_what_the_tokenizer_decodes(name, text, cut):
    tokenizer = tokenizer_of(name)
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"][cut:]
    pieces = pieces_of(tokenizer, token_ids)
    if all(map(is_utf8, bytes_of(tokenizer, token_ids))):
        assert "".join(pieces) == decode(tokenizer, token_ids)
    assert "".join(pieces[: len(token_ids)]) + pieces[-1] == Detokeniser(tokenizer).text(token_ids)


@EVERY
@settings(max_examples=80)
@given(data=st.data())
def test_random_tokens_are_what_the_tokenizer_decodes(name, data):
    tokenizer = tokenizer_of(name)
    skipped = Detokeniser(tokenizer).skipped
    ids = st.integers(0, len(tokenizer) - 1).filter(lambda each: each not in skipped)
    token_ids = data.draw(st.lists(ids, max_size=24))
    found = "".join(pieces_of(tokenizer, token_ids))
    if all(map(is_utf8, bytes_of(tokenizer, token_ids))):
        assert found == decode(tokenizer, token_ids)


@pytest.mark.parametrize("name", ["llama", "gemma"])
@settings(max_examples=150)
@given(data=st.data())
def test_complete_characters_survive_broken_ones(name, data):
    """The law in one line: bytes are read as UTF-8, and each byte of no character is one U+FFFD."""
    tokenizer = tokenizer_of(name)
    first = tokenizer.convert_tokens_to_ids("<0x00>")
    run = data.draw(
        st.lists(st.sampled_from([*"\n aé€😀".encode(), 0x80, 0xFF, 0xF0]), min_size=1, max_size=12)
    )
    a = tokenizer.convert_tokens_to_ids("a")
    found = "".join(pieces_of(tokenizer, [a, *(first + byte for byte in run), a]))
    expected = bytes(run).decode(errors="surrogateescape")
    assert (
        found == "a" + "".join("\ufffd" if "\udc80" <= each <= "\udcff" else each for each in expected) + "a"
    )


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_character_cut_off_spoils_nothing_before_it(name):
    tokenizer = tokenizer_of(name)
    token_ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\nZoë ﷺ".encode()]
    assert decode(tokenizer, token_ids[:-1]) == "\ufffd" * (len(token_ids) - 1)  # what has to be avoided
    assert pieces_of(tokenizer, token_ids) == ["\n", "Z", "o", "", "ë", " ", "", "", "ﷺ", ""]
    assert "".join(pieces_of(tokenizer, token_ids[:-1])) == "\nZoë \ufffd\ufffd"


def test_special_tokens_between_the_bytes_of_a_character_do_not_part_them():
    tokenizer = tokenizer_of("gemma")
    high, low = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "é".encode())
    assert "".join(pieces_of(tokenizer, [high, tokenizer.eos_token_id, low])) == "é"


@pytest.mark.parametrize("name", ["demo", "llama", "bytes"])
@pytest.mark.parametrize("kind", ["text", "broken", "nothing"])
def test_a_token_costs_a_few_decodings_of_a_few_tokens(name, kind, monkeypatch):
    """Bytes that never become a character and tokens of no text do not pile up."""
    tokenizer = tokenizer_of(name)
    encoded = tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]
    broken = {"demo": "ð", "llama": "<0xF0>", "bytes": chr(0xF0)}[name]
    token_ids = {"text": encoded, "broken": [tokenizer.convert_tokens_to_ids(broken)], "nothing": [10**6]}[
        kind
    ]
    if kind == "nothing" and name != "demo":
        pytest.skip("only fast tokenizers know no such token, and one of them is enough")
    decoded: list[int] = []
    whole = Detokeniser.__call__
    monkeypatch.setattr(
        Detokeniser, "__call__", lambda self, ids: (decoded.append(len(ids)), whole(self, ids))[1]
    )
    pieces_of(tokenizer, (token_ids * 400)[:400])
    assert max(decoded, default=0) <= 32
    assert sum(decoded) <= 400 * 80


@EVERY
@settings(max_examples=30)
@given(data=st.data())
def test_stop_strings_are_found_where_they_are_in_the_text(name, data):
    tokenizer = tokenizer_of(name)
    detokeniser = Detokeniser(tokenizer)
    text = data.draw(st.text(st.sampled_from("aéb 😀\n"), max_size=12))
    stops = data.draw(st.lists(st.text(st.sampled_from("aéb 😀\n"), min_size=1, max_size=3), max_size=2))
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = detokeniser.text(token_ids)
    stream = TextStream(detokeniser, stops)
    pieces = []
    for token_id in token_ids:
        stream.push([token_id])
        pieces.append(stream.take())
    pieces.append(stream.finish())
    together = TextStream(detokeniser, stops)
    together.push(token_ids)
    together.finish()
    assert "".join(pieces) == stream.text == together.text
    assert stream.stopped == any(stop in whole for stop in stops)
    assert whole.startswith(stream.text)
    assert not any(stop in stream.text for stop in stops)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_what_is_streamed_adds_up_to_what_is_generated(name):
    """A random model writes mostly bytes that are no characters."""
    tokenizer = tokenizer_of(name)
    lm = LanguageModel(CausalLM(build_model(vocab_size=len(tokenizer))), tokenizer, drafter="off")
    for seed in range(4):
        params = SamplingParams(max_new_tokens=24, temperature=1.5, seed=seed)
        pieces = list(lm.stream("aab", params))
        whole = lm.generate("aab", params)
        assert "".join(piece.text for piece in pieces) == whole.text == pieces[-1].output.text
        assert "\ufffd" in whole.text
