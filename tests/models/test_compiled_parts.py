"""Parts of the compiled pass: products of tiles, rows that are packed, threads that wait for each other."""

# ruff: noqa: PLR0917
from __future__ import annotations

import os
import threading
import time

import numba
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compiled_models import compiled, text_of, torch_threads
from hasten.floats import exp
from hasten.models.forwards.compiled import products
from hasten.models.forwards.compiled.linear import multiply, share
from hasten.models.forwards.compiled.machine import barrier, read, transpose_16, write
from hasten.models.forwards.compiled.products import LANES, MAX_ROWS, PANEL, ROW_COUNTS
from hasten.models.forwards.compiled.rows import (
    ACTIVATIONS,
    LAYER_NORM,
    RMS_NORM,
    activate,
    block_rows,
    norm,
    pack,
    packed_start,
    softmax_weights,
)
from hasten.models.forwards.compiled.thread_pool import ThreadPool, thread_pool
from hasten.models.forwards.compiled.tiles import TiledEmbedding, TiledLinear, Tiles
from hasten.models.sessions.attention import AttentionKinds, TreeMask
from hasten.models.sessions.slot_cache import SlotCache

KINDS = {torch.float32: np.float32, torch.bfloat16: np.uint16}
DTYPES = list(KINDS)


def as_numpy(tensor):
    return (
        tensor.contiguous()
        .reshape(-1)
        .view(torch.uint16 if tensor.dtype is torch.bfloat16 else tensor.dtype)
        .numpy()
    )


def product_of(rows, tiles, layout):
    product = products.tile_product(rows, tiles, layout)

    @numba.njit
    def run(x, x_stride, w, w_at, w_tile, w_unit, units, out, stride):
        product(x, 0, x_stride, w, w_at, w_tile, w_unit, units, out, 0, stride, w_tile, w_unit)

    return run


def packed_rows(values, kind):
    """Rows [rows, inner] of one block as packed x."""
    width = 4 // np.dtype(kind).itemsize
    units = values.view(len(values), -1, width).transpose(0, 1)
    return as_numpy(units.float()).view(kind) if kind == np.uint32 else as_numpy(units)


def packed_product(rows, tiles, dtype, units):
    """(what tile_product gives, what it should) of packed x and packed tiles."""
    generator = torch.Generator().manual_seed(rows + 10 * tiles)
    width = 4 // dtype.itemsize
    x = torch.randn(rows, units * width, generator=generator).to(dtype)
    w = torch.randn(tiles, LANES, units * width, generator=generator).to(dtype)
    packed_w = as_numpy(w.view(tiles, LANES, units, width).transpose(1, 2))
    packed_x = packed_rows(x, products.packed_kind(packed_w))
    out = np.full((rows, tiles * LANES + 3), -1, np.float32)
    distances = LANES * units * width, LANES * width
    product_of(rows, tiles, "packed")(
        packed_x, 0, packed_w, 0, *distances, units, out.reshape(-1), out.shape[1]
    )
    assert (out[:, tiles * LANES :] == -1).all()
    return out[:, : tiles * LANES], (x.double() @ w.double().flatten(0, 1).T).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", sorted({1, PANEL, 4}))
@pytest.mark.parametrize("rows", ROW_COUNTS)
def test_packed_products_are_those_of_matrices(rows, tiles, dtype):
    for units in (1, 7, 40):
        found, expected = packed_product(rows, tiles, dtype, units)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("rows", ROW_COUNTS)
def test_a_cpu_without_bfloat16_products_computes_the_same(rows, monkeypatch):
    monkeypatch.setattr(products, "HAS_BF16_DOT", False)
    for tiles in sorted({1, PANEL}):
        found, expected = packed_product(rows, tiles, torch.bfloat16, 40)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("rows", ROW_COUNTS)
