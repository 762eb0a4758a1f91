"""Where a text ends, decided token by token, and the text that may be shown so far."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from hasten.core import FinishReason
from hasten.detokenising import Detokeniser, GrowingText
from hasten.errors import ConfigError


class TextStream:
    """Detokenises as tokens arrive; the text ends before the first stop string.

    Text is held back while it may still change: an unfinished UTF-8 character, or the beginning of what may
    become a stop string. The pieces always add up to the final text, which is the same however the tokens
    arrive.

    Args:
        min_tokens: a stop string counts only if it begins after the text of so many tokens.
    """

    def __init__(
        self, detokeniser: Detokeniser, stop_strings: Iterable[str] = (), min_tokens: int = 0
    ) -> None:
        self._growing = GrowingText(detokeniser)
        self._stop_strings = tuple(stop_strings)
        self._longest = max(map(len, self._stop_strings), default=0)
        self._num_exempt = min_tokens
        self._exempt_end = 0  # of the text
        self.text = ""
        self._shown = 0
        self.stopped = False

    def push(self, token_ids: Iterable[int]) -> None:
        """Append tokens; sets ``stopped`` when a stop string is complete. Tokens after it are ignored."""
        for token_id in token_ids:
            if self.stopped:
                return
            self._append(self._growing.push(token_id))
            self._num_exempt -= 1

    def take(self) -> str:
        """The text that can be shown and was not shown yet."""
        end = len(self.text) if self.stopped else len(self.text) - self._num_held_back()
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def finish(self) -> str:
        """Nothing more comes: the rest of the text, an unfinished character included."""
        if not self.stopped:
            self._append(self._growing.finish())
        piece = self.text[self._shown :]
        self._shown = len(self.text)
        return piece

    def fork(self) -> TextStream:
        """One with the same text so far, which goes on by itself."""
        forked = copy.copy(self)
        forked._growing = self._growing.fork()
        return forked

    def _append(self, text: str) -> None:
        if not text:
            return
        start = max(self._exempt_end, len(self.text) - self._longest + 1)
        self.text += text
        if self._num_exempt > 0:
            self._exempt_end = len(self.text)
            return
        found = [self.text.find(stop, start) for stop in self._stop_strings]
        if hits := [index for index in found if index >= 0]:
            self.text = self.text[: min(hits)]
            self.stopped = True

    def _num_held_back(self) -> int:
        for size in range(min(self._longest - 1, len(self.text) - self._exempt_end), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self._stop_strings):
                return size
        return 0


def special_stops(tokenizer: Any, stop_strings: Iterable[str]) -> frozenset[int]:
    """Ids of the special tokens among stop strings, which texts leave out, so that only an id can find them.

    Raises ConfigError for a string with a special token and more, which would never be found.
    """
    stops = tuple(stop_strings)
    special = dict(_special_tokens_in(stops, tokenizer))
    for stop in stops:
        inside = next((name for name in special if name in stop), None) if stop not in special else None
        if inside is not None:
            raise ConfigError(
                f"stop={stop!r} would never be found: texts leave special tokens such as {inside!r} out; "
                f"stop at {inside!r} alone, or at the rest"
            )
    return frozenset(special[stop] for stop in stops if stop in special)


def _special_tokens_in(stops: tuple[str, ...], tokenizer: Any) -> Iterator[tuple[str, int]]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for token_id in {*getattr(tokenizer, "all_special_ids", ()), *added}:
        is_added = token_id in added
        name = str(added[token_id].content if is_added else tokenizer.convert_ids_to_tokens(token_id))
        is_inside = bool(name) and any(name in stop for stop in stops)
        # Decoding last: it takes time, and vocabularies have thousands of added tokens.
        if is_inside and not tokenizer.decode([token_id], skip_special_tokens=True):
            yield name, token_id


class StopConditions:
    """Stop tokens, stop strings and the token limit of one sequence, checked in that order."""

    def __init__(self, stop_token_ids: frozenset[int], max_tokens: int, stream: TextStream | None) -> None:
        self._stop_token_ids = stop_token_ids
        self._num_left = max_tokens
        self.stream = stream
        """the text that stop strings are looked for in"""

    def after(self, token_id: int) -> FinishReason | None:
        """Why the sequence ends with this token, or None."""
        self._num_left -= 1
        if self.stream is not None:
            self.stream.push([token_id])
        if token_id in self._stop_token_ids or (self.stream is not None and self.stream.stopped):
            return "stop"
        return "length" if self._num_left <= 0 else None

    def fork(self) -> StopConditions:
        """See ForkingStopRule."""
        stream = None if self.stream is None else self.stream.fork()
        return StopConditions(self._stop_token_ids, self._num_left, stream)
