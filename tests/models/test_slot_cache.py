"""Caches written in place: any history leaves what joining plain tensors leaves, and models cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import DynamicCache

from conftest import ARCHITECTURES, VOCAB, finest_dtype
from hasten.core import Acceptance
from hasten.models.sessions.slot_cache import MIN_GROWTH, SlotCache, SlotLayer
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

ATTENTION = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode in ("tree", "chain")]
KV_HEADS, KEY_CHANNELS, VALUE_CHANNELS = 2, 3, 5


class Plain:
    """The same layer with torch.cat."""

    def __init__(self, batch: int) -> None:
        self.pair = [torch.zeros(batch, KV_HEADS, 0, channels) for channels in (KEY_CHANNELS, VALUE_CHANNELS)]

    def update(self, *new: torch.Tensor) -> None:
        self.pair = [torch.cat((old, one), 2) for old, one in zip(self.pair, new, strict=True)]

    def truncate(self, width: int) -> None:
        self.pair = [states[:, :, :width] for states in self.pair]

    def select(self, rows: torch.Tensor) -> None:
        self.pair = [states[rows] for states in self.pair]

    def gather(self, order: np.ndarray) -> None:
        rows = [torch.stack([one[row][:, order[row]] for row in range(len(order))]) for one in self.pair]
        self.pair = rows


def new_states(rng: np.random.Generator, batch: int, count: int) -> list[torch.Tensor]:
    """Not contiguous, as transformers hands them over."""
    return [
        torch.from_numpy(rng.normal(size=(batch, count, KV_HEADS, channels)).astype(np.float32)).transpose(
            1, 2
        )
        for channels in (KEY_CHANNELS, VALUE_CHANNELS)
    ]


def an_order(rng: np.random.Generator, batch: int, width: int) -> np.ndarray:
    """What stays, of every row: a beginning, and some of the slots behind it."""
    size, start = int(rng.integers(0, width + 1)), int(rng.integers(0, width + 1))
    order = np.stack([np.sort(rng.permutation(width)[:size]) for _ in range(batch)]).astype(np.int64)
    order[:, : min(start, size)] = np.arange(min(start, size))
    return order if rng.random() < 0.7 else rng.permuted(order, axis=1)


def check(cache: SlotCache, plain: Plain) -> None:
    layer = cache.layers[0]
    for found, expected in zip(layer.states(), plain.pair, strict=True):
        assert torch.equal(found, expected)
    assert cache.width == layer.get_seq_length() == plain.pair[0].shape[2]
    assert layer.get_mask_sizes(4) == (layer.width + 4, 0)
    for buffer in (layer.key_buffer, layer.value_buffer):
        assert buffer.is_contiguous()
        assert buffer.shape[2] == layer.capacity
        assert buffer.isfinite().all()


OPERATIONS = ("update", "update", "truncate", "select", "gather", "extend", "reserve")


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    operations=st.lists(st.sampled_from(OPERATIONS), max_size=12),
    modes=st.integers(0, 2**12 - 1),
)
def test_any_history_leaves_what_joining_tensors_leaves(seed: int, operations: list[str], modes: int) -> None:
    """Inside inference mode and outside of it, in any order."""
    rng, batch = np.random.default_rng(seed), 3
    cache, plain = SlotCache(), Plain(batch)
    for step, operation in enumerate(["update", *operations]):
        with torch.inference_mode(bool(modes >> step & 1)):
            width = cache.width
            if operation == "update":
                new = new_states(rng, batch, int(rng.choice([1, 5, 40, 300])))
                found = cache.update(new[0], new[1], 0)
                plain.update(*new)
                assert all(map(torch.equal, found, plain.pair))
            elif operation == "truncate":
                width = int(rng.integers(0, width + 2))
                cache.truncate(width)
                plain.truncate(width)
            elif operation == "select":
                rows = torch.from_numpy(rng.integers(0, batch, int(rng.integers(1, 5))))
                cache.select(rows)
                plain.select(rows)
                batch = len(rows)
            elif operation == "gather":
                order = an_order(rng, batch, width)
                cache.gather(order)
                plain.gather(order)
            elif operation == "extend":
                new = new_states(rng, batch, int(rng.integers(1, 9)))
                first = cache.extend(new[0].shape[2])
                assert first == width
                layer = cache.layers[0]
                layer.key_buffer[:, :, first : layer.width] = new[0]
                layer.value_buffer[:, :, first : layer.width] = new[1]
                plain.update(*new)
            else:
                cache.reserve(width + int(rng.integers(0, 400)))
        check(cache, plain)


def filled(count: int, batch: int = 1) -> SlotCache:
    cache = SlotCache()
    keys, values = new_states(np.random.default_rng(0), batch, count)
    cache.update(keys, values, 0)
    return cache


def test_new_slots_are_written_in_place_while_there_is_room() -> None:
    cache = filled(10)
    layer = cache.layers[0]
    places = layer.key_buffer.data_ptr(), layer.value_buffer.data_ptr()
    keys, values = new_states(np.random.default_rng(1), 1, 3)
    for _ in range(60):
        found = cache.update(keys, values, 0)
        assert (found[0].data_ptr(), found[1].data_ptr()) == places
        cache.truncate(cache.width - 1)
        cache.gather(np.arange(cache.width)[None])
    assert cache.width == 130
    assert (layer.key_buffer.data_ptr(), layer.value_buffer.data_ptr()) == places


@pytest.mark.parametrize(("capacity", "grown"), [(256, 512), (1024, 1280), (2048, 2560), (1000, 1280)])
def test_a_full_buffer_grows_by_a_quarter_and_no_less_than_that(capacity: int, grown: int) -> None:
    cache = SlotCache()
    cache.reserve(capacity)
    keys, values = new_states(np.random.default_rng(0), 1, -(-capacity // 64) * 64)
    cache.update(keys, values, 0)
    layer = cache.layers[0]
    assert layer.capacity == keys.shape[2]
    cache.update(keys[:, :, :1], values[:, :, :1], 0)
    assert layer.capacity == grown
    assert grown - capacity >= MIN_GROWTH
    assert torch.equal(layer.states()[0], torch.cat((keys, keys[:, :, :1]), 2))
    assert not layer.key_buffer[:, :, layer.width :].any()


def test_room_can_be_made_before_there_are_layers() -> None:
    cache = SlotCache()
    cache.reserve(1000)
    keys, values = new_states(np.random.default_rng(0), 1, 2)
    cache.update(keys, values, 3)
    assert [layer.is_initialized for layer in cache.layers] == [False, False, False, True]
    assert cache.layers[3].capacity == 1024
    assert cache.states()[:3] == [None, None, None]
    assert cache.layers[0].keys is cache.layers[0].values is None
    assert cache.get_seq_length(0) == 0
    assert cache.get_seq_length(3) == 2


def test_a_layer_can_be_made_without_keys_and_written_from_outside() -> None:
    layer = SlotLayer(100)
    layer.allocate(2, KV_HEADS, KEY_CHANNELS, VALUE_CHANNELS, dtype=torch.float64, device="cpu")
    assert layer.key_buffer.shape == (2, KV_HEADS, 128, KEY_CHANNELS)
    assert layer.value_buffer.shape == (2, KV_HEADS, 128, VALUE_CHANNELS)
    assert layer.key_buffer.dtype == torch.float64
    assert [layer.reserve_slots(count) for count in (3, 100, 30)] == [0, 3, 103]
    assert layer.width == 133
    assert layer.capacity >= 133
    layer.key_buffer[:, :, 103:133] = 1.0
    assert layer.keys is not None
    assert layer.keys.sum() == 2 * KV_HEADS * 30 * KEY_CHANNELS


def test_a_blank_cache_has_the_layers_of_another_and_zeros() -> None:
    cache = SlotCache()
    keys, values = new_states(np.random.default_rng(0), 2, 7)
    cache.update(keys, values, 1)
    made = cache.blank(5, 9, 300)
    assert [layer.is_initialized for layer in made.layers] == [False, True]
    assert made.layers[1].key_buffer.shape == (5, KV_HEADS, 320, KEY_CHANNELS)
    assert made.layers[1].value_buffer.shape == (5, KV_HEADS, 320, VALUE_CHANNELS)
    assert made.width == 9
    assert not made.layers[1].key_buffer.any()


def test_memory_is_that_of_the_buffers_and_that_of_what_is_in_use() -> None:
    cache = filled(10, batch=2)
    per_slot = 2 * KV_HEADS * (KEY_CHANNELS + VALUE_CHANNELS) * 4
    assert cache.num_used_bytes() == 10 * per_slot
    assert cache.num_bytes() == 256 * per_slot
    assert SlotCache().num_bytes() == SlotCache().num_used_bytes() == 0


def test_what_transformers_may_ask_of_a_layer() -> None:
    stock, ours = DynamicCache(), filled(10, batch=2)
    stock.update(*ours.layers[0].states(), 0)
    for cache in (stock, ours):
        cache.crop(-3)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 0]))
        cache.batch_select_indices(torch.tensor([0, 2]))
    assert stock.layers[0].keys is not None
    assert torch.equal(ours.layers[0].states()[0], stock.layers[0].keys)
    assert ours.get_seq_length() == stock.get_seq_length() == 7
    assert ours.get_mask_sizes(5, 0) == stock.get_mask_sizes(5, 0)
    assert ours.get_mask_sizes(5, 9) == stock.get_mask_sizes(5, 9)
    assert ours.get_max_length() == stock.get_max_length()
    with pytest.raises(ValueError, match="minus the number"):
        ours.crop(3)
    ours.crop(-100)
    assert ours.width == 0
    ours.reset()
    assert ours.layers[0].keys is None
    assert ours.num_bytes() == 0


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.inference_mode()
def test_a_model_computes_bit_for_bit_what_it_does_over_its_own_cache(
    targets: Any, monkeypatch: pytest.MonkeyPatch, name: str, implementation: str
) -> None:
    """Several passes, with growth and forgotten slots between them."""
    forward = targets(name, finest_dtype(name)).forward
    if forward.config._attn_implementation == "sdpa":
        monkeypatch.setattr(forward.config, "_attn_implementation_internal", implementation)
    monkeypatch.setattr("hasten.models.sessions.slot_cache.MIN_GROWTH", 8)
    rng, caches = np.random.default_rng(0), (DynamicCache(), SlotCache())
    start, capacities = 0, set()
    for size in (9, 1, 5, 70, 1, 8):
        token_ids = rng.integers(2, VOCAB, (2, size))
        positions = np.tile(np.arange(start, start + size), (2, 1))
        one, other = (forward(token_ids, positions, None, cache) for cache in caches)
        assert torch.equal(one, other)
        start += size - 1
        capacities.add(caches[1].layers[0].capacity)
        for cache in caches:
            cache.crop(-1)
    assert len(capacities) > 1
    for stock, ours in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(stock.keys, ours.keys)
        assert torch.equal(stock.values, ours.values)


def test_a_step_of_a_session_moves_no_buffer(targets: Any) -> None:
    session = TreeSession(targets().forward, max_holes=4)
    session.prefill([[5, 6, 7], [8, 9]])
    places = [layer.key_buffer.data_ptr() for layer in session._cache.layers]
    for _ in range(20):
        session.forward([DraftTree([3, 4, 5], [-1, -1, 1])] * 2)
        session.keep([Acceptance([1, 2], [4, 5, 6]), Acceptance([], [7])])
        assert session._cache.width == session._table.visible.shape[1]
    assert [layer.key_buffer.data_ptr() for layer in session._cache.layers] == places


def test_copies_of_a_row_are_not_overwritten_by_later_steps(targets: Any) -> None:
    session = TreeSession(targets().forward)
    session.prefill([[5, 6, 7, 8]])
    copy = session.cached(0)
    before = [tuple(states.clone() for states in pair) for pair in copy.layers if pair is not None]
    session._truncate(0)
    session.forward([DraftTree([3, 4, 5, 6], [-1, 0, 1, 2])])
    for pair, expected in zip(copy.layers, before, strict=True):
        assert pair is not None
        assert all(map(torch.equal, pair, expected))
