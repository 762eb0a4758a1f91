"""Where texts end, and the pieces that may be shown on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

import hasten
from hasten.core import SamplingParams
from hasten.detokenising import Detokeniser
from hasten.errors import ConfigError
from hasten.models.bundled_models import bundled_path
from hasten.stopping import StopConditions, TextStream

WORDS = ["a", "b", "ab", "ba", "aba", "", " ", "c"]


class Vocabulary:
    """A tokenizer that joins the bytes of its tokens, as byte-level ones do."""

    def __init__(self, *tokens):
        self._tokens = [token.encode() if isinstance(token, str) else bytes([token]) for token in tokens]

    def decode(self, token_ids, **options):
        return b"".join(self._tokens[token_id] for token_id in token_ids).decode(errors="replace")


def words(token_ids):
    return Vocabulary(*WORDS).decode(token_ids)


def utf8(token_ids):
    """One token a byte, as the smallest byte-level tokenizer has it."""
    return Vocabulary(*range(256)).decode(token_ids)


SPOKEN, BYTES = Detokeniser(Vocabulary(*WORDS)), Detokeniser(Vocabulary(*range(256)))


def pieces_of(stream, token_ids):
    shown = []
    for token_id in token_ids:
        stream.push([token_id])
        shown.append(stream.take())
    return [*shown, stream.finish()]


@given(st.lists(st.integers(0, len(WORDS) - 1)), st.integers(0, 6))
def test_stop_strings_count_behind_the_text_of_the_first_tokens(token_ids, min_tokens):
    stops = ["ab", "bab", "c"]
    head = words(token_ids[:min_tokens])
    shown = pieces_of(TextStream(SPOKEN, stops, min_tokens), token_ids)
    behind = pieces_of(TextStream(SPOKEN, stops), token_ids[min_tokens:])
    assert "".join(shown) == head + "".join(behind)
    assert "".join(shown[:min_tokens]) == head


@given(st.lists(st.integers(0, len(WORDS) - 1)), st.lists(st.sampled_from(["ab", "bab", "aab", "ca", "c"])))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(token_ids, stops):
    stream = TextStream(SPOKEN, stops)
    pieces = pieces_of(stream, token_ids)
    whole = words(token_ids)
    ends = [
        (end, start)
        for stop in stops
        for start in range(len(whole))
        for end in [start + len(stop)]
        if whole[start:end] == stop
    ]
    written = stream.text
    assert "".join(pieces) == written
    assert whole.startswith(written)
    assert stream.stopped == bool(ends)
    if not ends:
        assert written == whole
    assert not any(stop in written for stop in stops)


@given(st.text(alphabet="aé€😀\ufffd", max_size=12))
def test_unfinished_characters_are_held_back(text):
    token_ids = list(text.encode())
    stream = TextStream(BYTES)
    pieces = pieces_of(stream, token_ids)
    assert "".join(pieces) == text
    assert all(set(piece) <= set(text) for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=20))
def test_broken_characters_show_as_they_do_in_the_whole_text(token_ids):
    assert "".join(pieces_of(TextStream(BYTES), token_ids)) == utf8(token_ids)


@given(st.lists(st.integers(0, 255), max_size=12), st.integers(1, 12))
def test_how_tokens_are_grouped_does_not_change_the_text(token_ids, size):
    stream = TextStream(BYTES, ["xy"])
    for start in range(0, len(token_ids), size):
        stream.push(token_ids[start : start + size])
    stream.finish()
    assert stream.text == "".join(pieces_of(TextStream(BYTES, ["xy"]), token_ids))


def test_what_may_become_a_stop_string_is_held_back_and_released():
    stream = TextStream(SPOKEN, ["abac"])
    shown = pieces_of(stream, [0, 1, 0, 1, 7])  # a b a b c
    assert shown == ["", "", "", "ab", "abc", ""]
    assert "".join(shown) == "ababc"


def test_tokens_after_a_stop_string_are_ignored():
    stream = TextStream(SPOKEN, ["b"])
    stream.push([0, 1, 7, 7])
    assert (stream.text, stream.stopped, stream.take(), stream.finish()) == ("a", True, "a", "")


def test_a_stop_string_inside_one_token_is_found():
    stream = TextStream(SPOKEN, ["b"])
    stream.push([4])  # aba
    assert (stream.text, stream.stopped) == ("a", True)


def test_a_stop_string_across_many_tokens_is_found():
    stream = TextStream(SPOKEN, ["abcabc"])
    assert "".join(pieces_of(stream, [7, 2, 7, 2, 7, 0])) == "c"
    assert stream.stopped


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_path("demo"))


@settings(max_examples=60)
@given(st.text(max_size=15), st.text(min_size=1, max_size=2))
def test_stop_strings_cut_what_the_demo_tokenizer_writes(tokenizer, text, stop):
    token_ids = tokenizer(text)["input_ids"]
    stream = TextStream(Detokeniser(tokenizer), [stop])
    assert "".join(pieces_of(stream, token_ids)) == tokenizer.decode(token_ids).split(stop)[0]


def test_stop_tokens_come_before_the_limit():
    rule = StopConditions(frozenset([9]), 3, None)
    assert [rule.after(token) for token in (1, 2, 9)] == [None, None, "stop"]


def test_the_limit_ends_a_text():
    rule = StopConditions(frozenset([9]), 3, None)
    assert [rule.after(token) for token in (1, 2, 3)] == [None, None, "length"]


def test_stop_strings_end_a_text_with_the_token_that_completes_them():
    rule = StopConditions(frozenset(), 9, TextStream(SPOKEN, ["bab"]))
    assert [rule.after(token) for token in (0, 1, 0, 2)] == [None, None, None, None]
    rule = StopConditions(frozenset(), 9, TextStream(SPOKEN, ["bab"]))
    assert [rule.after(token) for token in (1, 0, 3)] == [None, None, "stop"]


class Forced:
    """A processor that writes these tokens, one after the other."""

    def __init__(self, token_ids):
        self.left = list(token_ids)

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.left.pop(0)] = 0
        return forced


@pytest.mark.parametrize("stop", ["<|pad|>", ["no such text", "<|pad|>"]])
def test_a_special_token_among_the_stop_strings_stops_as_its_id_does(demo, stop):
    """Texts leave special tokens out, so that the string itself never appears."""
    words = demo.tokenizer("Once upon a time")["input_ids"]
    pad = demo.tokenizer.convert_tokens_to_ids("<|pad|>")
    written = [*words[:2], pad, *words[2:]]
    params = SamplingParams(
        max_new_tokens=len(written), ignore_eos=True, stop=stop, logits_processors=[Forced(written)]
    )
    found = demo.generate("User:", params)
    by_id = demo.generate("User:", replace(params, stop=(), stop_token_ids=pad))
    assert (found.text, found.token_ids, found.finish_reason) == (by_id.text, written[:3], "stop")
    *_, last = demo.stream("User:", params)
    assert last.output == found or last.output.token_ids == found.token_ids


def test_ordinary_characters_that_spell_a_special_token_stop_too(demo):
    spelt = [token for part in ("Once ", "<|", "pad", "|>", " more") for token in _bare(demo, part)]
    params = SamplingParams(
        max_new_tokens=len(spelt), ignore_eos=True, stop="<|pad|>", logits_processors=[Forced(spelt)]
    )
    found = demo.generate("User:", params)
    assert (found.text, found.finish_reason) == ("Once ", "stop")


def _bare(lm, text):
    return lm.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_a_stop_string_with_a_special_token_and_more_is_refused(demo):
    for stop in ("<|pad|>\n", "a<|endoftext|>"):
        with pytest.raises(ConfigError, match=r"would never be found.*special tokens such as '<\|"):
            demo.generate("User:", SamplingParams(stop=stop))


def test_a_special_token_stops_a_canvas_too():
    lm = hasten.load_diffusion("demo-diffusion", dtype="float32", device="cpu")
    params = SamplingParams(max_new_tokens=32, ignore_eos=True)
    prompt, eos = "User: Hello!\nAssistant:", lm.denoiser.spec.eos_ids[0]
    end = lm.tokenizer.convert_ids_to_tokens(eos)
    plain, stopped = lm.generate(prompt, params), lm.generate(prompt, replace(params, stop=end))
    assert stopped.token_ids == plain.token_ids[: plain.token_ids.index(eos) + 1]
    assert (plain.finish_reason, stopped.finish_reason) == ("length", "stop")
    with pytest.raises(ConfigError, match="would never be found"):
        lm.generate("Once upon a time", replace(params, stop=f"{end}!"))
