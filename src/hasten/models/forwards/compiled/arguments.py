"""What the compiled pass is given: a model, a call, and memory to work in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

QKV, OUT, UP, DOWN = range(4)
"""The matrices of a layer, in the order of ``Model.matrices``."""
BEFORE_ATTENTION, AFTER_ATTENTION, BEFORE_MLP, AFTER_MLP, OF_QUERIES, OF_KEYS = range(6)
"""Its norms, in the order of ``Model.norms``."""
NONE = -1


class Model(NamedTuple):
    """What stays the same from pass to pass."""

    weights: NDArray[Any]
    """tiles of all matrices, float32 or (for bfloat16) uint16"""
    matrices: Ints
    """[layers, 4, 3]: place in ``weights``, number of tiles, place of the bias in ``vectors`` or NONE"""
    vectors: Floats
    """norms and biases"""
    norms: Ints
    """[layers, 6]: place in ``vectors`` or NONE"""
    last_norm: int
    head: Ints
    """[3], like a matrix"""
    embeddings: NDArray[Any]
    """[vocab * hidden], or empty where they are read out of the head"""
    layers: Ints
    """[layers, 2]: kind of mask, kind of rotary angles or NONE"""
    norm_kind: int
    is_norm_of_all_heads: bool
    """one norm over the queries of all heads, and one over the keys, instead of one a head"""
    eps: float
    activation: int
    is_gated: bool
    is_parallel: bool
    """attention and MLP read the same residual stream"""
    num_heads: int
    num_kv_heads: int
    head_size: int
    rotary_size: int
    hidden_size: int
    inner_size: int
    score_scale: float
    score_cap: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_cap: float


class Call(NamedTuple):
    """What one pass computes."""

    token_ids: Ints
    """[rows], those of a sequence side by side"""
    positions: Ints
    """[rows]"""
    slots: Ints
    """[rows]: where keys and values go"""
    starts: Ints
    """[sequences + 1]: the first row of each"""
    num_slots: int
    """cached ones, and then those of this call"""
    visible: NDArray[np.uint8]
    """[sequences, slots or more]: what all rows of a sequence see"""
    slot_positions: Ints
    """[sequences, slots or more]"""
    own: NDArray[np.uint8]
    """[rows, last slots]: what a row sees besides"""
    first_positions: Ints
    """[kinds, rows]: what lies before is hidden in layers of this kind"""
    wanted: Ints
    """rows whose logits are asked for"""
    keeps_logits: bool
    """whether they are left in ``Scratch.logits``"""
    hidden_layers: Ints
    """layers whose hidden states are asked for: what they are given; of one too many, what the head reads"""
    hidden: Floats
    """[such layers, rows, hidden]: where they are left"""
    is_only_head: bool
    """whether the layers of this very call have been computed already"""
    caches: Ints
    """[layers, 3]: addresses of keys and values, [sequences, kv heads, capacity, channels]; the capacity"""
    angles: Floats
    """[kinds, positions, rotary channels]: cosines, then sines"""
    phase: int
    """number of the first one; they are counted on from pass to pass, as a thread may leave the last late"""


class Scratch(NamedTuple):
    """Memory of one pass; what begins with ``own`` has a row for each thread."""

    residual: Floats
    wide: Floats
    x: NDArray[Any]
    x_mlp: NDArray[Any]
    x_inner: NDArray[Any]
    logits: Floats
    visible: NDArray[np.uint8]
    """[kinds * rows, stride]: what each row sees, from the first slot on that its sequence needs"""
    first_slots: Ints
    """[kinds, sequences]: that slot, a multiple of 16"""
    own_logits: Floats
    own_row: Floats
    own_queries: NDArray[Any]
    own_tile: NDArray[Any]
    own_scores: Floats
    own_values: Floats
    own_padding: Floats
    ones: Floats
    arrivals: Ints
