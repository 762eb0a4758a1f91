"""The memory that a compiled pass works in."""

from __future__ import annotations

import numpy as np

from hasten.finding import GROUP
from hasten.models.forwards.compiled.arguments import Model, Scratch
from hasten.models.forwards.compiled.attention import GROUP as QUERIES
from hasten.models.forwards.compiled.products import LANES, MAX_ROWS, PANEL, packed_kind


def new_scratch(model: Model, threads: int, rows: int, wanted: int, slots: int) -> Scratch:
    """Room for so many threads, rows, rows whose logits are wanted, and slots; none for whole logits.

    There are no more sequences than rows.
    """
    kinds = int(model.layers[:, 0].max()) + 1
    kind, packed = model.weights.dtype, packed_kind(model.weights)
    padded = -(-model.head_size // LANES) * LANES
    widest = LANES * int(model.matrices[:, :, 1].max())
    heads = model.num_heads * model.head_size
    tile = PANEL * LANES * model.head_size
    padding = slots * padded if padded != model.head_size else 0
    return Scratch(
        residual=np.empty(rows * model.hidden_size, np.float32),
        wide=np.empty(rows * widest, np.float32),
        x=np.zeros(rows * max(model.hidden_size, heads), packed),
        x_mlp=np.zeros(rows * model.hidden_size, packed),
        x_inner=np.zeros(rows * model.inner_size, packed),
        logits=np.empty(0, np.float32),
        visible=np.zeros((kinds * rows, slots), np.uint8),
        first_slots=np.zeros((kinds, rows), np.int64),
        own_logits=np.empty((threads, wanted * GROUP), np.float32),
        own_row=np.empty((threads, max(model.hidden_size, heads)), np.float32),
        own_queries=np.empty((threads, QUERIES * model.head_size), packed),
        own_tile=np.empty((threads, tile), kind),
        own_scores=np.empty((threads, QUERIES * slots), np.float32),
        own_values=np.empty((threads, MAX_ROWS * (padded + LANES)), np.float32),
        own_padding=np.empty((threads, padding), np.float32),
        ones=np.ones(LANES, np.float32),
        arrivals=np.zeros(1, np.int64),
    )
