"""A drafted token weighed against the law it should have had (arXiv 2211.17192, 2302.01318).

Knows laws [vocab] and nothing of canvases.
"""

from __future__ import annotations

import numpy as np

from hasten.laws import Law, draw


def weighed(token_id: int, drafted: Law, law: Law, generator: np.random.Generator) -> int:
    """A token of the law ``law``: mostly the one that was drawn from ``drafted``, with other random numbers.

    The drafted token is kept with probability min(1, law / drafted); otherwise what ``drafted`` gives too
    rarely is drawn, norm(max(0, law - drafted)). A law that holds one token, as greedy ones do, is kept to.
    """
    if generator.random() * drafted[token_id] < law[token_id]:
        return token_id
    rest = np.maximum(law - drafted, 0.0)
    # Nothing is left only where both laws are the same, and there only rounding rejects.
    return draw(rest, generator) if rest.any() else token_id
