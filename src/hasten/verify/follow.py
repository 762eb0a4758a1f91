"""Follow the target's own draws through the tree: exact for every drafter, greedy or sampled.

At each node the target's token is drawn once. If a child carries it, go there; if not, it *is* the recovered
(or bonus) token. The draw never depends on the draft, so the text is that of plain decoding, token for
token. For drafts without known probabilities no exact rule accepts more.
"""

from __future__ import annotations

from hasten.core import Acceptance, LogitRows, Sequence
from hasten.tree import DraftTree
from hasten.verify.walk import walk


def follow(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """The path plain decoding takes through the tree.

    Args:
        logits: [nodes + 1, vocab], root first.

    Processors see each written position once, with its own prefix; nothing is drawn after the stop.
    """
    draw = sequence.sampler.draws(logits)

    def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
        token_id = draw(node + 1, token_ids)
        return token_id, tree.child(node, token_id)

    return walk(sequence, choose)
