"""A tokenizer's tokens as byte strings in one trie, and what an automaton over bytes does with each.

Tokens that begin alike are read together, and a token ends where the automaton does not go on: a state costs
what it takes, not the vocabulary. Control tokens stand for no text and are not in the trie.
"""

# ruff: noqa: PLR0917 - kernels take plain arrays one by one, which keeps their calls cheap

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hasten.constraints.automaton import DEAD, Grouping, TokenAutomaton
from hasten.constraints.bytes_dfa import ByteDfa
from hasten.errors import ConfigError
from hasten.models.vocabulary import ordinary_token_bytes

MAX_TABLE = 100_000_000
"""Entries of an automaton over classes of tokens, four bytes each."""


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """What the ordinary tokens stand for. Raises ConfigError without a tokenizer."""
    if tokenizer is None:
        raise ConfigError(
            "a constraint on text needs a tokenizer; load the model by name, or give tokenizer="
        )
    return ordinary_token_bytes(tokenizer, len(tokenizer))


class ByteTrie:
    """Byte strings by their beginnings. Nodes are in preorder, so whole subtrees can be skipped.

    Attributes:
        parents: int32 [nodes], the root's is -1.
        last_bytes: uint8 [nodes], the byte that leads to a node.
        ends: int32 [nodes], the first node after the subtree.
        ending: int64 [strings], the nodes where a string ends, rising.
        ids: per entry of ``ending`` the tokens that are this string.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        by_bytes: dict[bytes, list[int]] = {}
        for token_id, text in sorted(tokens.items()):
            if text:  # a token without text would make texts of every length of it
                by_bytes.setdefault(text, []).append(token_id)
        parents, last_bytes, ends, ending = [-1], [0], [0], []
        path, before = [0], b""
        for text in sorted(by_bytes):
            shared = _num_shared(before, text)
            for node in path[shared + 1 :]:
                ends[node] = len(parents)
            del path[shared + 1 :]
            for byte in text[shared:]:
                parents.append(path[-1])
                last_bytes.append(byte)
                ends.append(0)
                path.append(len(parents) - 1)
            ending.append(path[-1])
            before = text
        for node in path:
            ends[node] = len(parents)
        self.parents = np.array(parents, np.int32)
        self.last_bytes = np.array(last_bytes, np.uint8)
        self.ends = np.array(ends, np.int32)
        self.ending = np.array(ending, np.int64)
        self.ids = [by_bytes[text] for text in sorted(by_bytes)]

    def automaton(self, dfa: ByteDfa) -> TokenAutomaton:
        """The automaton over tokens of the texts that ``dfa`` accepts.

        Raises ConfigError if it gets too large.
        """
        grouping = Grouping(len(self.ending))
        walked = np.full(len(self.parents), DEAD, np.int32)
        arrays = (self.parents, self.last_bytes, self.ends, self.ending, walked)
        for state in range(dfa.num_states):
            grouping.refine(*_taken(state, dfa.next_states, *arrays))
        class_of_string, num_classes = grouping.classes()
        if dfa.num_states * num_classes > MAX_TABLE:
            raise ConfigError(
                f"the constraint has {dfa.num_states} states for {num_classes} kinds of tokens, more than "
                f"{MAX_TABLE} entries; lower its repetition counts, or repeat without a limit"
            )
        table = np.full((dfa.num_states, num_classes), DEAD, np.int32)
        for state in range(dfa.num_states):
            strings, nexts = _taken(state, dfa.next_states, *arrays)
            table[state, class_of_string[strings]] = nexts
        num_tokens = 1 + max((max(ids) for ids in self.ids), default=-1)
        class_of = np.full(num_tokens, DEAD, np.int32)
        for ids, symbol in zip(self.ids, class_of_string, strict=True):
            class_of[ids] = symbol
        return TokenAutomaton(table, class_of, dfa.is_final, dfa.start)


def _num_shared(one: bytes, other: bytes) -> int:
    """Bytes at the beginning that are the same."""
    return next(
        (index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs),
        min(len(one), len(other)),
    )


@numba.njit(cache=True)
def _taken(  # type: ignore[no-untyped-def]
    state, next_states, parents, last_bytes, ends, ending, walked
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The strings that can be read from a state, and where they lead; ``walked`` is scratch [nodes]."""
    strings = np.empty(len(ending), np.int64)
    nexts = np.empty(len(ending), np.int64)
    num_taken, string, node = 0, 0, 1
    walked[0] = state
    while node < len(parents):
        reached = next_states[walked[parents[node]], last_bytes[node]]
        if reached < 0:
            node = ends[node]
            continue
        walked[node] = reached
        while string < len(ending) and ending[string] < node:
            string += 1
        if string < len(ending) and ending[string] == node:
            strings[num_taken] = string
            nexts[num_taken] = reached
            num_taken += 1
        node += 1
    return strings[:num_taken], nexts[:num_taken]
