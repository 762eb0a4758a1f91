"""Follow the target's own draws through the tree: exact for every drafter, greedy or sampled.

At each node the target's token is drawn once. If a child carries it, go there; if not, it *is* the recovered
(or bonus) token. The draw never depends on the draft, so the text is that of plain decoding, token for
token. For drafts without known probabilities no exact rule accepts more.
"""

from __future__ import annotations

import torch

from hasten.core import Acceptance, Sequence
from hasten.tree import ROOT, DraftTree


def follow(tree: DraftTree, logits: torch.Tensor, sequence: Sequence) -> Acceptance:
    """The path plain decoding takes through the tree.

    Args:
        logits: [nodes + 1, vocab], root first.

    Processors see each written position once, with its own prefix; nothing is drawn after the stop.
    """
    draw = sequence.sampler.draws(logits)
    token_ids = list(sequence.token_ids)
    path: list[int] = []
    node = ROOT
    while True:
        token_ids.append(draw(node + 1, token_ids))
        finish_reason = sequence.stop_rule.after(token_ids[-1])
        child = None if finish_reason else tree.child(node, token_ids[-1])
        if child is None:
            return Acceptance(path, token_ids[len(sequence.token_ids) :], finish_reason)
        path.append(child)
        node = child
