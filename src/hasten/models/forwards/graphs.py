"""Passes that a GPU records once for each size and replays: no Python and no launches between its kernels.

A recording (a CUDA graph) repeats the same kernels on the same addresses. So everything a pass reads lies at
a fixed place: tokens, positions, slots and masks in buffers that are filled before it, keys and values in an
arena that outlives the texts. Sizes are rounded up to a few, and what is added is hidden by the mask.

The model is recorded as it is. What cannot be recorded (a pass that waits for the GPU, or decides on the
host) runs as before, and why is said. Knows nothing of trees and texts.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.models.forwards.forward import Forward, Kept, Mask
from hasten.models.sessions.attention import AttentionKinds, TreeMask, additive_masks
from hasten.models.sessions.slot_cache import SlotCache
from hasten.transfers import staged

TOKENS = (1, 8, 16, 32, 64, 128)
"""Tokens of a row that passes are recorded for; longer ones are worth their launches."""
MIN_SLOTS = 256
"""Slots that the shortest recorded pass attends to; the others twice as many, and so on."""
_ARENA_SLOTS = 2048
"""Slots of a new arena, its rows together, so that texts of common length never move."""
_WARM_UPS = 2
"""Runs before a recording, in which libraries choose their kernels and take their memory."""

Run = Callable[[], torch.Tensor]
Recorder = Callable[[Run], tuple[Callable[[], None], torch.Tensor]]
"""Runs and records a function; (what repeats it on the same tensors, what each run leaves its result in)."""

_log = logging.getLogger("hasten")


class CudaRecorder:
    """CUDA graphs that share their working memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Run) -> tuple[Callable[[], None], torch.Tensor]:
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    run()
            here.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads (a draft that reads ahead) may go on with work that could not be recorded.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = run()
            self._pool = graph.pool()
        return graph.replay, result


