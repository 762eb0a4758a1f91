"""One pass of a decoder, written for threads that walk through it side by side.

Every thread runs ``run`` with its own number. In each phase it computes its share of the rows, columns or
heads; where the next phase reads what others wrote, all threads meet. The residual stream, norms and sums are
float32; what is multiplied is rounded to the dtype of the weights.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]

from hasten.finding import GROUP, look_at, merge
from hasten.models.compiled.arguments import (
    AFTER_ATTENTION,
    AFTER_MLP,
    BEFORE_ATTENTION,
    BEFORE_MLP,
    DOWN,
    NONE,
    OF_KEYS,
    OF_QUERIES,
    OUT,
    QKV,
    UP,
)
from hasten.models.compiled.attention import GROUP as QUERIES, pad_values, score, weigh
from hasten.models.compiled.linear import multiply, share
from hasten.models.compiled.machine import as_pointer, meet, read, sources_digest, stay_apart, write
from hasten.models.compiled.products import LANES, MAX_ROWS, PANEL
from hasten.models.compiled.rows import (
    activate,
    block_rows,
    norm,
    pack,
    packed_start,
    rotate,
    softmax_weights,
    tanh,
)

GROUP_TILES = GROUP // LANES
"""Tiles of the head that are computed, and then looked at, together."""

# Compiling takes seconds for each level of calls; these have one caller.
_inline = numba.njit(nogil=True, error_model="numpy", inline="always")


def _stored(sources):
    """numba looks a function's compiled code up by its own file and by what it closes over."""

    @numba.njit(nogil=True, error_model="numpy", cache=True)
    def run(thread, num_threads, model, call, scratch, search, found):
        if sources >= 0:
            _run(thread, num_threads, model, call, scratch, search, found)

    return run


@_inline
def _run(thread, num_threads, model, call, scratch, search, found):
    """The last meeting tells the first thread that all others are done."""
    meeting, count = call.meeting, len(call.token_ids)
    if not call.is_only_head:
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            _embed(model, call.token_ids[row], scratch.residual, row)
        for layer in range(len(model.layers)):
            meeting = _attention(thread, num_threads, meeting, layer, model, call, scratch)
            meeting = _mlp(thread, num_threads, meeting, layer, model, call, scratch)
    size, num_wanted = model.hidden_size, len(call.wanted)
    meeting = meet(scratch.meetings, num_threads, meeting)
    first, last = share(num_wanted, 1, thread, num_threads)
    for index in range(first, last):
        row = call.wanted[index]
        _pack_norm(thread, model, model.last_norm, scratch, row, scratch.x, index, num_wanted, size)
    meeting = meet(scratch.meetings, num_threads, meeting)
    if num_wanted:
        _head(thread, num_threads, model, call, scratch, search, found)
    meeting = meet(scratch.meetings, num_threads, meeting)
    first, last = share(len(search.noises), 1, thread, num_threads)
    for row in range(first, last):
        merge(row, search, found)
    meet(scratch.meetings, num_threads, meeting)


@numba.njit(nogil=True, error_model="numpy")
def _embed(model, token, residual, row):
    stay_apart()
    size, scale = model.hidden_size, np.float32(model.embedding_scale)
    if len(model.embeddings):
        for place in range(size):
            residual[row * size + place] = scale * read(model.embeddings, token * size + place)
        return
    width = 4 // model.weights.itemsize
    start = model.head[0] + token // LANES * LANES * size + token % LANES * width
    for place in range(size):
        at = start + place // width * width * LANES + place % width
        residual[row * size + place] = scale * read(model.weights, at)


