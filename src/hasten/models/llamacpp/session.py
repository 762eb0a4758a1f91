"""Draft trees on llama.cpp: a node belongs to the sequences of all leaves below it.

llama.cpp shows a token the cached ones of its own sequence, so each leaf of a tree needs a sequence that
holds the whole text before it. Every row has several, the first of which is always up to date. Tokens that
several sequences share are cached once, so keeping a path and catching up change only who owns what.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, TopCandidates
from hasten.errors import ConfigError
from hasten.logits import top_candidates
from hasten.models.forwards.forward import PREFILL_CHUNK, join_candidates
from hasten.models.llamacpp.interface import MAX_SEQUENCES, LlamaContext
from hasten.models.sessions.chain_session import best_chain
from hasten.models.sessions.session import Positions, Reading, ReadsAtOnce, RowCache
from hasten.tree import ROOT, DraftTree

MAX_LEAVES = 64
"""of a tree; in batches each gets its share of the sequences there may be"""
TREE_TOKENS = 256
"""cached besides the texts, for the trees of a batch; but never fewer than these a row:"""
_ROW_TREE_TOKENS = 64
_TEXT_TOKENS = 512
"""room for a row that does not say how long it will become, besides its prompt"""
_CANDIDATE_LOGITS = 2**24
"""values at once while a prompt's candidates are found"""


@dataclass(eq=False)
class Lease:
    """A context that is used for a while; it goes back at the latest when nobody holds this any more."""

    context: LlamaContext
    give_back: Callable[[], object] = field(init=False)


OpenContext = Callable[[int, int], Lease]
"""an empty context for so many tokens, and so many sequences"""


