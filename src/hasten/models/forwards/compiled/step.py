"""One pass of a decoder, written for threads that walk through it side by side.

Every thread runs ``run`` with its own number. In each part it computes its share of the rows, columns or
heads; where a part reads what others wrote, all threads wait at a barrier. The residual stream, norms and
sums are float32; what is multiplied is rounded to the dtype of the weights.
"""

# ruff: noqa: PLR0917
from __future__ import annotations

import numba
import numpy as np

from hasten.finding import GROUP, look_at, merge
from hasten.models.forwards.compiled.arguments import AFTER_MLP, BEFORE_MLP, DOWN, NONE, UP
from hasten.models.forwards.compiled.attention_half import attention
from hasten.models.forwards.compiled.layer_parts import (
    add_half,
    inline,
    multiply_share,
    pack_norm,
    packed_offset,
)
from hasten.models.forwards.compiled.linear import multiply, share
from hasten.models.forwards.compiled.machine import barrier, read, sources_digest, stay_apart
from hasten.models.forwards.compiled.products import LANES
from hasten.models.forwards.compiled.rows import activate, norm, pack, packed_start, tanh
from hasten.models.forwards.compiled.sight import write_sight

GROUP_TILES = GROUP // LANES
"""Tiles of the head that are computed, and then looked at, together."""


def _stored(sources):
    """numba looks a function's compiled code up by its own file and by what it closes over."""

    @numba.njit(nogil=True, error_model="numpy", cache=True)
    def run(thread, num_threads, model, call, scratch, search, found):
        if sources >= 0:
            _run(thread, num_threads, model, call, scratch, search, found)

    return run


@inline
def _run(thread, num_threads, model, call, scratch, search, found):
    """The last barrier tells the first thread that all others are done."""
    phase, count = call.phase, len(call.token_ids)
    if not call.is_only_head:
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            _embed(model, call.token_ids[row], scratch.residual, row)
        write_sight(first, last, call, scratch)
        for layer in range(len(model.layers)):
            phase = attention(thread, num_threads, phase, layer, model, call, scratch)
            phase = _mlp(thread, num_threads, phase, layer, model, call, scratch)
    size, num_wanted = model.hidden_size, len(call.wanted)
    phase = barrier(scratch.arrivals, num_threads, phase)
    first, last = share(count, 1, thread, num_threads)
    _hidden_of_head(first, last, model, call, scratch)
    first, last = share(num_wanted, 1, thread, num_threads)
    for index in range(first, last):
        row = call.wanted[index]
        pack_norm(thread, model, model.last_norm, scratch, row, scratch.x, index, num_wanted, size)
    phase = barrier(scratch.arrivals, num_threads, phase)
    if num_wanted:
        _head(thread, num_threads, model, call, scratch, search, found)
    phase = barrier(scratch.arrivals, num_threads, phase)
    first, last = share(len(search.noises), 1, thread, num_threads)
    for row in range(first, last):
        merge(row, search, found)
    barrier(scratch.arrivals, num_threads, phase)


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
def _hidden_of_head(first, last, model, call, scratch):
    """What the head reads of rows first .. last - 1, where that is asked for."""
    stay_apart()
    size, eps = model.hidden_size, np.float32(model.eps)
    for place in range(len(call.hidden_layers)):
        if call.hidden_layers[place] == len(model.layers):
            for row in range(first, last):
                out = call.hidden[place, row]
                norm(
                    model.norm_kind,
                    scratch.residual,
                    row * size,
                    size,
                    model.vectors,
                    model.last_norm,
                    eps,
                    out,
                    0,
                )


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


@inline
def _mlp(thread, num_threads, phase, layer, model, call, scratch):
    count, size, inner = len(call.token_ids), model.hidden_size, model.inner_size
    norms, matrices = model.norms[layer], model.matrices[layer]
    if not model.is_parallel:
        phase = barrier(scratch.arrivals, num_threads, phase)
        first, last = share(count, 1, thread, num_threads)
        for row in range(first, last):
            pack_norm(thread, model, norms[BEFORE_MLP], scratch, row, scratch.x_mlp, row, count, size)
    phase = barrier(scratch.arrivals, num_threads, phase)
    first, last = multiply_share(
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
    phase = barrier(scratch.arrivals, num_threads, phase)
    matrix = matrices[DOWN]
    first, last = multiply_share(
        thread, num_threads, matrix, 1, model, scratch.x_inner, count, inner, scratch.wide
    )
    after = norms[AFTER_MLP]
    return add_half(thread, num_threads, phase, matrix, after, first, last, model, call, scratch)


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
            place = start + packed_offset(scratch.x_inner, tile // step * LANES, distance)
            lanes = min(LANES, inner - tile // step * LANES)
            pack(scratch.wide, at, lanes, scratch.x_inner, place, distance)


run = _stored(sources_digest())
"""One pass: run(thread, num_threads, Model, Call, Scratch, Search, Found)"""
