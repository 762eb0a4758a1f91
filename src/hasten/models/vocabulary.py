"""Which token of one tokenizer is which of another's, and how a text in one is read in the other.

The draft guesses tokens that both have, and only those (the intersection of arXiv 2502.05202). A token is the
bytes it stands for in byte-level BPE and SentencePiece vocabularies; control tokens are shared by name. Not
known: vocabularies whose tokens read differently by place (WordPiece's "##").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.core import System
from hasten.errors import ConfigError, IncompatibleModels

SYSTEM = System(
    name="shared-tokens",
    title="Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies",
    arxiv="2502.05202",
    kind="draft model",
    guarantee="exact",
    module="hasten.models.vocabulary",
    summary="a draft model with another tokenizer guesses the tokens that both have",
)

MIN_SHARED_TOKENS = 16
MIN_SHARED_PERCENT = 1
_SPACE = "▁"
_BYTE_SPACE = "Ġ"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def vocabulary_fingerprint(tokenizer: Any, vocab_size: int) -> str:
    """Identifies a tokenizer's vocabulary, or without a tokenizer the range of token ids."""
    if tokenizer is None:
        return f"token-ids-{vocab_size}"
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]


class VocabularyMap:
    """The same tokens under the same ids; either model may have padding ids above the other's.

    Attributes:
        draft_of: int64 [target vocabulary], the draft's id of a shared token, -1 for others.
        num_shared: how many tokens are shared.
        is_same: whether both models have one tokenizer.
    """

    is_same = True

    def __init__(self, target_size: int, draft_size: int) -> None:
        self.draft_of: NDArray[np.int64] = np.arange(target_size, dtype=np.int64)
        self.draft_of[draft_size:] = -1

    @property
    def num_shared(self) -> int:
        return int((self.draft_of >= 0).sum())

    def to_draft(self, target_ids: list[int]) -> list[int]:
        """The draft's ids of these tokens. One that is not shared becomes several, or none if it is empty.

        What a text becomes is what its parts become, one after the other.
        """
        draft_ids = self.draft_of[np.array(target_ids, np.int64)].tolist()
        if -1 not in draft_ids:
            return list(draft_ids)
        found: list[int] = []
        for target_id, draft_id in zip(target_ids, draft_ids, strict=True):
            if draft_id >= 0:
                found.append(draft_id)
            else:
                found += self._spelled(target_id)
        return found

    def _spelled(self, target_id: int) -> tuple[int, ...]:
        return ()


