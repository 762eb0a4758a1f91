"""Texts of a context-free grammar, exact for the length of the span.

The cost grows with the third power of the points between which a rule may span: refused above MAX_POINTS, and
where memory would not do. Grammars over few kinds of tokens go far; those with free text need short spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.constraints.base import AllowedTokens, ConstraintRun, Flags, Ids, checked_span
from hasten.constraints.context_free import BinaryRules, ContextFreeGrammar, binary_rules
from hasten.constraints.intersection import DEAD, OPEN, Intersection, KindTrie
from hasten.constraints.token_kinds import token_kinds
from hasten.core import System
from hasten.errors import ConfigError

SYSTEM = System(
    name="grammar-constraint",
    title="Constrained Decoding of Diffusion LLMs with Context-Free Grammars",
    arxiv="2508.10111",
    kind="constraint",
    guarantee="exact",
    module="hasten.constraints.grammar",
    summary="only tokens after which a text of the grammar can still be completed, exact for the length",
)

MAX_POINTS = 4096
"""Positions times the points inside each."""
MAX_MEMORY = 1 << 30
"""Bytes for the spans of one canvas."""
MAX_LENGTHS_TRIED = 8
"""Where a length does not work, so many next to it are tried on each side."""


class GrammarConstraint:
    """The texts of a grammar, written in tokens that are byte strings."""

    def __init__(
        self, grammar: ContextFreeGrammar, tokens: Mapping[int, bytes], name: str = "grammar"
    ) -> None:
        self.name = name
        grammar = grammar.trimmed()
        kinds = token_kinds(grammar, tokens)
        self._texts = list(kinds)
        self._ids = list(kinds.values())
        self._rules = binary_rules(grammar)

    def start(self, span: tuple[int, int], eos_ids: Sequence[int], vocab_size: int) -> ConstraintRun:
        begin, end = checked_span(span, eos_ids, vocab_size)
        num_kinds = len(self._texts)
        class_of = np.full(vocab_size, num_kinds + 1, np.int32)
        written: list[bytes] = []
        for kind, ids in enumerate(self._ids):
            inside = [one for one in ids if one < vocab_size and one not in eos_ids]
            class_of[inside] = len(written)
            if inside:
                written.append(self._texts[kind])
        class_of[class_of == num_kinds + 1] = len(written) + 1
        class_of[list(eos_ids)] = len(written)
        trie = KindTrie.of(written)
        self._check_size(trie, end - begin)
        run = GrammarRun(Intersection(self._rules, trie, end - begin), class_of, begin, bool(eos_ids))
        if not run.can_be_completed:
            raise ConfigError(self._no_text(trie, end - begin, bool(eos_ids)))
        return run

    def _check_size(self, trie: KindTrie, length: int) -> None:
        """Refuse what would take too long."""
        most = min(_most_points(self._rules), MAX_POINTS) // trie.num_nodes
        if length > most:
            raise ConfigError(
                f"{length} open positions are too many for the constraint {self.name!r}, which needs "
                f"{trie.num_nodes} points for each; open at most {most}, or use a regex or a JSON schema"
            )

    def _no_text(self, trie: KindTrie, length: int, may_end: bool) -> str:
        near = []
        for other in range(max(1, length - MAX_LENGTHS_TRIED), length + MAX_LENGTHS_TRIED + 1):
            if other * trie.num_nodes <= min(_most_points(self._rules), MAX_POINTS):
                tried = Intersection(self._rules, trie, other)
                tried.follow(np.full(other, OPEN, np.int64))
                if tried.ends()[other]:
                    near.append(other)
        amount = "at most" if may_end else "exactly"
        below = [str(one) for one in near if one < length][-1:]
        above = [str(one) for one in near if one > length][:1]
        found = " and ".join(below + above)
        return f"no text of {amount} {length} tokens fits the constraint {self.name!r}; " + (
            f"the nearest lengths are {found}: open that many positions" if found else "open more positions"
        )


def _most_points(rules: BinaryRules) -> int:
    """So many that two sets of spans fit into the memory."""
    return int((MAX_MEMORY * 4 / rules.num_symbols) ** 0.5)


class GrammarRun:
    """One span's intersection with the grammar.

    Classes are the kinds of tokens, then the end of text, then all that fits nowhere.
    """

    def __init__(
        self, intersection: Intersection, class_of: NDArray[np.int32], begin: int, may_end: bool
    ) -> None:
        self._intersection = intersection
        self._class_of = class_of
        self._begin, self._end = begin, begin + intersection.length
        self._may_end = may_end
        self._num_kinds = intersection.num_kinds
        self._canvas: NDArray[np.int64] = np.full(intersection.length, OPEN, np.int64)
        self._classes: Flags | None = None

    @property
    def can_be_completed(self) -> bool:
        self._intersection.follow(self._kinds_at())
        return bool((self._intersection.ends() & self._may_stop()).any())

    def allowed(self, token_ids: Ids, is_open: Flags) -> AllowedTokens:
        self._follow(token_ids, is_open)
        places = np.flatnonzero(is_open[self._begin : self._end])
        return AllowedTokens(places + self._begin, self._analysed()[places], self._class_of)

    def admit(self, token_ids: Ids, is_open: Flags, position: int, token_id: int) -> bool:
        if not self._begin <= position < self._end:
            return True
        if not is_open[position]:
            is_open = is_open.copy()
            is_open[position] = True
        self._follow(token_ids, is_open)
        return bool(self._analysed()[position - self._begin, self._class_of[token_id]])

    def _follow(self, token_ids: Ids, is_open: Flags) -> None:
        part = slice(self._begin, self._end)
        # Open positions may hold any id, in a padded model even one outside the vocabulary.
        canvas = self._class_of[np.where(is_open[part], 0, token_ids[part])].astype(np.int64)
        canvas[is_open[part]] = OPEN
        if (canvas != self._canvas).any():
            self._canvas, self._classes = canvas, None

    def _kinds_at(self) -> NDArray[np.int64]:
        return np.where(self._canvas >= self._num_kinds, DEAD, self._canvas)

    def _may_stop(self) -> Flags:
        """bool [length + 1]: where nothing but the end of text may follow."""
        is_end = self._canvas == self._num_kinds
        if self._may_end:
            is_end |= self._canvas == OPEN
        return np.append(np.logical_and.accumulate(is_end[::-1])[::-1], True)

    def _analysed(self) -> Flags:
        """bool [length, classes] for the canvas as it is."""
        if self._classes is None:
            self._intersection.follow(self._kinds_at())
            stops = self._intersection.ends() & self._may_stop()
            self._classes = np.zeros((len(self._canvas), self._num_kinds + 2), np.bool_)
            self._classes[:, : self._num_kinds] = self._intersection.kinds(stops)
            if self._may_end:
                self._classes[:, self._num_kinds] = np.logical_or.accumulate(stops[:-1])
        return self._classes
