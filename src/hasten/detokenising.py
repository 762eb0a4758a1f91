"""Token ids to text, token by token, so that what was shown never has to be taken back.

Knows one tokenizer, which is passed in; knows nothing of stop strings and of who shows the text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4
"""bytes, and so at most as many tokens"""
_LONGEST_HELD = 16


class Detokeniser:
    """What a growing text needs to know of a tokenizer; with None, every text is empty.

    Attributes:
        byte_tokens: id -> byte, of a vocabulary that spells what it lacks in bytes (``<0xC3>``).
        skipped: ids of tokens that stand for no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.byte_tokens = {} if tokenizer is None else _byte_tokens(tokenizer)
        self.skipped = frozenset() if tokenizer is None else _special_ids(tokenizer)

    def __call__(self, token_ids: list[int]) -> str:
        """As the tokenizer decodes them."""
        if self._tokenizer is None:
            return ""
        return str(
            self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def text(self, token_ids: Iterable[int]) -> str:
        """As a ``GrowingText`` of these tokens ends."""
        growing = GrowingText(self)
        return "".join([*map(growing.push, token_ids), growing.finish()])


def _byte_tokens(tokenizer: Any) -> dict[int, int]:
    to_id, to_token = (
        getattr(tokenizer, f"convert_{name}", None) for name in ("tokens_to_ids", "ids_to_tokens")
    )
    if to_id is None or to_token is None:
        return {}
    names = {f"<0x{byte:02X}>": byte for byte in range(256)}
    found = {to_id(name): (name, byte) for name, byte in names.items()}
    ids = {each: byte for each, (name, byte) in found.items() if each is not None and to_token(each) == name}
    # Names alone do not make them bytes: a tokenizer without the fallback writes them out.
    return {each: byte for each, byte in ids.items() if tokenizer.decode([each]) in {chr(byte), BROKEN, ""}}


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token_id for token_id, token in added.items() if token.special)


class GrowingText:
    """The text of tokens as they come; what ``push`` and ``finish`` give adds up to it.

    That is what the tokenizer decodes all of them to, with one exception. Decoders with a byte fallback give
    up a whole run of byte tokens when its last character is cut off or broken; here its complete characters
    survive, and each byte that is part of none is one U+FFFD.

    A token costs a few decodings of a few tokens, whatever was written before.
    """

    def __init__(self, detokeniser: Detokeniser) -> None:
        self._detokeniser = detokeniser
        self._context: list[int] = []  # tokens before the held ones, so that these join as in the full text
        self._context_text = ""
        self._held: list[int] = []  # their text may still change
        self._bytes = bytearray()  # of an unfinished character
        self._is_empty = True

    def push(self, token_id: int) -> str:
        """What is certain now and was not before."""
        if token_id in self._detokeniser.skipped:
            return ""
        byte = self._detokeniser.byte_tokens.get(token_id)
        text = self._end_bytes() + self._grow(token_id) if byte is None else self._spell(token_id, byte)
        self._is_empty = self._is_empty and not text
        return text

    def finish(self) -> str:
        """Nothing more comes: the rest, unfinished characters included."""
        return self._end_held() + self._end_bytes()

    def fork(self) -> GrowingText:
        """One that has read the same tokens, and goes on by itself."""
        forked = copy.copy(self)
        forked._context, forked._held = list(self._context), list(self._held)
        forked._bytes = bytearray(self._bytes)
        return forked

    def _grow(self, token_id: int) -> str:
        self._held.append(token_id)
        text = self._held_text()
        if text and not text.endswith(BROKEN):
            return self._end(text, len(self._held))
        return self._forget_held(text) if len(self._held) > _LONGEST_CHARACTER else ""

    def _held_text(self) -> str:
        return self._detokeniser(self._context + self._held)[len(self._context_text) :]

    def _end_held(self) -> str:
        return self._end(self._held_text(), len(self._held)) if self._held else ""

    def _end(self, text: str, count: int) -> str:
        """The text of the first held tokens is certain, and they become the context of those that follow."""
        self._context, self._held = self._held[:count], self._held[count:]
        self._context_text = self._detokeniser(self._context)
        return text

    def _forget_held(self, text: str) -> str:
        """An unfinished character has at most three tokens, so what is held before them cannot change.

        Only a place between two characters will do: elsewhere both halves would show broken ones.
        """
        decode = self._detokeniser
        for count in range(len(self._held) - _LONGEST_CHARACTER + 1, len(self._held)):
            head = decode(self._context + self._held[:count])[len(self._context_text) :]
            tail = decode(self._held)[len(decode(self._held[:count])) :]
            if head + tail == text:
                return self._end(head, count)
        return self._end_held() if len(self._held) > _LONGEST_HELD else ""

    def _spell(self, token_id: int, byte: int) -> str:
        text = self._end_held()
        if self._is_empty and not text and not self._bytes and byte == ord(" "):
            return self._grow(token_id)  # decoders may strip it there
        self._bytes.append(byte)
        text += self._read_bytes()
        self._context, self._context_text = [token_id], self._detokeniser([token_id])
        return text

    def _read_bytes(self) -> str:
        broken = ""
        while self._bytes:
            try:
                text = self._bytes.decode()
            except UnicodeDecodeError as problem:
                if problem.reason == "unexpected end of data":
                    return broken
                broken += BROKEN * problem.end
                del self._bytes[: problem.end]
            else:
                self._bytes.clear()
                return broken + text
        return broken

    def _end_bytes(self) -> str:
        text = BROKEN * len(self._bytes)
        self._bytes.clear()
        return text