def test_products_of_rows_are_those_of_matrices(rows, tiles, dtype):
    units, channels, stride = 37, 48, 41
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, stride, generator=generator)
    w = torch.randn(units, channels, generator=generator).to(dtype)
    out = np.full((rows, channels), -1, np.float32)
    product_of(rows, tiles, "rows")(
        as_numpy(x), stride, as_numpy(w), 16, LANES, channels, units, out.reshape(-1), channels
    )
    expected = x[:, :units].double() @ w.double()[:, 16 : 16 + tiles * LANES]
    np.testing.assert_allclose(out[:, : tiles * LANES], expected.numpy(), atol=1e-4)
    assert (out[:, tiles * LANES :] == -1).all()


@numba.njit
def _round_trip(values, array, out):
    for place in range(len(values)):
        write(array, place, values[place])
        out[place] = read(array, place)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_rounded_as_torch_rounds_them(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator) * 10.0 ** torch.arange(-5, 5).repeat(100)
    values[:6] = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, -1.00390625, 3e38])  # ties to even
    array, out = np.zeros(1000, KINDS[dtype]), np.zeros(1000, np.float32)
    _round_trip(values.numpy(), array, out)
    assert torch.equal(torch.from_numpy(out), values.to(dtype).float())


@numba.njit
def _exps(values):
    for place in range(len(values)):
        values[place] = exp(values[place])


def test_exp_is_exact_to_float32_and_0_far_below():
    values = np.linspace(-86.9, 88, 10_001).astype(np.float32)
    found = values.copy()
    _exps(found)
    np.testing.assert_allclose(found, np.exp(values.astype(np.float64)), rtol=4e-7)
    far = np.array([-3e38, -1e5, -88], np.float32)
    _exps(far)
    assert not far.any()
    far = np.array([89, 95, 1e4, 3e38], np.float32)
    _exps(far)
    assert np.isposinf(far).all()


@numba.njit
def _activate(kind, values):
    for start in range(0, len(values), LANES):
        activate(kind, values[start : start + LANES])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch_however_large(name, dtype):
    x = torch.cat([size * torch.linspace(-1, 1, 2048) for size in (1, 10, 100, 1e4, 1e30)]).to(dtype).float()
    x = torch.cat((x, torch.tensor([1e30, *[0.0] * 14, -95.0]), torch.full((16,), torch.nan)))
    found = x.numpy().copy()
    _activate(ACTIVATIONS.index(name), found)
    expected = {
        "silu": functional.silu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "gelu": functional.gelu,
        "relu": functional.relu,
        "relu2": lambda x: functional.relu(x) ** 2,
    }[name](x)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@numba.njit
def _norm(kind, values, vectors, out):
    norm(kind, values, 0, len(values), vectors, 0, np.float32(1e-6), out, 0)


@pytest.mark.parametrize("size", [1e-20, 1e-4, 1.0, 1e4, 1e15, torch.nan])
@pytest.mark.parametrize("kind", [RMS_NORM, LAYER_NORM])
def test_norms_are_those_of_torch_however_large(kind, size):
    x, vectors = size * torch.randn(48), torch.randn(96)
    out = np.zeros(48, np.float32)
    _norm(kind, x.numpy(), vectors.numpy(), out)
    of_torch = functional.rms_norm if kind == RMS_NORM else functional.layer_norm
    expected = of_torch(x, (48,), eps=1e-6) * vectors[:48] + vectors[48:]
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@numba.njit
def _softmax(scores, visible, cap):
    softmax_weights(scores, 0, len(scores), visible, cap)


@pytest.mark.parametrize("cap", [0.0, 50.0])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e4, 1e30, torch.nan])
def test_softmax_is_that_of_torch_however_large(size, cap):
    scores, visible = size * torch.randn(40), torch.arange(40) % 3 > 0
    found = scores.numpy().copy()
    _softmax(found, visible.numpy(), np.float32(cap))
    found = torch.from_numpy(found)
    capped = cap * torch.tanh(scores / cap) if cap else scores
    expected = torch.softmax(capped.masked_fill(~visible, -torch.inf), 0)
    torch.testing.assert_close(found / found.sum(), expected, rtol=1e-4, atol=1e-6, equal_nan=True)


