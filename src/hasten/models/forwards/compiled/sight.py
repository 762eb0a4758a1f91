"""What each row of a pass sees: written out once for all layers, from where its sequence begins to matter."""

# ruff: noqa: PLR0917

from __future__ import annotations

import numba
import numpy as np

from hasten.models.forwards.compiled.machine import stay_apart
from hasten.models.forwards.compiled.products import LANES


@numba.njit(nogil=True, error_model="numpy")
def write_sight(first, last, call, scratch):
    """Of rows first .. last - 1. Layers with a window begin at the first slot that their rows may see."""
    stay_apart()
    num_rows, sequence = len(call.token_ids), -1
    for row in range(first, last):
        before = sequence
        while call.starts[sequence + 1] <= row:
            sequence += 1
        if sequence != before:
            for kind in range(len(call.first_positions)):
                scratch.first_slots[kind, sequence] = _first_slot(kind, sequence, call)
        for kind in range(len(call.first_positions)):
            start = scratch.first_slots[kind, sequence]
            _write_row(kind, sequence, row, start, call, scratch.visible[kind * num_rows + row])


@numba.njit(nogil=True, error_model="numpy")
def _first_slot(kind, sequence, call):
    """The multiple of 16 before which no row of a sequence sees a slot."""
    stay_apart()
    bound = call.first_positions[kind, call.starts[sequence]]
    for row in range(call.starts[sequence] + 1, call.starts[sequence + 1]):
        bound = min(bound, call.first_positions[kind, row])
    visible, positions = call.visible[sequence], call.slot_positions[sequence]
    end = call.num_slots - call.own.shape[1]
    slot = 0
    while slot < end and not (visible[slot] and positions[slot] >= bound):
        slot += 1
    return slot // LANES * LANES


@numba.njit(nogil=True, error_model="numpy")
def _write_row(kind, sequence, row, start, call, target):
    stay_apart()
    count = call.num_slots
    visible, positions, own = call.visible[sequence], call.slot_positions[sequence], call.own[row]
    bound, end = call.first_positions[kind, row], call.num_slots - len(own)
    for slot in range(start, count):
        target[slot - start] = visible[slot] & np.uint8(positions[slot] >= bound)
    for slot in range(max(start, end), count):
        target[slot - start] |= own[slot - end] & np.uint8(positions[slot] >= bound)
