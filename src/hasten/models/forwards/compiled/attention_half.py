"""The half of a layer that attends: queries, keys and values, the cache, scores, and the way out."""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]

from hasten.models.forwards.compiled.arguments import (
    AFTER_ATTENTION,
    BEFORE_ATTENTION,
    BEFORE_MLP,
    NONE,
    OF_KEYS,
    OF_QUERIES,
    OUT,
    QKV,
)
from hasten.models.forwards.compiled.attention import GROUP as QUERIES, pad_values, score, weigh
from hasten.models.forwards.compiled.layer_parts import (
    add_half,
    inline,
    multiply_share,
    pack_norm,
    packed_offset,
)
from hasten.models.forwards.compiled.linear import share
from hasten.models.forwards.compiled.machine import as_pointer, barrier, stay_apart, write
from hasten.models.forwards.compiled.products import LANES, MAX_ROWS
from hasten.models.forwards.compiled.rows import block_rows, norm, pack, packed_start, rotate, softmax_weights


@inline
def attention(thread, num_threads, phase, layer, model, call, scratch):
    count, size = len(call.token_ids), model.hidden_size
    norms, matrices = model.norms[layer], model.matrices[layer]
    phase = barrier(scratch.arrivals, num_threads, phase)
    first, last = share(count, 1, thread, num_threads)
    copy_hidden(layer, first, last, size, call, scratch)
    for row in range(first, last):
        pack_norm(thread, model, norms[BEFORE_ATTENTION], scratch, row, scratch.x, row, count, size)
        if model.is_parallel:
            pack_norm(thread, model, norms[BEFORE_MLP], scratch, row, scratch.x_mlp, row, count, size)
    phase = barrier(scratch.arrivals, num_threads, phase)
    multiply_share(thread, num_threads, matrices[QKV], 1, model, scratch.x, count, size, scratch.wide)
    phase = barrier(scratch.arrivals, num_threads, phase)
    if model.is_norm_of_all_heads:
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            _norm_heads(layer, row, model, scratch)
        phase = barrier(scratch.arrivals, num_threads, phase)
    _place_heads(thread, num_threads, layer, model, call, scratch)
    phase = barrier(scratch.arrivals, num_threads, phase)
    _attend(thread, num_threads, layer, model, call, scratch)
    phase = barrier(scratch.arrivals, num_threads, phase)
    inner = model.num_heads * model.head_size
    matrix = matrices[OUT]
    first, last = multiply_share(thread, num_threads, matrix, 1, model, scratch.x, count, inner, scratch.wide)
    after = norms[AFTER_ATTENTION]
    return add_half(thread, num_threads, phase, matrix, after, first, last, model, call, scratch)


@numba.njit(nogil=True, error_model="numpy")
def copy_hidden(layer, first, last, size, call, scratch):
    """What a layer is given in rows first .. last - 1, where that is asked for."""
    stay_apart()
    for place in range(len(call.hidden_layers)):
        if call.hidden_layers[place] == layer:
            for row in range(first, last):
                call.hidden[place, row] = scratch.residual[row * size : (row + 1) * size]


@numba.njit(nogil=True, error_model="numpy")
def _cache(call, layer, which, model):
    """(keys or values of a layer as one array, channels between sequences, channels between heads)."""
    per_head = call.caches[layer, 2] * model.head_size
    per_sequence = per_head * model.num_kv_heads
    length = per_sequence * (len(call.starts) - 1)
    memory = carray(as_pointer(call.caches[layer, which]), (length,), model.weights.dtype)
    return memory, per_sequence, per_head


@numba.njit(nogil=True, error_model="numpy")
def _place_heads(thread, num_threads, layer, model, call, scratch):
    """Norm and rotate queries and keys where they are, and write keys and values into the cache."""
    stay_apart()
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_size
    width = model.matrices[layer, QKV, 1] * LANES
    keys, per_sequence, per_head = _cache(call, layer, 0, model)
    values, _, _ = _cache(call, layer, 1, model)
    all_heads = heads + 2 * kv_heads
    first, last = share(len(call.token_ids) * all_heads, 1, thread, num_threads)
    sequence = 0
    for item in range(first, last):
        row, head = item // all_heads, item % all_heads
        at = row * width + head * size
        if head < heads + kv_heads:
            _rotate_head(layer, head < heads, row, at, model, call, scratch)
        if head < heads:
            continue
        while call.starts[sequence + 1] <= row:
            sequence += 1
        target = keys if head < heads + kv_heads else values
        place = sequence * per_sequence + (head - heads) % kv_heads * per_head + call.slots[row] * size
        slot, values_of_head = target[place : place + size], scratch.wide[at : at + size]
        for channel in range(size):
            write(slot, channel, values_of_head[channel])


@numba.njit(nogil=True, error_model="numpy")
def _norm_heads(layer, row, model, scratch):
    """One norm over the queries, one over the keys of all heads of a row."""
    stay_apart()
    width, eps = model.matrices[layer, QKV, 1] * LANES, np.float32(model.eps)
    at, size = row * width, model.num_heads * model.head_size
    for weight in (model.norms[layer, OF_QUERIES], model.norms[layer, OF_KEYS]):
        norm(model.norm_kind, scratch.wide, at, size, model.vectors, weight, eps, scratch.wide, at)
        at, size = at + size, model.num_kv_heads * model.head_size


