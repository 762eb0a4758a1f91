"""Whether the cache of transformers' `generate` keeps what a model's passes without a cache look at.

The cache reads windows off the config and forgets what lies before them. A model that makes its masks without
windows (Moshi) then has two texts beyond one, with a cache and without, and neither is the right one.
"""

from __future__ import annotations

import numpy as np
from transformers import DynamicCache

from hasten.models.forwards.forward import Forward
from hasten.models.forwards.full_precision import FullPrecision
from hasten.models.sessions.attention import AttentionKinds

_BEYOND = 6
"""Tokens read after as many as the window holds, one by one at the end."""
_ALLOWED = 1e-3
"""of the norm of the logits, in float32"""


def forgotten_by_its_cache(forward: Forward) -> str:
    """Why the texts of a model beyond its window depend on whether there is a cache, or "".

    For models whose passes do not heed the windows of their config; others need not be asked. Takes two
    passes over as many tokens as the window holds.
    """
    window = _shortest_window(forward)
    limit = getattr(forward.text_config, "max_position_embeddings", None) or -1
    size = window + _BEYOND
    if not window or 0 < limit < size:  # no text goes beyond it
        return ""
    token_ids = np.random.default_rng(0).integers(0, min(forward.vocab_size, 20_000), (1, size))
    positions = np.arange(size)[None]
    cache = DynamicCache(config=forward.text_config)
    one = forward.select([0])
    with FullPrecision():
        expected = one(token_ids, positions, None, None, 1)[0, -1].float()
        for start, stop in ((0, size - 2), (size - 2, size - 1), (size - 1, size)):
            found = one(token_ids[:, start:stop], positions[:, start:stop], None, cache, 1)[0, -1].float()
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    if error <= _ALLOWED:
        return ""
    return (
        f"its config names a window of {window} tokens, beyond which the cache of `generate` forgets what "
        f"passes without a cache still see: logits differ by {error:.2g} of their norm"
    )


def _shortest_window(forward: Forward) -> int:
    """0 where there is none, or where layers are of kinds that nobody knows a window of."""
    try:
        sizes = AttentionKinds.of(forward.text_config).sizes.values()
    except KeyError:
        return 0
    return min((size for size in sizes if size), default=0)
