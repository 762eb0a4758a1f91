"""Batches whose prompts begin alike: the common beginning is computed, kept and read once for all rows.

Source: Hydragen (arXiv 2402.05099). Samples of one prompt are such batches, and requests after one system
prompt. The rows are an ordinary TreeSession over what follows the prefix; only the forward pass differs.
Knows nothing of trees of prefixes: what only some rows share is cached for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as AbstractSequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, System, TopCandidates
from hasten.logits import Draw, Logits
from hasten.models.forwards.forward import Forward, Kept, Mask, among, join_candidates
from hasten.models.probe import reproduces_plain_passes
from hasten.models.sessions.attention import AttentionKinds
from hasten.models.sessions.prefix_attention import Prefix, attending_to
from hasten.models.sessions.session import Positions, Reading, ReadsAtOnce, RowCache, Session, joined
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

SYSTEM = System(
    name="hydragen",
    title="Hydragen",
    arxiv="2402.05099",
    kind="batch serving",
    guarantee="exact",
    module="hasten.models.sessions.shared_prefix",
    summary="a prefix that all rows share is cached once and read by the queries of all rows together",
)

MIN_PREFIX = 32
"""A shorter prefix is not worth a pass of its own."""
MIN_SAVED = 256
"""Cache slots sharing has to save, or the second attention call of every layer costs more than it gains."""


class SharedPrefixSession(ReadsAtOnce):
    """See Session. An ordinary TreeSession, unless the prompts share a prefix and the model allows to use it.

    Args:
        forward: the model, which has to be fit for a TreeSession.
        is_allowed: asked once a batch shares a prefix.
        min_prefix: the shortest prefix, in tokens, that is shared.
        min_saved: the fewest cache slots, of all rows together, that sharing has to save.
    """

    def __init__(
        self,
        forward: Forward,
        is_allowed: Callable[[], bool],
        *,
        min_prefix: int = MIN_PREFIX,
        min_saved: int = MIN_SAVED,
    ) -> None:
        self._forward = forward
        self._is_allowed = is_allowed
        self._min_prefix = min_prefix
        self._min_saved = min_saved
        self._prefix: TreeSession | None = None
        self._rows = TreeSession(forward)

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        length = common_length(prompts)
        is_worth_it = length >= self._min_prefix and length * (len(prompts) - 1) >= self._min_saved
        if not is_worth_it or not self._is_allowed():
            self._prefix, self._rows = None, TreeSession(self._forward)
            return (yield from self._rows.reading(prompts, top_k, positions, known))
        self._prefix = TreeSession(self._forward)
        shared = own = None
        if positions is not None:
            shared = [among(np.unique(np.concatenate(positions)), 0, length)]
            own = [
                among(of_one, length, len(prompt)) for of_one, prompt in zip(positions, prompts, strict=True)
            ]
        begun = [one for one in known or [] if one is not None]
        longest = max(begun, key=lambda one: len(one.positions), default=None)
        of_one: list[RowCache | None] = [None if longest is None else longest.between(0, length)]
        of_prefix = yield from self._prefix.reading([prompts[0][: length + 1]], top_k, shared, of_one)
        prefix = Prefix(self._prefix.states(), length)
        self._rows = TreeSession(_ForwardOverPrefix(self._forward.model, prefix))
        of_rows = yield from self._rows.reading([prompt[length:] for prompt in prompts], top_k, own)
        return [join_candidates([*_parts(of_prefix[0], 0), *_parts(row, length)]) for row in of_rows]

    @property
    def pads_rows(self) -> bool:
        """See RaggedSession."""
        return self._rows.pads_rows

    def fit(self, tree: DraftTree) -> DraftTree:
        return self._rows.fit(tree)

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        return self._rows.forward(trees)

    def find(
        self,
        trees: list[DraftTree],
        draws: AbstractSequence[Draw | None],
        top_k: int = 0,
        want_hidden: AbstractSequence[int] = (),
    ) -> list[Logits]:
        """See FindingSession."""
        return self._rows.find(trees, draws, top_k, want_hidden)

    def keep(self, acceptances: list[Acceptance]) -> None:
        self._rows.keep(acceptances)

    def select(self, rows: list[int]) -> None:
        self._rows.select(rows)
        if not rows:
            self._prefix = None

    def join(self, other: SharedPrefixSession) -> None:
        """Afterwards every row has the prefix for itself."""
        mine, theirs = self._apart(), other._apart()
        mine.join(theirs)
        self._prefix, self._rows = None, mine
        other.close()

    def _apart(self) -> TreeSession:
        """The rows, each with all it sees."""
        return self._rows if self._prefix is None else self._rows.behind(self._prefix, self._forward)

    def close(self) -> None:
        self._rows.close()
        self._prefix = None

    def cached(self, row: int, start: int = 0) -> RowCache:
        """See TreeSession: the shared prefix is part of every row."""
        shared = self.num_shared_tokens
        own = self._rows.cached(row, max(start - shared, 0))
        own = RowCache(own.layers, own.positions + shared)
        if self._prefix is None or start >= shared:
            return own
        prefix = self._prefix.cached(0, start)
        if not len(own.positions):
            return prefix
        return joined((prefix, own))

    @property
    def num_shared_tokens(self) -> int:
        """Length of the prefix that is cached once; 0 where every row has its own."""
        return self._prefix.num_cached_tokens[0] if self._prefix else 0

    def num_bytes(self) -> int:
        """Memory of the caches."""
        return self._rows.num_bytes() + (self._prefix.num_bytes() if self._prefix else 0)


def _parts(candidates: TopCandidates | None, start: int) -> list[TopCandidates]:
    """None or one, with positions that count from ``start`` on."""
    if candidates is None:
        return []
    assert candidates.positions is not None
    return [replace(candidates, positions=start + candidates.positions)]


class _ForwardOverPrefix(Forward):
    """Forward passes of rows that go on after a common prefix; their positions count from its end."""

    def __init__(self, model: Any, prefix: Prefix) -> None:
        super().__init__(model)
        self._shared = prefix

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        logits_to_keep: Kept = 0,
    ) -> torch.Tensor:
        assert position_ids is not None
        with attending_to(self._shared, self.text_config):
            return super().__call__(
                token_ids, position_ids + self._shared.length, attention_mask, cache, logits_to_keep
            )


def common_length(prompts: list[list[int]]) -> int:
    """Tokens all prompts begin with, less than the shortest prompt: its last token is never cached."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)


