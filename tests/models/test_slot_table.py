"""The table of slots does what plain arrays do, whatever room its own have to spare."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from hasten.models.sessions.attention import AttentionKinds
from hasten.models.sessions.slot_table import SlotTable

OPERATIONS = ("extend", "extend", "see", "truncate", "select", "join", "gather")


def some_arrays(rng, rows, width):
    return rng.random((rows, width)) < 0.5, rng.integers(0, 99, (rows, width))


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), operations=st.lists(st.sampled_from(OPERATIONS), max_size=14))
def test_any_history_leaves_what_plain_arrays_hold(seed, operations):
    rng = np.random.default_rng(seed)
    visible, positions = some_arrays(rng, 2, 3)
    table = SlotTable(2, visible.copy(), positions.copy())
    for operation in operations:
        rows, width = visible.shape
        if operation == "extend":
            new = rng.integers(0, 99, (rows, int(rng.choice([1, 7, 300]))))
            assert table.extend(new) == width
            positions = np.concatenate((positions, new), axis=1)
            visible = np.concatenate((visible, np.zeros(new.shape, np.bool_)), axis=1)
        elif operation == "see":
            chosen = rng.random(visible.shape) < 0.3
            visible[chosen] = table.visible[chosen] = True
        elif operation == "truncate":
            stop = int(rng.integers(0, width + 1))
            visible, positions = visible[:, :stop].copy(), positions[:, :stop].copy()
            table.truncate(stop)
        elif operation == "select":
            order = rng.integers(0, rows, int(rng.integers(1, 4))).tolist()
            visible, positions = visible[order], positions[order]
            table.select(order)
        elif operation == "join":
            others = some_arrays(rng, int(rng.integers(1, 3)), int(rng.integers(0, 9)))
            table.join(SlotTable(len(others[0]), *others))
            room = max(width, others[0].shape[1])
            fill = [np.pad(one, ((0, 0), (0, room - one.shape[1]))) for one in (visible, positions, *others)]
            visible, positions = np.concatenate(fill[0::2]), np.concatenate(fill[1::2])
        else:
            order = rng.permuted(np.tile(np.arange(width), (rows, 1)), axis=1)[
                :, : int(rng.integers(0, width + 1))
            ]
            visible, positions = (np.take_along_axis(one, order, axis=1) for one in (visible, positions))
            table.gather(order)
        assert (table.num_rows, table.width) == visible.shape
        assert np.array_equal(table.visible, visible)
        assert np.array_equal(table.positions[visible], positions[visible])
        used = visible.any(axis=0)
        assert table.used_width() == (1 + int(np.flatnonzero(used)[-1]) if used.any() else 0)
        mask = table.mask(
            AttentionKinds({"full_attention": None}), np.zeros((table.num_rows, 1, 1), np.bool_)
        )
        assert not mask.visible[:, table.width :].any()
        assert mask.visible.flags.c_contiguous
        assert mask.positions.flags.c_contiguous
