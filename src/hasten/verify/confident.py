"""Lexical unit decoding's acceptance (arXiv 2405.15208): confident drafts are kept unverified.

Approximate: the text may differ from plain decoding's, so this rule is only used when it is asked for by
name. At each node the best-scored child is kept if its own confidence (its score over its parent's) is at
least ``beta``. Below that the target draws, as in ``follow``, and the walk goes on where a child carries
its token: with ``beta`` above 1 this is ``follow``.

What differs from the paper. There, the tokens read from pads are committed in the same pass, and the next
pass feeds them again because their keys came from pad inputs. Here they are the next step's draft: the
pass that feeds them is the one they are kept in, so the cache is that of the text by construction, and a
pass gains as many tokens. The paper controls repetition; as its rule is not known to us, ours keeps no
drafted token more than ``max_repeats`` times in a row. It knows nothing of pads: any drafter's confidence
will do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hasten.core import Acceptance, LogitRows, Sequence
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree
from hasten.verify.walk import walk


def confident(
    beta: float = 0.9, max_repeats: int = 1
) -> Callable[[DraftTree, LogitRows, Sequence], Acceptance]:
    """A rule that keeps drafts of confidence ``beta`` and more without asking the target.

    Args:
        beta: 0 keeps every best child, above 1 none.
        max_repeats: how often a token may stand in a row where its last place is drafted.

    Logits processors are called for every written token, so that stateful ones stay in step; what they say
    about a kept draft is ignored. Raises ConfigError for values that cannot work.
    """
    if not beta >= 0:
        raise ConfigError(f"beta={beta} cannot work; it must be 0 or more")
    if max_repeats < 1:
        raise ConfigError(f"max_repeats={max_repeats} cannot work; it must be at least 1")

    def verify(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """logits: [nodes + 1, vocab], root first."""
        draw = sequence.sampler.draws(logits)

        def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
            token_id = draw(node + 1, token_ids)
            kept = _confident_child(tree, node, beta)
            if kept is not None and not _repeats(token_ids, int(tree.token_ids[kept]), max_repeats):
                token_id = int(tree.token_ids[kept])
            return token_id, tree.child(node, token_id)

        return walk(sequence, choose)

    return verify


def _confident_child(tree: DraftTree, parent: int, beta: float) -> int | None:
    children = np.flatnonzero(tree.parents == parent)
    if not len(children):
        return None
    best = int(children[np.argmax(tree.scores[children])])
    parent_score = 1.0 if parent == ROOT else float(tree.scores[parent])
    confidence = min(1.0, float(tree.scores[best]) / parent_score) if parent_score > 0 else 0.0
    return best if confidence >= beta else None


def _repeats(token_ids: list[int], token_id: int, max_repeats: int) -> bool:
    """Whether the last ``max_repeats`` tokens are this one already."""
    return token_ids[-max_repeats:] == [token_id] * max_repeats
