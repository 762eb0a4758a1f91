"""Where a text ends, decided token by token, and the text that may be shown so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hasten.core import FinishReason

Decode = Callable[[list[int]], str]


class TextStream:
    """Detokenises as tokens arrive; the text ends before the first stop string.

    Text is held back while it may still change: an unfinished UTF-8 character, or the beginning of what may
    become a stop string. The pieces always add up to the final text.
    """

    def __init__(self, decode: Decode, stop_strings: Iterable[str] = ()) -> None:
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._token_ids: list[int] = []
        self._context_start = 0  # decoding starts here, so that tokens join as they do in the full text
        self._read_end = 0  # tokens before this are in self.text
        self.text = ""
        self._shown = 0
        self.stopped = False

    def push(self, token_ids: Iterable[int]) -> None:
        """Append tokens; sets ``stopped`` when a stop string is complete."""
        if not self._stop_strings:
            self._token_ids += token_ids
            self._read(final=False)
            return
        for token_id in token_ids:
            if not self.stopped:
                self._token_ids.append(token_id)
                self._read(final=False)

    def take(self) -> str:
        """The text that can be shown and was not shown yet."""
        end = len(self.text) if self.stopped else len(self.text) - self._num_held_back()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def finish(self) -> str:
        """Nothing more comes: the rest of the text, an unfinished character included."""
        if not self.stopped:
            self._read(final=True)
        piece = self.text[self._shown :]
        self._shown = len(self.text)
        return piece

    def _read(self, final: bool) -> None:
        before = self._decode(self._token_ids[self._context_start : self._read_end])
        after = self._decode(self._token_ids[self._context_start :])
        if not final and (after.endswith("\ufffd") or len(after) <= len(before)):
            return
        start = len(self.text)
        self.text += after[len(before) :]
        self._context_start, self._read_end = self._read_end, len(self._token_ids)
        longest = max(map(len, self._stop_strings), default=0)
        found = [self.text.find(stop, max(0, start - longest + 1)) for stop in self._stop_strings]
        if hits := [index for index in found if index >= 0]:
            self.text = self.text[: min(hits)]
            self.stopped = True

    def _num_held_back(self) -> int:
        longest = max((len(stop) for stop in self._stop_strings), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self._stop_strings):
                return size
        return 0


class StopConditions:
    """Stop tokens, stop strings and the token limit of one sequence, checked in that order."""

    def __init__(self, stop_token_ids: frozenset[int], max_tokens: int, stream: TextStream | None) -> None:
        self._stop_token_ids = stop_token_ids
        self._num_left = max_tokens
        self._stream = stream

    def after(self, token_id: int) -> FinishReason | None:
        """Why the sequence ends with this token, or None."""
        self._num_left -= 1
        if self._stream is not None:
            self._stream.push([token_id])
        if token_id in self._stop_token_ids or (self._stream is not None and self._stream.stopped):
            return "stop"
        return "length" if self._num_left <= 0 else None