class GgufSession(ReadsAtOnce):
    """See Session.

    Args:
        open_context: makes the cache, as soon as the prompts are known.
        lengths: how long each text may become, prompt included, where that is known.
        max_leaves: 1 verifies chains.
        drafts: whether anything is verified at all; False is plain decoding.
    """

    def __init__(
        self,
        open_context: OpenContext,
        lengths: list[int] | None = None,
        *,
        max_leaves: int = MAX_LEAVES,
        drafts: bool = True,
    ) -> None:
        self._open_context = open_context
        self._lengths = lengths
        self._most_leaves = self._max_leaves = max_leaves
        self._drafts = drafts
        self._num_places = self._tree_tokens = 0
        self._rows: list[_Row] = []
        self._lease: Lease | None = None

    @property
    def _context(self) -> LlamaContext:
        assert self._lease is not None
        return self._lease.context

    @property
    def _max_nodes(self) -> int:
        """of a row's tree"""
        return max(0, self._tree_tokens - 1)

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        self.close()
        lengths = self._lengths or [len(prompt) + _TEXT_TOKENS for prompt in prompts]
        self._move_into(lengths)
        self._rows = [
            _Row(self._context, row, self._max_leaves, prompt, length)
            for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        ]
        texts = [prompt[:-1] for prompt in prompts]
        wanted = [np.arange(len(text)) for text in texts] if positions is None else positions
        return (yield from self._cache_prompts(texts, top_k, wanted))

    def _move_into(self, lengths: list[int], *, spare: bool = False) -> None:
        """A new context, for texts that may become so long and their trees; ``spare``: and for some more."""
        batch = len(lengths)
        if batch > MAX_SEQUENCES:
            raise ConfigError(
                f"a batch of {batch} texts is too large for llama.cpp, which holds at most {MAX_SEQUENCES}; "
                "lower batch_size"
            )
        self._num_places = 1 << (batch - 1).bit_length() if spare else batch
        self._max_leaves = min(self._most_leaves, MAX_SEQUENCES // self._num_places)
        self._tree_tokens = max(_ROW_TREE_TOKENS, TREE_TOKENS // self._num_places)
        num_tokens = sum(lengths) + self._num_places * self._tree_tokens
        num_tokens += sum(lengths) // 2 if spare else 0
        self._lease = self._open_context(num_tokens, self._num_places * self._max_leaves)

    def _cache_prompts(self, texts: list[list[int]], top_k: int, wanted: Positions) -> Reading:
        """All texts end to end, and what all of them begin with once."""
        shared = _common_length(texts) if len(texts) > 1 else 0
        everyone = [row.base for row in self._rows]
        token_ids, positions = list(texts[0][:shared]), list(range(shared))
        owners = [everyone] * shared
        places = []  # where each text's own tokens lie
        for row, text in zip(self._rows, texts, strict=True):
            places.append(range(len(token_ids), len(token_ids) + len(text) - shared))
            token_ids += text[shared:]
            positions += range(shared, len(text))
            owners += [[row.base]] * (len(text) - shared)
        slots = [
            np.array([*range(shared), *own], np.int64)[of_text]
            for own, of_text in zip(places, wanted, strict=True)
        ]
        all_slots = np.unique(np.concatenate(slots)) if top_k else np.empty(0, np.int64)
        found = yield from self._cache(
            np.array(token_ids, np.int64), np.array(positions, np.int64), owners, top_k, all_slots
        )
        if found is None:
            return [None] * len(texts)
        rows = [np.searchsorted(all_slots, own) for own in slots]
        return [
            TopCandidates(found.token_ids[row], found.probs[row], of_text) if len(row) else None
            for row, of_text in zip(rows, wanted, strict=True)
        ]

    def _cache(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        owners: list[list[int]],
        top_k: int,
        slots: NDArray[np.int64],
    ) -> Generator[int, None, TopCandidates | None]:
        """A chunk at a time; the candidates of those slots."""
        found = []
        size = PREFILL_CHUNK
        most = max(1, _CANDIDATE_LOGITS // self._context.vocab_size)
        if len(slots) > most:
            size = min(size, most)
        for start in range(0, len(token_ids), size):
            chunk = slice(start, start + size)
            wanted = np.isin(np.arange(len(token_ids))[chunk], slots)
            logits = self._context.run(token_ids[chunk], positions[chunk], owners[chunk], wanted)
            if wanted.any():
                found.append(top_candidates(logits, top_k))
            yield len(token_ids[chunk])
        return join_candidates(found)

    pads_rows = False
    """See RaggedSession."""

    def fit(self, tree: DraftTree) -> DraftTree:
        """Cut to the leaves and nodes there is room for; a sampled tree that is too large, to a chain.

        Which nodes of a sampled tree are kept must not depend on what they are.
        """
        if not self._drafts:
            return DraftTree()
        if self._max_leaves == 1:
            return best_chain(tree).head(self._max_nodes)
        if tree.draft_probs is not None:
            num_draws = len(tree) if tree.draws is None else len(tree.draws)
            is_small = num_draws <= min(self._max_leaves, self._max_nodes)
            return tree if is_small else best_chain(tree).head(self._max_nodes)
        return with_at_most(self._max_leaves, tree.head(self._max_nodes))

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        token_ids: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        owners: list[list[int]] = []
        for row, tree in zip(self._rows, trees, strict=True):
            owners += row.share_out(tree)
            token_ids += [np.array([row.root]), tree.token_ids]
            positions += [np.array([row.length]), row.length + tree.depths()]
        wanted = np.ones(len(owners), np.bool_)
        logits = self._context.run(np.concatenate(token_ids), np.concatenate(positions), owners, wanted)
        return list(torch.split(logits, [len(tree) + 1 for tree in trees]))

    def keep(self, acceptances: list[Acceptance]) -> None:
        for row, acceptance in zip(self._rows, acceptances, strict=True):
            row.keep(acceptance)

    def select(self, rows: list[int]) -> None:
        for index, row in enumerate(self._rows):
            if index not in rows:
                row.clear()
        chosen = [self._rows[row] for row in rows]
        self._rows = list(dict.fromkeys(chosen))  # in places of their own already
        forks = [row for place, row in enumerate(chosen) if row in chosen[:place]]
        places = self._free_places(forks)
        if places is None:
            self._take_over(chosen)
            return
        made = iter([row.fork(place, self._max_leaves) for row, place in zip(forks, places, strict=True)])
        self._rows = [next(made) if row in chosen[:at] else row for at, row in enumerate(chosen)]
        if not rows:
            self.close()

    def join(self, other: GgufSession) -> None:
        if not other._rows:
            return
        if not self._rows:
            self.close()
            self._rows, self._lease = other._rows, other._lease
            self._max_leaves, self._tree_tokens = other._max_leaves, other._tree_tokens
            self._num_places = other._num_places
            other._rows, other._lease = [], None
            return
        places = self._free_places(other._rows)
        if places is None:
            self._take_over([*self._rows, *other._rows])
        else:
            for row, place in zip(other._rows, places, strict=True):
                self._rows.append(row.moved(self._context, place, self._max_leaves, row.saved()))
        other.close()

    def _free_places(self, rows: list[_Row]) -> list[int] | None:
        """Where these rows may go beside those that are here; None where there is no room for all of them."""
        taken = {row.base // self._max_leaves for row in self._rows}
        free = [place for place in range(self._num_places) if place not in taken]
        every = [*self._rows, *rows]
        num_tokens = sum(row.room for row in every) + len(every) * self._tree_tokens
        if len(rows) > len(free) or (rows and num_tokens > self._context.num_tokens):
            return None
        return free[: len(rows)]

    def _take_over(self, rows: list[_Row]) -> None:
        """Copies of these rows, of any contexts, in a new one."""
        former = self._lease
        states = [row.saved() for row in rows]
        self._move_into([row.room for row in rows], spare=True)
        self._rows = [
            row.moved(self._context, place, self._max_leaves, state)
            for place, (row, state) in enumerate(zip(rows, states, strict=True))
        ]
        if former is not None:
            former.give_back()

    def close(self) -> None:
        if self._lease is not None:
            self._lease.give_back()
        self._rows, self._lease = [], None


class _Row:
    """One text. ``length`` tokens of it are cached, all of them in the sequence ``base``.

    ``known`` says for every sequence of the row how many of these tokens it has, from the first on.
    """

    def __init__(
        self, context: LlamaContext, row: int, num_sequences: int, prompt: list[int], room: int
    ) -> None:
        self._context = context
        self.base = row * num_sequences
        self.room = room
        """tokens the text may have in the end"""
        self.root = prompt[-1]
        self.length = len(prompt) - 1
        self._known = [0] * num_sequences
        self._known[0] = self.length
        self._owners: list[list[int]] = []
        self._used = 0

    def share_out(self, tree: DraftTree) -> list[list[int]]:
        """The sequences of the root and of each node; those of the leaves are brought up to date."""
        below: list[list[int]] = [[] for _ in range(len(tree) + 1)]  # the root's are the last
        parents = tree.parents.tolist()
        self._used = max(1, len(tree) - len({*parents} - {ROOT}))
        sequence = self.base + self._used  # from the last leaf on, so that the first has the base
        for node in range(len(tree) - 1, ROOT, -1):
            if not below[node]:
                sequence -= 1
                below[node] = [sequence]
            below[parents[node]] += below[node]
        below[ROOT] = list(range(self.base, self.base + self._used))
        for place, known in enumerate(self._known[: self._used]):
            if known < self.length:
                self._context.share(self.base, self.base + place, known, self.length)
                self._known[place] = self.length
        self._owners = [below[ROOT], *below[:ROOT]]
        return self._owners

    def keep(self, acceptance: Acceptance) -> None:
        """The accepted path belongs to the base; all that was rejected disappears."""
        path = acceptance.path
        after_root = self.length + 1
        end = after_root + len(path)
        kept_by = self._owners[path[-1] + 1][0] if path else self.base
        for place in range(self._used):
            sequence = self.base + place
            mine = end if sequence == kept_by else after_root
            if len(self._owners) > 1:
                self._context.remove(sequence, mine)
            self._known[place] = mine
        if kept_by != self.base:
            self._context.share(kept_by, self.base, after_root, end)
            self._known[0] = end
        self.length = end
        self.root = acceptance.token_ids[-1]

    def saved(self) -> Any:
        """A copy of its cache; None where nothing is cached."""
        return self._context.saved(self.base) if self.length else None

    def moved(self, context: LlamaContext, row: int, num_sequences: int, state: Any) -> _Row:
        """The same text in another context, from what was saved."""
        moved = _Row(context, row, num_sequences, [0] * self.length + [self.root], self.room)
        if state is not None:
            context.restore(moved.base, state)
        return moved

    def fork(self, place: int, num_sequences: int) -> _Row:
        """The same text again in the same context, whose tokens both share."""
        forked = self.moved(self._context, place, num_sequences, None)
        self._context.share(self.base, forked.base, 0, self.length)
        return forked

    def clear(self) -> None:
        for place, known in enumerate(self._known):
            if known:
                self._context.remove(self.base + place)


def _common_length(texts: list[list[int]]) -> int:
    """How many tokens all texts begin with."""
    differing = (place for place, tokens in enumerate(zip(*texts, strict=False)) if len(set(tokens)) > 1)
    return next(differing, min(map(len, texts)))


def with_at_most(max_leaves: int, tree: DraftTree) -> DraftTree:
    """The tree without the nodes that would give it more leaves, those that come last."""
    is_parent = np.zeros(len(tree) + 1, np.bool_)  # the root's place is the last
    kept: list[int] = []
    new_index = {ROOT: ROOT}
    num_leaves = 0
    for node, parent in enumerate(tree.parents.tolist()):
        if parent not in new_index:
            continue
        opens = parent == ROOT or bool(is_parent[parent])  # else its parent is no leaf any more
        if num_leaves + opens > max_leaves:
            continue
        num_leaves += opens
        is_parent[parent] = True
        new_index[node] = len(kept)
        kept.append(node)
    if len(kept) == len(tree):
        return tree
    return tree.select(kept, [new_index[parent] for parent in tree.parents[kept].tolist()])