def recorder_for(device: torch.device) -> Recorder | None:
    """What records passes on a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


class _Size(NamedTuple):
    """Of a recorded pass."""

    batch: int
    tokens: int
    own: int
    """last slots of which each token sees others"""
    slots: int


class _Recording(NamedTuple):
    """A pass of one size: where its inputs lie, what repeats it, and where its logits are."""

    token_ids: torch.Tensor  # [batch, tokens]
    positions: torch.Tensor  # [batch, tokens]
    new_slots: torch.Tensor  # [tokens]
    visible: torch.Tensor  # [batch, slots]
    slot_positions: torch.Tensor  # [batch, slots]; none where all layers see the whole text
    own: torch.Tensor  # [batch, tokens, own]
    own_slots: torch.Tensor  # [own]
    first_positions: torch.Tensor  # [kinds, batch, tokens]
    replay: Callable[[], None] = lambda: None
    logits: torch.Tensor = torch.empty(0)  # [batch, tokens, vocab]


class GraphedForward(Forward):
    """Passes of a few tokens over a SlotCache are replayed; all others run the modules.

    Args:
        model: a transformers causal LM; it is used as it is.
        recorder: what records.
    """

    runs_modules = False

    def __init__(self, model: Any, recorder: Recorder) -> None:
        super().__init__(model)
        self.why_not = ""
        """why passes are not recorded; "" as long as they are"""
        self._record = recorder
        self._arenas: list[_Arena] = []

    @torch.inference_mode()
    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: Mask,
        cache: Any | None,
        logits_to_keep: Kept = 0,
    ) -> torch.Tensor:
        if (
            isinstance(attention_mask, TreeMask)
            and position_ids is not None
            and isinstance(cache, SlotCache)
            and self._can_replay(token_ids, cache)
        ):
            logits = self._replay(token_ids, position_ids, attention_mask, cache)
            if logits is not None:
                if isinstance(logits_to_keep, int):
                    return logits[:, -logits_to_keep:]
                return logits[:, torch.from_numpy(logits_to_keep).to(self.device)]
        return super().__call__(token_ids, position_ids, attention_mask, cache, logits_to_keep)

    def release(self, cache: Any) -> None:
        """Its arena may be given to another one at once."""
        for arena in self._arenas:
            if arena.is_owned_by(cache):
                arena.leave()

    def _can_replay(self, token_ids: NDArray[np.int64], cache: SlotCache) -> bool:
        """An empty cache has no buffers yet that would tell their shapes."""
        return not self.why_not and cache.width > 0 and token_ids.shape[1] <= TOKENS[-1]

    def _replay(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        mask: TreeMask,
        cache: SlotCache,
    ) -> torch.Tensor | None:
        """Logits of every token, or None if this pass cannot be recorded."""
        (batch, count), last = token_ids.shape, mask.own.shape[2]
        tokens = next(size for size in TOKENS if size >= count)
        own = tokens if last == count else _power_of_two(last)
        slots = _power_of_two(max(cache.width + max(tokens, own - last + count), MIN_SLOTS))
        size = _Size(_power_of_two(batch), tokens, own, slots)
        arena = self._house(cache, size)
        recording = arena.recordings.get(size) or self._new_recording(arena, size, mask.kinds)
        if recording is None:
            return None
        first = cache.extend(count)
        _fill(recording.token_ids, token_ids)
        _fill(recording.positions, positions)
        _fill(recording.new_slots, first + np.arange(tokens))
        _fill(recording.visible, mask.visible[:batch, : mask.num_slots])
        if recording.slot_positions.numel():
            _fill(recording.slot_positions, mask.positions[:batch, : mask.num_slots])
        _fill(recording.own, mask.own)
        _fill(recording.own_slots, first + count - last + np.arange(own))
        _fill(recording.first_positions, mask.kinds.first_positions(mask.query_positions))
        recording.replay()
        return recording.logits[:batch, :count].clone()  # the next pass writes into the same place

    def _new_recording(self, arena: _Arena, size: _Size, kinds: AttentionKinds) -> _Recording | None:
        """Runs on inputs of zeros: nothing is visible, and a slot is written that is not in use yet."""

        def inputs(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        batch, tokens, own, slots = size
        has_windows = any(kinds.sizes.values())
        given = _Recording(
            token_ids=inputs(batch, tokens),
            positions=inputs(batch, tokens),
            new_slots=inputs(tokens),
            visible=inputs(batch, slots, dtype=torch.bool),
            slot_positions=inputs(batch, slots if has_windows else 0, dtype=torch.int32),
            own=inputs(batch, tokens, own, dtype=torch.bool),
            own_slots=inputs(own),
            first_positions=inputs(len(kinds.sizes), batch, tokens),
        )
        _fill(given.new_slots, arena.capacity - tokens + np.arange(tokens))
        _fill(given.own_slots, np.arange(own))
        cache = _ArenaCache(arena, size, given.new_slots)

        def run() -> torch.Tensor:
            seen = given.visible, given.slot_positions, given.own, given.own_slots, given.first_positions
            arguments = self._arguments(None, additive_masks(kinds, *seen, self.dtype), cache)
            if self._takes_position_ids:
                arguments["position_ids"] = given.positions
            logits: torch.Tensor = self._run(given.token_ids, arguments).logits
            return logits

        try:
            replay, logits = self._record(run)
        except Exception as problem:  # whatever a model does that cannot be recorded, it still runs as it is
            self.why_not = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
            _log.warning("passes are not recorded: %s", self.why_not)
            self._arenas = []
            return None
        recording = given._replace(replay=replay, logits=logits)
        arena.recordings[size] = recording
        return recording

    def _house(self, cache: SlotCache, size: _Size) -> _Arena:
        """The arena a cache lives in; it moves where it is not in one that is large enough."""
        for arena in self._arenas:
            if arena.holds(cache) and arena.has_room(size):
                return arena
        taken = [arena for arena in self._arenas if arena.is_taken() and not arena.is_owned_by(cache)]
        fit = [arena for arena in self._arenas if arena not in taken and arena.has_room(size)]
        room = max(2 * size.slots, _ARENA_SLOTS // size.batch)  # there is room for a recording's own tokens
        chosen = fit[0] if fit else _Arena(cache, size.batch, room)
        self._arenas = [*taken, chosen]  # what is free and too small is not kept
        chosen.take(cache)
        return chosen


class _Arena:
    """Keys and values at fixed addresses, for one cache after the other, and what was recorded on them."""

    def __init__(self, like: SlotCache, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.recordings: dict[_Size, _Recording] = {}
        self._owner: Callable[[], SlotCache | None] = lambda: None
        with torch.inference_mode(False):  # see slot_cache.py
            self.buffers = [
                [self._zeros(layer.key_buffer), self._zeros(layer.value_buffer)]
                if layer.is_initialized
                else []
                for layer in like.layers
            ]

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        """[batch, kv heads, capacity, channels]"""
        return like.new_zeros(self.batch, like.shape[1], self.capacity, like.shape[3])

    def has_room(self, size: _Size) -> bool:
        return size.batch <= self.batch and size.slots + size.tokens <= self.capacity

    def is_owned_by(self, cache: SlotCache) -> bool:
        return self._owner() is cache

    def holds(self, cache: SlotCache) -> bool:
        """Whether a cache's buffers are those here: it makes new ones when it grows or chooses rows."""
        return self.is_owned_by(cache) and all(
            not layer.is_initialized or layer.key_buffer.data_ptr() == pair[0].data_ptr()
            for layer, pair in zip(cache.layers, self.buffers, strict=True)
        )

    def is_taken(self) -> bool:
        owner = self._owner()
        return owner is not None and self.holds(owner)

    def leave(self) -> None:
        self._owner = lambda: None

    def take(self, cache: SlotCache) -> None:
        """Move a cache here; whose buffers it was using loses them."""
        width = cache.width
        for layer, pair in zip(cache.layers, self.buffers, strict=True):
            if not layer.is_initialized:
                continue
            batch = layer.key_buffer.shape[0]
            for name, buffer in zip(("key_buffer", "value_buffer"), pair, strict=True):
                rows = buffer.narrow(0, 0, batch)
                rows.narrow(2, 0, width).copy_(getattr(layer, name).narrow(2, 0, width))
                setattr(layer, name, rows)
        self._owner = weakref.ref(cache)


class _ArenaCache(SlotCache):
    """What a recorded pass takes for its cache: keys go to the slots that a tensor names."""

    def __init__(self, arena: _Arena, size: _Size, new_slots: torch.Tensor) -> None:
        super().__init__()
        self._arena, self._size, self._new_slots = arena, size, new_slots

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of all slots that the pass attends to."""
        views = []
        for buffer, states in zip(self._arena.buffers[layer_idx], (key_states, value_states), strict=True):
            rows = buffer.narrow(0, 0, self._size.batch)
            rows.index_copy_(2, self._new_slots, states)
            views.append(rows.narrow(2, 0, self._size.slots))
        return views[0], views[1]


def _fill(place: torch.Tensor, values: NDArray[Any]) -> None:
    """Write into the first elements of every dimension, and 0 into the others, without waiting."""
    whole = np.zeros(tuple(place.shape), values.dtype)
    whole[tuple(map(slice, values.shape))] = values
    place.copy_(staged(whole, place.device), non_blocking=True)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