@numba.njit(nogil=True, error_model="numpy")
def _head(thread, num_threads, model, call, scratch, search, found):
    """This thread's groups of logits, each looked at while it is near."""
    stay_apart()
    head, size, count = model.head, model.hidden_size, len(call.wanted)
    width, tile_size = head[1] * LANES, LANES * size
    first, last = share((head[1] + GROUP_TILES - 1) // GROUP_TILES, 1, thread, num_threads)
    for group in range(first, last):
        tile = group * GROUP_TILES
        some = min(GROUP_TILES, head[1] - tile)
        out, stride = scratch.own_logits[thread], GROUP_TILES * LANES
        if call.keeps_logits:
            out, stride = scratch.logits[tile * LANES :], width
        place = head[0] + tile * tile_size
        multiply(scratch.x, count, size, model.weights, place, tile_size, 0, some, out, stride)
        for row in range(count):
            _finish_logits(model, tile, out[row * stride : row * stride + some * LANES])
        if len(search.noises):
            look_at(group, out, 0, stride, thread, search, found)


@numba.njit(nogil=True, error_model="numpy")
def _finish_logits(model, tile, values):
    stay_apart()
    cap, bias = np.float32(model.logit_cap), model.head[2]
    if bias != NONE:
        biases = model.vectors[bias + tile * LANES :]
        for place in range(len(values)):
            values[place] += biases[place]
    for place in range(len(values)):
        values[place] *= np.float32(model.logit_scale)
    if cap > 0:
        for place in range(len(values)):
            values[place] = cap * tanh(values[place] / cap)


@numba.njit(nogil=True, error_model="numpy")
def _pack_norm(thread, model, weight, scratch, row, x, place, count, size):
    """The norm of a row of the residual stream, packed as row ``place`` of ``x``."""
    stay_apart()
    own, at = scratch.own_row[thread], row * size
    start, distance = packed_start(x, place, count, size)
    if weight == NONE:
        pack(scratch.residual, at, size, x, start, distance)
        return
    eps = np.float32(model.eps)
    norm(model.norm_kind, scratch.residual, at, size, model.vectors, weight, eps, own, 0)
    pack(own, 0, size, x, start, distance)


@numba.njit(nogil=True, error_model="numpy")
def _multiply(thread, num_threads, matrix, together, model, x, count, size, wide):
    """This thread's columns of a matrix with its bias, into ``wide``; returns which tiles they are.

    So many tiles ``together`` belong to the same thread.
    """
    stay_apart()
    num_tiles, bias = matrix[1], matrix[2]
    first, last = share(num_tiles // together, PANEL, thread, num_threads)
    first, last = first * together, last * together
    width = num_tiles * LANES
    multiply(x, count, size, model.weights, matrix[0], LANES * size, first, last, wide, width)
    if bias != NONE:
        biases = model.vectors[bias + first * LANES : bias + last * LANES]
        for row in range(count):
            values = wide[row * width + first * LANES : row * width + last * LANES]
            for place in range(len(biases)):
                values[place] += biases[place]
    return first, last


@numba.njit(nogil=True, error_model="numpy")
def _add(thread, num_threads, meeting, matrix, after, first, last, model, call, scratch):
    """Add what a half of a layer computed to the residual stream."""
    stay_apart()
    size, scale = model.hidden_size, np.float32(model.residual_scale)
    width = matrix[1] * LANES
    if after == NONE:  # each thread its own columns
        first, last = first * LANES, min(last * LANES, size)
        for row in range(len(call.token_ids)):
            stream = scratch.residual[row * size + first : row * size + last]
            values = scratch.wide[row * width + first : row * width + last]
            for place in range(len(stream)):
                stream[place] += scale * values[place]
        return meeting
    meeting = meet(scratch.meetings, num_threads, meeting)
    first, last = share(len(call.token_ids), 1, thread, num_threads)
    own, eps = scratch.own_row[thread], np.float32(model.eps)
    for row in range(first, last):
        norm(model.norm_kind, scratch.wide, row * width, size, model.vectors, after, eps, own, 0)
        stream = scratch.residual[row * size : (row + 1) * size]
        for place in range(size):
            stream[place] += scale * own[place]
    return meeting


@_inline
def _attention(thread, num_threads, meeting, layer, model, call, scratch):
    count, size = len(call.token_ids), model.hidden_size
    norms, matrices = model.norms[layer], model.matrices[layer]
    meeting = meet(scratch.meetings, num_threads, meeting)
    first, last = share(count, 1, thread, num_threads)
    for row in range(first, last):
        _pack_norm(thread, model, norms[BEFORE_ATTENTION], scratch, row, scratch.x, row, count, size)
        if model.is_parallel:
            _pack_norm(thread, model, norms[BEFORE_MLP], scratch, row, scratch.x_mlp, row, count, size)
    meeting = meet(scratch.meetings, num_threads, meeting)
    _multiply(thread, num_threads, matrices[QKV], 1, model, scratch.x, count, size, scratch.wide)
    meeting = meet(scratch.meetings, num_threads, meeting)
    if model.is_norm_of_all_heads:
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            _norm_heads(layer, row, model, scratch)
        meeting = meet(scratch.meetings, num_threads, meeting)
    _place_heads(thread, num_threads, layer, model, call, scratch)
    meeting = meet(scratch.meetings, num_threads, meeting)
    _attend(thread, num_threads, layer, model, call, scratch)
    meeting = meet(scratch.meetings, num_threads, meeting)
    inner = model.num_heads * model.head_size
    matrix = matrices[OUT]
    first, last = _multiply(thread, num_threads, matrix, 1, model, scratch.x, count, inner, scratch.wide)
    after = norms[AFTER_ATTENTION]
    return _add(thread, num_threads, meeting, matrix, after, first, last, model, call, scratch)


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


@_inline
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
    size, num_slots = model.head_size, call.num_slots
    padded = (size + LANES - 1) // LANES * LANES
    stride = (num_slots + LANES - 1) // LANES * LANES
    keys, per_sequence, per_head = _cache(call, layer, 0, model)
    values, _, _ = _cache(call, layer, 1, model)
    cached = sequence * per_sequence + head * per_head
    queries, scores = scratch.own_queries[thread], scratch.own_scores[thread]
    _pack_queries(thread, queries, layer, sequence, head, start, count, model, call, scratch)
    score(queries, count, keys, cached, size, num_slots, scratch.own_tile[thread], scores, stride)
    per_row, cap = model.num_heads // model.num_kv_heads, np.float32(model.score_cap)
    for query in range(count):
        row = call.starts[sequence] + (start + query) // per_row
        visible = call.visible[model.layers[layer, 0], row]
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
            at += _packed_offset(scratch.x, (head * per_row + (start + query) % per_row) * size, distance)
            pack(out, (query - first) * padded, size, scratch.x, at, distance)


@numba.njit(nogil=True, error_model="numpy")
def _packed_offset(x, place, distance):
    """From a row's first value to its value number ``place``, the first one of a unit."""
    return place * x.itemsize // 4 * distance


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


@_inline
def _mlp(thread, num_threads, meeting, layer, model, call, scratch):
    count, size, inner = len(call.token_ids), model.hidden_size, model.inner_size
    norms, matrices = model.norms[layer], model.matrices[layer]
    if not model.is_parallel:
        meeting = meet(scratch.meetings, num_threads, meeting)
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            _pack_norm(thread, model, norms[BEFORE_MLP], scratch, row, scratch.x_mlp, row, count, size)
    meeting = meet(scratch.meetings, num_threads, meeting)
    first, last = _multiply(
        thread,
        num_threads,
        matrices[UP],
        2 if model.is_gated else 1,
        model,
        scratch.x_mlp,
        count,
        size,
        scratch.wide,
    )
    _activate(first, last, matrices[UP], count, model, scratch)
    meeting = meet(scratch.meetings, num_threads, meeting)
    matrix = matrices[DOWN]
    first, last = _multiply(
        thread, num_threads, matrix, 1, model, scratch.x_inner, count, inner, scratch.wide
    )
    after = norms[AFTER_MLP]
    return _add(thread, num_threads, meeting, matrix, after, first, last, model, call, scratch)


@numba.njit(nogil=True, error_model="numpy")
def _activate(first, last, matrix, count, model, scratch):
    """Activate this thread's tiles and pack them; a gated MLP has tiles of gate and up in turns."""
    stay_apart()
    width, inner, step = matrix[1] * LANES, model.inner_size, 2 if model.is_gated else 1
    for row in range(count):
        start, distance = packed_start(scratch.x_inner, row, count, inner)
        for tile in range(first, last, step):
            at = row * width + tile * LANES
            values = scratch.wide[at : at + 2 * LANES]
            activate(model.activation, values)
            if model.is_gated:
                for lane in range(LANES):
                    values[lane] *= values[LANES + lane]
            place = start + _packed_offset(scratch.x_inner, tile // step * LANES, distance)
            lanes = min(LANES, inner - tile // step * LANES)
            pack(scratch.wide, at, lanes, scratch.x_inner, place, distance)


run = _stored(sources_digest())
"""One pass: run(thread, num_threads, Model, Call, Scratch, Search, Found)"""
