"""The walk from the root that all rules share: token after token, until the stop or the end of the draft.

What a token is, and which child was accepted with it, is the rule's choice.
"""

from __future__ import annotations

from collections.abc import Callable

from hasten.core import Acceptance, Sequence
from hasten.tree import ROOT

Choose = Callable[[int, list[int]], tuple[int, int | None]]
"""(node, text up to it) -> the token written below the node, and the child that carries it if one does."""


def walk(sequence: Sequence, choose: Choose) -> Acceptance:
    """The path of the chosen children; nothing is committed.

    ``choose`` is called once for each written position, with its own prefix, and not after the stop.
    """
    stop_after = sequence.stop_rule.after
    token_ids = list(sequence.token_ids)
    path: list[int] = []
    node = ROOT
    while True:
        token_id, child = choose(node, token_ids)
        token_ids.append(token_id)
        finish_reason = stop_after(token_id)
        if finish_reason or child is None:
            return Acceptance(path, token_ids[len(sequence.token_ids) :], finish_reason)
        path.append(child)
        node = child