def can_share_prefixes(forward: Forward) -> bool:
    """Whether the logits over a shared prefix are those of plain passes, found out by trying.

    For models that a TreeSession fits. Windows would have to be cut out of the prefix, and a config made of
    several keeps an attention implementation in each; neither is tried. What runs passes in its own way
    would be left for the modules, whose logits have other roundings.
    """
    if type(forward) is not Forward:
        return False
    if any(AttentionKinds.of(forward.text_config).sizes.values()) or forward.text_config.sub_configs:
        return False
    return reproduces_plain_passes(forward, lambda: _FirstOfTwoRows(forward))


class _FirstOfTwoRows(ReadsAtOnce):
    """See Session. The row under test, beside one that shares the first half of its prompt."""

    def __init__(self, forward: Forward) -> None:
        self._session: Session = SharedPrefixSession(forward, lambda: True, min_prefix=1, min_saved=1)

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        [prompt] = prompts
        half = len(prompt) // 2
        found = yield from self._session.reading([prompt, [*prompt[:half], *prompt[:0:-1]]], top_k, positions)
        return found[:1]

    def fit(self, tree: DraftTree) -> DraftTree:
        return self._session.fit(tree)

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        return self._session.forward([*trees, DraftTree()])[:1]

    def keep(self, acceptances: list[Acceptance]) -> None:
        self._session.keep([*acceptances, Acceptance([], acceptances[0].token_ids[-1:])])

    def select(self, rows: list[int]) -> None:
        self._session.select([*rows, 1])

    def join(self, other: _FirstOfTwoRows) -> None:
        raise NotImplementedError("the row under test stays alone")

    def close(self) -> None:
        self._session.close()