@numba.njit(nogil=True, error_model="numpy")
def _rotate_head(layer, is_query, row, at, model, call, scratch):
    stay_apart()
    weight = model.norms[layer, OF_QUERIES if is_query else OF_KEYS]
    if weight != NONE and not model.is_norm_of_all_heads:
        size, eps = model.head_size, np.float32(model.eps)
        norm(model.norm_kind, scratch.wide, at, size, model.vectors, weight, eps, scratch.wide, at)
    kind = model.layers[layer, 1]
    if kind != NONE:
        rotate(scratch.wide, at, model.rotary_size, call.angles[kind, call.positions[row]])


@inline
def _attend(thread, num_threads, layer, model, call, scratch):
    """This thread's groups of queries; those of a group share a key-value head."""
    num_sequences, kv_heads = len(call.starts) - 1, model.num_kv_heads
    per_row = model.num_heads // kv_heads
    total = 0
    for sequence in range(num_sequences):
        queries = (call.starts[sequence + 1] - call.starts[sequence]) * per_row
        total += kv_heads * ((queries + MAX_ROWS - 1) // MAX_ROWS)
    first, last = share(total, 1, thread, num_threads)
    done = 0
    for sequence in range(num_sequences):
        queries = (call.starts[sequence + 1] - call.starts[sequence]) * per_row
        blocks = (queries + MAX_ROWS - 1) // MAX_ROWS
        for head in range(kv_heads):
            block, end = max(first - done, 0), min(last - done, blocks)
            while block < end:
                some = min(end - block, QUERIES // MAX_ROWS)
                start = block * MAX_ROWS
                count = min(queries - start, some * MAX_ROWS)
                _attend_group(thread, layer, sequence, head, start, count, model, call, scratch)
                block += some
            done += blocks


@numba.njit(nogil=True, error_model="numpy")
def _attend_group(thread, layer, sequence, head, start, count, model, call, scratch):
    """``count`` queries from ``start`` on, of one sequence and one key-value head."""
    stay_apart()
    kind = model.layers[layer, 0]
    first_slot = scratch.first_slots[kind, sequence]
    size, num_slots = model.head_size, call.num_slots - first_slot
    padded = (size + LANES - 1) // LANES * LANES
    stride = (num_slots + LANES - 1) // LANES * LANES
    keys, per_sequence, per_head = _cache(call, layer, 0, model)
    values, _, _ = _cache(call, layer, 1, model)
    cached = sequence * per_sequence + head * per_head + first_slot * size
    queries, scores = scratch.own_queries[thread], scratch.own_scores[thread]
    _pack_queries(thread, queries, layer, sequence, head, start, count, model, call, scratch)
    score(queries, count, keys, cached, size, num_slots, scratch.own_tile[thread], scores, stride)
    per_row, cap = model.num_heads // model.num_kv_heads, np.float32(model.score_cap)
    for query in range(count):
        row = call.starts[sequence] + (start + query) // per_row
        visible = scratch.visible[kind * len(call.token_ids) + row]
        softmax_weights(scores, query * stride, num_slots, visible, cap)
    padding, out = scratch.own_padding[thread], scratch.own_values[thread]
    if padded != size:
        pad_values(values, cached, size, padded, num_slots, padding)
    inner, num_rows = model.num_heads * size, len(call.token_ids)
    for first in range(0, count, MAX_ROWS):
        rows = block_rows(first // MAX_ROWS, count)
        place = first * stride
        weigh(
            rows, scores, place, stride, values, cached, size, padded, num_slots, padding, out, scratch.ones
        )
        for query in range(first, min(first + MAX_ROWS, count)):
            row = call.starts[sequence] + (start + query) // per_row
            at, distance = packed_start(scratch.x, row, num_rows, inner)
            at += packed_offset(scratch.x, (head * per_row + (start + query) % per_row) * size, distance)
            pack(out, (query - first) * padded, size, scratch.x, at, distance)


@numba.njit(nogil=True, error_model="numpy")
def _pack_queries(thread, queries, layer, sequence, head, start, count, model, call, scratch):
    """Scaled; queries that fill up the last block are 0."""
    stay_apart()
    size, per_row = model.head_size, model.num_heads // model.num_kv_heads
    width, own = model.matrices[layer, QKV, 1] * LANES, scratch.own_row[thread]
    filled = (count - 1) // MAX_ROWS * MAX_ROWS + block_rows((count - 1) // MAX_ROWS, count)
    for query in range(filled):
        row = call.starts[sequence] + (start + query) // per_row
        at = row * width + (head * per_row + (start + query) % per_row) * size
        scale = np.float32(model.score_scale if query < count else 0.0)
        values = scratch.wide[at if query < count else 0 :][:size]
        for channel in range(size):
            own[channel] = values[channel] * scale
        place, distance = packed_start(queries, query, count, size)
        pack(own, 0, size, queries, place, distance)