@numba.njit
def _transpose(source, target):
    transpose_16(source, 3, 20, target, 5)


def test_blocks_of_16_are_transposed():
    source, target = np.arange(400, dtype=np.float32), np.zeros(300, np.float32)
    _transpose(source, target)
    block = source[3 : 3 + 320].reshape(16, 20)[:, :16]
    assert np.array_equal(target[5 : 5 + 256].reshape(16, 16), block.T)


@pytest.mark.parametrize("kind", [np.float32, np.uint16, np.uint32])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 6, 7, 8, 9, 16, 19])
def test_packed_rows_have_places_of_their_own(num_rows, kind):
    size = 12
    values = torch.randn(num_rows, size)
    blocks = -(-num_rows // MAX_ROWS)
    x = np.zeros(blocks * MAX_ROWS * size, kind)
    for row in range(num_rows):
        start, distance = packed_start(x, row, num_rows, size)
        pack(values.reshape(-1).numpy(), row * size, size, x, start, distance)
    at = 0
    for block in range(blocks):
        rows = block_rows(block, num_rows)
        expected = torch.zeros(rows, size)
        some = values[block * MAX_ROWS :][:rows]
        expected[: len(some)] = some
        if kind is not np.float32:
            expected = expected.bfloat16()
        assert np.array_equal(x[at : at + rows * size], packed_rows(expected, kind))
        at += rows * size


@numba.njit
def _matrix(values, num_rows, size, x, w, num_tiles, out):
    for row in range(num_rows):
        start, distance = packed_start(x, row, num_rows, size)
        pack(values, row * size, size, x, start, distance)
    multiply(x, num_rows, size, w, 0, LANES * size, 0, num_tiles, out, num_tiles * LANES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tiles", [1, 3, 4, 6, 11])
def test_rows_of_a_matrix_product_do_not_depend_on_their_number(num_tiles, dtype):
    """Up to more blocks of rows than elements of a unit: then each fetches one, and some again."""
    generator, most, size = torch.Generator().manual_seed(0), 17 * MAX_ROWS + 1, 24
    values = torch.randn(most, size, generator=generator)
    weights = torch.randn(num_tiles * LANES, size, generator=generator).to(dtype)
    tiles = Tiles(weights.numel(), dtype)
    tiles.add(weights)
    exact = values.to(dtype).double() @ weights.double().T
    whole = None
    for num_rows in (most, *range(1, 2 * MAX_ROWS + 2)):
        x = np.zeros((num_rows + MAX_ROWS) * size, products.packed_kind(tiles.values))
        out = np.zeros((num_rows + MAX_ROWS, num_tiles * LANES), np.float32)
        _matrix(values.numpy().reshape(-1), num_rows, size, x, tiles.values, num_tiles, out.reshape(-1))
        whole = out if whole is None else whole
        assert np.array_equal(out[:num_rows], whole[:num_rows])
        np.testing.assert_allclose(out[:num_rows], exact[:num_rows].numpy(), atol=1e-4)


@pytest.mark.parametrize("multiple", [1, 3])
def test_shares_cover_everything_once(multiple):
    for count in range(40):
        for num_threads in (1, 2, 3, 7):
            parts = [share(count, multiple, thread, num_threads) for thread in range(num_threads)]
            assert [place for part in parts for place in range(*part)] == list(range(count))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_layers_over_shared_tiles_compute_what_plain_ones_do(dtype, num_threads):
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(48, 20, generator=generator).to(dtype) for _ in range(2))
    last, bias = (
        torch.randn(41, 20, generator=generator).to(dtype),
        torch.randn(41, generator=generator).to(dtype),
    )
    with torch_threads(num_threads):
        tiles = Tiles((96 + 48) * 20, dtype)
    at, end = tiles.add(one, two), tiles.add(last)
    plain = [nn.Linear(20, 48, bias=False), nn.Linear(20, 48, bias=False), nn.Linear(20, 41)]
    plain[2].bias.data = bias
    layers = [TiledLinear(plain[turn], tiles, at, 2, turn) for turn in (0, 1)]
    layers.append(TiledLinear(plain[2], tiles, end))
    for layer, weight in zip(layers, (one, two, last), strict=True):
        assert torch.equal(layer.weight, weight)
        for shape in ((1, 20), (2, 3, 20), (19, 20)):
            states = torch.randn(*shape, generator=generator).to(dtype)
            expected = torch.nn.functional.linear(states, weight, layer.bias)
            assert layer(states).dtype is dtype
            torch.testing.assert_close(
                layer(states), expected, atol=1e-4 if dtype is torch.float32 else 0.1, rtol=0.02
            )
    token_ids = torch.tensor([[0, 40], [17, 3]])
    embedding = nn.Embedding(41, 20)
    assert torch.equal(TiledEmbedding(embedding, layers[2])(token_ids), last[token_ids])
    for scale in (4.4, torch.tensor(4.4)):
        embedding.embed_scale = scale
        factor = scale.to(dtype) if torch.is_tensor(scale) else scale
        assert torch.equal(TiledEmbedding(embedding, layers[2])(token_ids), last[token_ids] * factor)


@numba.njit(nogil=True)
def _count(thread, num_threads, phase, arrivals, seen, sums):
    """Each thread leaves its number; after a barrier all have to be there."""
    for turn in range(len(sums[0])):
        seen[turn, thread] = thread + 1
        phase = barrier(arrivals, num_threads, phase)
        sums[thread, turn] = seen[turn].sum()
    barrier(arrivals, num_threads, phase)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_meet_and_nobody_is_left_behind(num_threads):
    """Runs follow each other at once: the last to leave a run must not miss the first barrier of the next."""
    workers, arrivals = ThreadPool(num_threads), np.zeros(1, np.int64)
    for _ in range(2000 if num_threads < 3 else 60):
        seen, sums = np.zeros((2, num_threads), np.int64), np.zeros((num_threads, 2), np.int64)
        phase = int(arrivals[0]) // num_threads + 1
        workers.run(_count, phase, arrivals, seen, sums)
        assert (sums == num_threads * (num_threads + 1) // 2).all()


class SlowQueue:
    """Gives another caller the time to come in between."""

    def __init__(self, tasks):
        self._tasks = tasks

    def put(self, task):
        self._tasks.put(task)
        if threading.current_thread().name == "slow":
            time.sleep(0.05)


def test_a_team_serves_two_callers():
    """A draft model reads ahead while the target runs: neither may hold threads that the other waits for."""
    workers, results = ThreadPool(3), []
    workers._tasks = [SlowQueue(tasks) for tasks in workers._tasks]

    def work():
        for _ in range(3):
            seen, sums = np.zeros((2, 3), np.int64), np.zeros((3, 2), np.int64)
            workers.run(_count, 1, np.zeros(1, np.int64), seen, sums)
            results.append((sums == 6).all())

    callers = [threading.Thread(target=work, daemon=True, name=name) for name in ("slow", "fast")]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert len(results) == 6
    assert all(results)


def test_there_is_one_team_for_as_many_threads(monkeypatch):
    assert thread_pool(1) is thread_pool(1)
    assert thread_pool(1).num_threads == 1
    first = thread_pool(1)
    monkeypatch.setattr(os, "getpid", lambda: -1)  # after a fork no thread is left
    assert thread_pool(1) is not first


def test_rotary_angles_are_read_as_far_as_texts_go():
    forward = compiled("llama-rope-scaling")
    text = text_of(forward, 4)
    kinds = AttentionKinds.of(forward.text_config)
    for start in (0, 700, 3, 5000):
        positions = np.arange(start, start + 4)[None]
        found = forward(np.array([text]), positions, TreeMask.causal(kinds, positions), SlotCache())
        expected = forward(np.array([text]), positions, None, None)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