class SharedTokens(VocabularyMap):
    """Two tokenizers: shared are the tokens that stand for the same bytes, and equal control tokens.

    Raises IncompatibleModels where hardly any token is shared.
    """

    is_same = False

    def __init__(
        self, target_tokenizer: Any, target_size: int, draft_tokenizer: Any, draft_size: int
    ) -> None:
        self._target = _Tokens.of(target_tokenizer, target_size)
        self._draft = _Tokens.of(draft_tokenizer, draft_size)
        self._draft_tokenizer = draft_tokenizer
        self._roles = dict(_same_roles(target_tokenizer, draft_tokenizer))
        self._spellings: dict[int, tuple[int, ...]] = {}
        self.draft_of = np.full(target_size, -1, np.int64)
        for theirs, ours in (
            (self._target.by_bytes, self._draft.by_bytes),
            (self._target.controls, self._draft.controls),
        ):
            for token, target_id in theirs.items():
                self.draft_of[target_id] = ours.get(token, -1)
        needed = max(MIN_SHARED_TOKENS, MIN_SHARED_PERCENT * min(target_size, draft_size) // 100)
        if self.num_shared < needed:
            raise IncompatibleModels(
                f"the draft shares {self.num_shared} tokens with the target's vocabulary of {target_size}, "
                f"at least {needed} are needed; choose a draft with a tokenizer more like the target's"
            )

    def _spelled(self, target_id: int) -> tuple[int, ...]:
        if target_id not in self._spellings:
            self._spellings[target_id] = tuple(self._spell(target_id))
        return self._spellings[target_id]

    def _spell(self, target_id: int) -> list[int]:
        if target_id in self._roles:
            return [self._roles[target_id]]
        wanted = self._target.bytes_of.get(target_id, b"")
        text = wanted.decode("utf-8", errors="ignore")
        # SentencePiece puts a space before a text by itself, so that of the token may be one too many.
        for attempt in (text, text.removeprefix(" ")):
            if text.encode() == wanted and attempt:
                ids = list(self._draft_tokenizer.encode(attempt, add_special_tokens=False))
                if self._draft.spells(ids, wanted):
                    return ids
        return list(self._draft.longest_match(wanted))


def ordinary_token_bytes(tokenizer: Any, vocab_size: int) -> dict[int, bytes]:
    """What each token below ``vocab_size`` stands for, without control tokens, which stand for no text."""
    tokens = _Tokens.of(tokenizer, vocab_size)
    return {each: text for each, text in tokens.bytes_of.items() if each not in tokens.control_ids}


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What the ids of one tokenizer stand for; of several ids for the same bytes, ``by_bytes`` has one."""

    bytes_of: dict[int, bytes]
    by_bytes: dict[bytes, int]
    controls: dict[bytes, int]
    control_ids: frozenset[int]
    unknown: int | None
    _longest: int = field(default=0)

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int) -> _Tokens:
        vocabulary = {
            token_id: token for token, token_id in tokenizer.get_vocab().items() if token_id < vocab_size
        }
        added = getattr(tokenizer, "added_tokens_decoder", {})
        controls = {*tokenizer.all_special_ids, *(each for each, token in added.items() if token.special)}
        is_byte_level = _is_byte_level(vocabulary.values())
        bytes_of: dict[int, bytes] = {}
        ordinary: list[tuple[bool, int]] = []
        for token_id, token in sorted(vocabulary.items()):
            is_literal = token_id in added or token_id in controls
            bytes_of[token_id] = _literal(token) if is_literal else _bytes_of(token, is_byte_level)
            if token_id not in controls:
                ordinary.append((_is_byte_token(token), token_id))
        by_bytes: dict[bytes, int] = {}
        for _, token_id in sorted(ordinary):  # byte tokens last: "A" is written as A, seldom as <0x41>
            if bytes_of[token_id]:
                by_bytes.setdefault(bytes_of[token_id], token_id)
        named = {bytes_of[each]: each for each in sorted(controls) if each in bytes_of}
        longest = max(map(len, by_bytes), default=0)
        return cls(bytes_of, by_bytes, named, frozenset(controls), tokenizer.unk_token_id, longest)

    def spells(self, ids: list[int], wanted: bytes) -> bool:
        """Whether ordinary tokens spell just these bytes."""
        return (
            not set(ids).intersection(self.controls.values())
            and b"".join(self.bytes_of.get(each, b"") for each in ids) == wanted
        )

    def longest_match(self, wanted: bytes) -> Iterator[int]:
        """The longest token that fits, again and again; bytes no token has become the unknown token."""
        start = 0
        while start < len(wanted):
            ends = range(min(len(wanted), start + self._longest), start, -1)
            end = next((end for end in ends if wanted[start:end] in self.by_bytes), None)
            if end is not None:
                yield self.by_bytes[wanted[start:end]]
            elif self.unknown is not None:
                yield self.unknown
            start = end or start + 1


def _same_roles(target_tokenizer: Any, draft_tokenizer: Any) -> Iterator[tuple[int, int]]:
    """What a control token is read as where the draft has it under another name.

    A draft without a token for the beginning reads that of the end, which it saw between texts.
    """
    for role in reversed(_ROLES):  # of a token with several roles the first counts
        ours = getattr(draft_tokenizer, role, None)
        if ours is None and role == "bos_token_id":
            ours = draft_tokenizer.eos_token_id
        theirs = getattr(target_tokenizer, role, None)
        if theirs is not None and ours is not None:
            yield theirs, ours


def _byte_alphabet() -> dict[str, int]:
    """The character for each byte in GPT-2's byte-level vocabularies: itself where it is printable."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _is_byte_level(tokens: Any) -> bool:
    written = [token for token in tokens if isinstance(token, str)]
    return sum(_BYTE_SPACE in token for token in written) >= sum(_SPACE in token for token in written)


def _bytes_of(token: str | bytes, is_byte_level: bool) -> bytes:
    if isinstance(token, bytes):
        return token
    if is_byte_level and all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    if not is_byte_level and (found := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(found[1], 16)])
    return (token if is_byte_level else token.replace(_SPACE, " ")).encode()


def _literal(token: str | bytes) -> bytes:
    return token if isinstance(token, bytes) else token.encode()


def _is_byte_token(token: str | bytes) -> bool:
    return isinstance(token, str) and _BYTE_TOKEN.fullmatch(token) is not None


def vocabulary_map(
    target_tokenizer: Any, target_size: int, draft_tokenizer: Any, draft_size: int
) -> VocabularyMap:
    """How a draft reads and writes the target's tokens.

    Without both tokenizers, vocabularies of one size are taken for the same.

    Raises:
        ConfigError: the vocabularies differ, and a tokenizer is missing.
        IncompatibleModels: they share too few tokens.
    """
    if target_tokenizer is None or draft_tokenizer is None:
        if target_size == draft_size:
            return VocabularyMap(target_size, draft_size)
        whose = "target" if target_tokenizer is None else "draft"
        raise ConfigError(
            f"target and draft have {target_size} and {draft_size} tokens, and the {whose} has no tokenizer "
            "to tell which are the same; load both by name, or give tokenizer= with a model object"
        )
    prints = [
        vocabulary_fingerprint(tokenizer, size)
        for tokenizer, size in ((target_tokenizer, target_size), (draft_tokenizer, draft_size))
    ]
    if prints[0] == prints[1]:
        return VocabularyMap(target_size, draft_size)
    return SharedTokens(target_tokenizer, target_size, draft_tokenizer, draft_size)
