"""One chain a row, each row with its own cache: for models that cannot take a tree mask.

Three ways to forget rejected tokens, from fast to slow:
    crop        attention layers drop their last keys (ALiBi models, models with a window by slot index)
    snapshot    recurrent layers cannot be cropped: their state is copied before a chain, and put back and
                replayed over the accepted tokens when part of the chain was wrong
    recompute   no usable cache: every pass reads the whole text
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence as AbstractSequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hasten.core import Acceptance, TopCandidates
from hasten.logits import Draw, Logits, ask_all, top_candidates
from hasten.models.forwards.forward import PREFILL_CHUNK, Forward, Kept, among, join_candidates
from hasten.models.sessions.session import Candidates, Positions, Reading, ReadsAtOnce, RowCache
from hasten.models.sessions.slot_cache import SlotCache
from hasten.tree import DraftTree

Rollback = Literal["crop", "snapshot", "recompute"]


class ChainSession(ReadsAtOnce):
    """See Session.

    Args:
        drafts: whether chains are verified at all; False is plain decoding.
    """

    def __init__(self, forward: Forward, rollback: Rollback, *, drafts: bool = True) -> None:
        self._forward = forward
        self._rollback = rollback
        self._drafts = drafts
        self._rows: list[_Row] = []

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        self._rows = [
            _Row(self._forward.select([row]), self._rollback, prompt) for row, prompt in enumerate(prompts)
        ]
        found: Candidates = []
        for index, row in enumerate(self._rows):
            found.append((yield from row.reading(top_k, None if positions is None else positions[index])))
        return found

    pads_rows = False
    """See RaggedSession."""

    def fit(self, tree: DraftTree) -> DraftTree:
        return best_chain(tree) if self._drafts else DraftTree()

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        return [row.forward(tree.token_ids.tolist()) for row, tree in zip(self._rows, trees, strict=True)]

    def find(
        self,
        trees: list[DraftTree],
        draws: AbstractSequence[Draw | None],
        top_k: int = 0,
        want_hidden: AbstractSequence[int] = (),
    ) -> list[Logits]:
        """See FindingSession."""
        found = [
            row.find(tree.token_ids.tolist(), want_hidden)
            for row, tree in zip(self._rows, trees, strict=True)
        ]
        if found and found[0].whole().device.type != "cpu":
            ask_all(found, draws, top_k)
        return found

    def keep(self, acceptances: list[Acceptance]) -> None:
        for row, acceptance in zip(self._rows, acceptances, strict=True):
            row.keep(acceptance)

    def select(self, rows: list[int]) -> None:
        self._rows = [
            self._rows[row].fork() if row in rows[:place] else self._rows[row]
            for place, row in enumerate(rows)
        ]

    def join(self, other: ChainSession) -> None:
        self._rows += other._rows
        other.close()

    def close(self) -> None:
        self._rows = []


def best_chain(tree: DraftTree) -> DraftTree:
    """The path from the root that follows the best-scored child, the earliest among equals.

    Of a sampled tree, the child drawn first: which of them is kept must not depend on what they are.
    """
    drawn_first = DraftTree(tree.token_ids, tree.parents)  # all scores are equal
    path = (tree if tree.draft_probs is None else drawn_first).likeliest_path()
    chain = tree.select(path, np.arange(-1, len(path) - 1))
    chain.draws = None
    return chain


class _Row:
    """Invariant between calls: ``text`` without its last token is cached."""

    def __init__(self, forward: Forward, rollback: Rollback, prompt: list[int]) -> None:
        self._forward = forward
        self._rollback = rollback
        self._text = list(prompt)
        self._num_drafted = 0
        self._snapshot: list[Any] | None = None
        self._cache: Any = None
        if rollback != "recompute":
            # Recurrent layers need the config to be built; attention layers are better off without it,
            # because then they keep every key and can be cropped.
            recurrent = rollback == "snapshot"
            self._cache = DynamicCache(config=forward.text_config) if recurrent else SlotCache()

    def fork(self) -> _Row:
        """Between steps: another row with the same text."""
        forked = copy.copy(self)
        forked._text = list(self._text)
        if self._cache is not None:
            forked._cache = copy.copy(self._cache)
            forked._cache.layers = [_save(layer) for layer in self._cache.layers]
        return forked

    def reading(
        self, top_k: int, positions: NDArray[np.int64] | None
    ) -> Generator[int, None, TopCandidates | None]:
        pieces = []
        # Several tokens on top of a state are what some recurrent layers get wrong: give them one piece.
        size = PREFILL_CHUNK if self._rollback == "crop" else len(self._text)
        for start in range(0, len(self._text) - 1, size):
            chunk = self._text[:-1][start : start + size]
            columns = among(positions, start, start + len(chunk))
            is_wanted = top_k > 0 and len(columns) > 0
            if self._cache is None and not is_wanted:
                continue
            logits = self._run(chunk, start, columns if is_wanted else 1)
            if is_wanted:
                pieces.append(replace(top_candidates(logits, top_k), positions=start + columns))
            yield len(chunk)
        return join_candidates(pieces)

    def forward(self, chain: list[int]) -> torch.Tensor:
        return self._run(*self._begin(chain))[-1 - len(chain) :]

    def find(self, chain: list[int], want_hidden: AbstractSequence[int]) -> Logits:
        if not want_hidden:
            return Logits(self.forward(chain))
        logits, states = self._forward.with_hidden(*self._pass_over(*self._begin(chain)), want_hidden)
        found = Logits(logits[0, -1 - len(chain) :])
        of_row = [of_layer[0, -1 - len(chain) :] for of_layer in states]
        found.hidden = dict(zip(want_hidden, of_row, strict=True))
        return found

    def _begin(self, chain: list[int]) -> tuple[list[int], int]:
        """The tokens of the pass that verifies a chain, and the position of the first."""
        self._num_drafted = len(chain)
        if self._cache is None:
            return [*self._text, *chain], 0
        if self._rollback == "snapshot" and chain:
            self._snapshot = [_save(layer) for layer in self._cache.layers]
        return [self._text[-1], *chain], len(self._text) - 1

    def keep(self, acceptance: Acceptance) -> None:
        num_rejected = self._num_drafted - len(acceptance.path)
        if num_rejected and self._rollback == "crop":
            self._cache.crop(-num_rejected)
        elif num_rejected and self._snapshot is not None:
            self._cache.layers = self._snapshot
            replayed = [self._text[-1], *acceptance.token_ids[:-1]]
            self._run(replayed, len(self._text) - 1, logits_to_keep=1)
        self._snapshot = None
        self._text += acceptance.token_ids

    def _run(self, token_ids: list[int], start: int, logits_to_keep: Kept = 0) -> torch.Tensor:
        return self._forward(*self._pass_over(token_ids, start), logits_to_keep)[0]

    def _pass_over(self, token_ids: list[int], start: int) -> tuple[Any, Any, None, Any]:
        return np.asarray([token_ids]), np.arange(start, start + len(token_ids))[None], None, self._cache


def _save(layer: Any) -> Any:
    """transformers' attention layers never change a key they have: the tensors are the snapshot."""
    return copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer)
