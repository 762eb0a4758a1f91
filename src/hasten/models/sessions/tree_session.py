"""Draft trees of a whole batch on stock attention models, with holes instead of ragged caches.

All rows append at the same cache slot. Slots of rejected nodes and of padding stay behind as *holes*: the
mask hides them, and because keys carry their rotary position already, the slot a key lies in does not
matter. Holes at the end are cut off for free; the others are compacted when they have become many. Prompts
are cached in packed rows (prepacking.py) and each moved to a row of its own afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, TopCandidates
from hasten.logits import Draw, Logits, top_candidates
from hasten.models.forwards.forward import PREFILL_CHUNK, Asked, Forward, Kept, among, join_candidates
from hasten.models.sessions.attention import AttentionKinds, TreeMask
from hasten.models.sessions.prepacking import ROW_CAPACITY, PackedRow, group_rows, pack_rows
from hasten.models.sessions.session import Candidates, Positions, Reading, ReadsAtOnce, RowCache
from hasten.models.sessions.slot_cache import SlotCache
from hasten.models.sessions.slot_table import SlotTable
from hasten.tree import DraftTree

_DEVICE_TOKENS = 8192
"""Prompt tokens in one pass where launching a pass costs more than padding a little."""

_ROOM = 256
"""Slots made behind the prompts, so that a text of common length never moves its cache."""


class Block(NamedTuple):
    """The new tokens of one row in one pass."""

    token_ids: NDArray[np.int64]  # [tokens]
    depths: NDArray[np.int64]  # [tokens], from the first position that is not cached
    visible: NDArray[np.bool_]  # [tokens, tokens]
    earlier: tuple[list[int], list[int]] | None = None
    """pairs of a token and a cached slot that it sees although that is not committed"""


class TreeSession(ReadsAtOnce):
    """See Session. For models whose every layer takes a 4-D mask.

    Args:
        forward: the model.
        max_holes: hidden slots a row may have before they are compacted.
        prefill: "packed" lays short prompts end to end and caches equal ones once; "padded", its reference,
            pads all of them to the longest.
    """

    def __init__(
        self, forward: Forward, *, max_holes: int = 64, prefill: Literal["packed", "padded"] = "packed"
    ) -> None:
        self._forward = forward
        self._kinds = AttentionKinds.of(forward.text_config)
        self._max_holes = max_holes
        self._packed = prefill == "packed" and forward.can_pack_prompts
        self._roots: list[int] = []
        self._wanted: list[NDArray[np.int64]] | None = None  # positions of each text; None: all of them
        self._block_start = 0
        self._begin(0)

    def _begin(self, count: int) -> None:
        """Empty rows."""
        self._cache = SlotCache()  # every layer keeps every slot; windows are masked
        self._table = SlotTable(count)
        self._lengths = [0] * count  # cached tokens of each row

    def reading(
        self,
        prompts: list[list[int]],
        top_k: int = 0,
        positions: Positions | None = None,
        known: list[RowCache | None] | None = None,
    ) -> Reading:
        if known is not None and any(one is not None for one in known):
            return (yield from self._going_on(prompts, top_k, positions, known))
        self._begin(0)
        texts = [tuple(prompt[:-1]) for prompt in prompts]
        self._roots = [prompt[-1] for prompt in prompts]
        self._wanted = positions
        if not self._packed:
            return (yield from self._cache_padded(texts, top_k))
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        if positions is not None:
            self._wanted = [positions[texts.index(text)] for text in places]
        found = yield from self._cache_packed(list(places), top_k)
        if len(places) == len(texts):
            return found
        rows = [places[text] for text in texts]
        self._select(rows)
        return [found[row] for row in rows]

    def _going_on(
        self,
        prompts: list[list[int]],
        top_k: int,
        positions: Positions | None,
        known: list[RowCache | None],
    ) -> Reading:
        """Each prompt that is known in a session of its own, all others together; then they are joined."""
        new = [index for index, begun in enumerate(known) if begun is None]
        groups = [*([new] if new else []), *([index] for index in range(len(known)) if index not in new)]
        found: Candidates = []
        parts = []
        for group in groups:
            part, begun = self._empty(group), known[group[0]]
            mine = [prompts[index] for index in group]
            of_group = None if positions is None else [positions[index] for index in group]
            if begun is None:
                found += yield from part.reading(mine, top_k, of_group)
            else:
                part._restore(begun)
                part._roots, part._wanted = [mine[0][-1]], of_group
                size = len(mine[0]) - 1
                row = PackedRow([0], [0], [size], size)
                found += yield from part._read_rows([row], [tuple(mine[0][:-1])], top_k, len(begun.positions))
            parts.append(part)
        self.close()
        for part in parts:
            self.join(part)
        order = np.argsort([index for group in groups for index in group]).tolist()
        self.select(order)
        return [found[index] for index in order]

    def _empty(self, rows: list[int]) -> TreeSession:
        """A session for some of the rows to come."""
        packed: Literal["packed", "padded"] = "packed" if self._packed else "padded"
        return TreeSession(self._forward.select(rows), max_holes=self._max_holes, prefill=packed)

    def _restore(self, known: RowCache) -> None:
        """One row that has cached this, and nothing else."""
        count = len(known.positions)
        self._begin(1)
        self._cache.reserve(count + _ROOM)
        for index, pair in enumerate(known.layers):
            if pair is not None:
                self._cache.layer(index).update(*(states[None].to(self._forward.device) for states in pair))
        self._table = SlotTable(1, np.ones((1, count), np.bool_), known.positions[None].copy())
        self._lengths = [count]

    def _cache_padded(self, texts: list[tuple[int, ...]], top_k: int) -> Reading:
        rows = [PackedRow([index], [0], [len(text)], len(text)) for index, text in enumerate(texts)]
        return self._cache_rows(rows, texts, top_k)

    def _cache_packed(self, texts: list[tuple[int, ...]], top_k: int) -> Reading:
        """A row for each text, filled from packed rows, group after group."""
        sizes = [len(text) for text in texts]
        longest = max(sizes)
        rows = pack_rows(sizes, min(longest, ROW_CAPACITY, PREFILL_CHUNK))
        on_cpu = self._forward.device.type == "cpu"
        groups = group_rows(rows, PREFILL_CHUNK if on_cpu else _DEVICE_TOKENS, PREFILL_CHUNK)
        if len(groups) == 1 and [row.prompts for row in rows] == [[index] for index in range(len(texts))]:
            return (yield from self._cache_rows(rows, texts, top_k))  # every text is where it has to be
        found: list[TopCandidates | None] = [None] * len(texts)
        unpacked: SlotCache | None = None
        for group in groups:
            of_group = yield from self._cache_rows(group, texts, top_k)
            for row, of_row in zip(group, of_group, strict=True):
                if of_row is not None:
                    for text, slots in row.places():
                        found[text] = _part(of_row, slots)
            if unpacked is None:
                unpacked = self._cache.blank(len(texts), longest, longest + _ROOM)
            for packed, layer in zip(self._cache.used_layers, unpacked.used_layers, strict=True):
                _unpack(group, packed.key_buffer, layer.key_buffer)
                _unpack(group, packed.value_buffer, layer.value_buffer)
        if unpacked is not None:
            self._cache = unpacked
        visible = np.arange(longest) < np.asarray(sizes)[:, None]
        self._table = SlotTable(len(texts), visible, np.tile(np.arange(longest), (len(texts), 1)))
        self._lengths = sizes
        return found

    def _cache_rows(self, rows: list[PackedRow], texts: list[tuple[int, ...]], top_k: int) -> Reading:
        """Run these rows side by side into an empty cache, a chunk at a time; the candidates of each row."""
        self._begin(len(rows))
        return self._read_rows(rows, texts, top_k)

    def _read_rows(
        self, rows: list[PackedRow], texts: list[tuple[int, ...]], top_k: int, start_at: int = 0
    ) -> Reading:
        """As ``_cache_rows``, behind the tokens that are cached already."""
        longest = max((row.size for row in rows), default=0)
        self._cache.reserve(longest + _ROOM)
        tokens = [
            np.concatenate([np.asarray(texts[prompt], np.int64) for prompt in row.prompts]) for row in rows
        ]
        found: list[list[TopCandidates]] = [[] for _ in rows]
        for start in range(start_at, longest, PREFILL_CHUNK):
            blocks = []
            for row, token_ids in zip(rows, tokens, strict=True):
                first, stop = min(start, row.size), min(start + PREFILL_CHUNK, row.size)
                depths = row.positions()[first:stop] - first  # later chunks belong to rows of one prompt
                blocks.append(Block(token_ids[first:stop], depths, row.visible(first, stop)))
            columns = [
                self._columns(row, start, len(block.token_ids))
                for row, block in zip(rows, blocks, strict=True)
            ]
            kept = np.unique(np.concatenate(columns))
            logits = self._run(blocks, kept if top_k and len(kept) else 1)
            for index, own in enumerate(columns):
                if top_k and len(own):
                    best = top_candidates(logits[index, np.searchsorted(kept, own)], top_k)
                    found[index].append(replace(best, positions=start + own))
            self._commit([np.arange(len(block.token_ids)) for block in blocks])
            yield sum(len(block.token_ids) for block in blocks)
        return [join_candidates(pieces) for pieces in found]

    def _columns(self, row: PackedRow, start: int, count: int) -> NDArray[np.int64]:
        """Of the ``count`` slots of a row from ``start`` on, those whose candidates are wanted."""
        if self._wanted is None:
            return np.arange(count)
        slots = [slots.start + self._wanted[prompt] for prompt, slots in row.places()]
        return among(np.concatenate(slots), start, start + count)

    @property
    def pads_rows(self) -> bool:
        """See RaggedSession."""
        return self._forward.pads_rows

    def fit(self, tree: DraftTree) -> DraftTree:
        return tree

    def forward(self, trees: list[DraftTree]) -> list[torch.Tensor]:
        blocks = self._blocks(trees)
        logits = self._run(blocks, logits_to_keep=0)
        return [logits[row, : len(block.token_ids)] for row, block in enumerate(blocks)]

    def find(
        self,
        trees: list[DraftTree],
        draws: AbstractSequence[Draw | None],
        top_k: int = 0,
        want_hidden: AbstractSequence[int] = (),
    ) -> list[Logits]:
        """See FindingSession."""
        blocks = self._blocks(trees)
        tokens = [slice(len(block.token_ids)) for block in blocks]
        return self._forward.find(*self._place(blocks), self._cache, Asked(tokens, draws, top_k, want_hidden))

    def _blocks(self, trees: list[DraftTree]) -> list[Block]:
        return [
            Block(
                np.concatenate(([root], tree.token_ids)),
                np.concatenate(([0], tree.depths())),
                tree.attention_mask(),
            )
            for root, tree in zip(self._roots, trees, strict=True)
        ]

    def keep(self, acceptances: list[Acceptance]) -> None:
        self._commit([np.array([0, *(node + 1 for node in a.path)]) for a in acceptances])
        self._roots = [acceptance.token_ids[-1] for acceptance in acceptances]
        self._compact_if_worth_it(self._table.visible, max(self._lengths))

    def select(self, rows: list[int]) -> None:
        if not rows:
            self.close()
            return
        self._select(rows)
        self._truncate(self._table.used_width())
        self._roots = [self._roots[row] for row in rows]

    def join(self, other: TreeSession) -> None:
        count, more = len(self._roots), len(other._roots)
        if not more:
            return
        if not count:
            self._forward, self._cache, self._table = other._forward, other._cache, other._table
        else:
            self._forward = self._forward.join(other._forward)
            self._cache.join(other._cache, count, more)
            self._table.join(other._table)
        self._lengths, self._roots = self._lengths + other._lengths, self._roots + other._roots
        if other._cache is self._cache:
            other._begin(0)  # not to be given back
        other.close()

    def behind(self, prefix: TreeSession, forward: Forward) -> TreeSession:
        """These rows, each behind its own copy of what the only row of another session has cached."""
        found = TreeSession(forward, max_holes=self._max_holes)
        shared, count, width = prefix.cached(0), len(self._roots), self._table.width
        length = len(shared.positions)
        like = self._cache if self._cache.used_layers else prefix._cache
        found._cache = like.blank(count, length + width, length + width + _ROOM)
        found._cache.place([pair and (pair[0][None], pair[1][None]) for pair in shared.layers])
        found._cache.place(self._cache.states(), length)
        visible = np.concatenate((np.ones((count, length), np.bool_), self._table.visible), axis=1)
        positions = (np.tile(shared.positions, (count, 1)), self._table.positions + length)
        found._table = SlotTable(count, visible, np.concatenate(positions, axis=1))
        found._lengths = [length + own for own in self._lengths]
        found._roots = list(self._roots)
        return found

    def close(self) -> None:
        self._forward.release(self._cache)
        self._begin(0)
        self._roots = []

    def _select(self, rows: list[int]) -> None:
        """Make these the rows of the cache; a row may be chosen twice."""
        self._forward = self._forward.select(rows)
        self._cache.select(torch.tensor(rows, device=self._forward.device))
        self._table.select(rows)
        self._lengths = [self._lengths[row] for row in rows]

    def states(self) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Keys and values of every layer, [batch, kv heads, slots, channels]; None for an unused layer.

        Views, which later passes may overwrite.
        """
        return self._cache.states()

    def cached(self, row: int, start: int = 0) -> RowCache:
        """A copy of what one row has cached from position ``start`` on."""
        positions = self._table.positions[row]
        slots = np.flatnonzero(self._table.visible[row] & (positions >= start))
        index = torch.from_numpy(slots).to(self._forward.device)
        layers = [
            None
            if pair is None
            else (pair[0][row].index_select(1, index), pair[1][row].index_select(1, index))
            for pair in self.states()
        ]
        return RowCache(layers, positions[slots])

    @property
    def num_cached_tokens(self) -> list[int]:
        """Of each row."""
        return list(self._lengths)

    def num_bytes(self) -> int:
        """Memory of the cache: holes, and slots that are not in use yet, included."""
        return self._cache.num_bytes()

    def _run(self, blocks: list[Block], logits_to_keep: Kept) -> torch.Tensor:
        """One pass over a block a row; logits [batch, tokens, vocab]."""
        return self._forward(*self._place(blocks), self._cache, logits_to_keep)

    def _place(self, blocks: list[Block]) -> tuple[NDArray[np.int64], NDArray[np.int64], TreeMask]:
        """Blocks, padded to the longest, in new slots: the token ids, positions and mask of their pass."""
        batch, size, first = len(blocks), max(len(block.token_ids) for block in blocks), self._table.width
        earliest = min((min(block.earlier[1]) for block in blocks if block.earlier), default=first)
        num_earlier = first - earliest
        token_ids = np.zeros((batch, size), np.int64)
        positions = np.zeros((batch, size), np.int64)
        own = np.zeros((batch, size, num_earlier + size), np.bool_)
        for row, (block, length) in enumerate(zip(blocks, self._lengths, strict=True)):
            count = len(block.token_ids)
            token_ids[row, :count] = block.token_ids
            positions[row] = length
            positions[row, :count] += block.depths
            own[row, :count, num_earlier : num_earlier + count] = block.visible
            if block.earlier is not None:
                tokens, slots = block.earlier
                own[row, tokens, np.asarray(slots) - earliest] = True
        self._block_start = self._table.extend(positions)
        return token_ids, positions, self._table.mask(self._kinds, own)

    def _commit(self, kept: list[NDArray[np.int64]]) -> None:
        """Make these tokens of the last pass visible, and cut the slots after the last visible one."""
        last = -1
        for row, tokens in enumerate(kept):
            if len(tokens):
                self._table.visible[row, self._block_start + tokens] = True
                self._lengths[row] += len(tokens)
                last = max(last, int(tokens.max()))
        self._truncate(self._table.used_width() if last < 0 else self._block_start + last + 1)

    def _truncate(self, width: int) -> None:
        if width < self._table.width:
            self._table.truncate(width)
            self._cache.truncate(width)

    def _compact_if_worth_it(self, used: NDArray[np.bool_], width: int) -> bool:
        """Close the holes between used slots [batch, slots], at most ``width`` a row; whether it was done."""
        if used.shape[1] - width <= max(self._max_holes, width // 8):
            return False
        order = np.argsort(~used, axis=1, kind="stable")[:, :width]  # used slots first, in order
        self._cache.gather(order)
        self._table.gather(order)
        return True


def _part(candidates: TopCandidates, slots: slice) -> TopCandidates | None:
    """Those of one prompt of a packed row."""
    assert candidates.positions is not None
    first, stop = np.searchsorted(candidates.positions, (slots.start, slots.stop)).tolist()
    if first == stop:
        return None
    part = candidates.rows(first, stop)
    return replace(part, positions=candidates.positions[first:stop] - slots.start)


def _unpack(group: list[PackedRow], packed: torch.Tensor, states: torch.Tensor) -> None:
    """Copy each prompt's slots of the packed rows to the beginning of its own row of ``states``."""
    for index, row in enumerate(group):
        for prompt, slots in row.places():
            states[prompt, :, : slots.stop - slots.start] = packed[index, :, slots]
