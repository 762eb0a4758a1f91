"""Multi-candidate speculative decoding's naive rule (MCSD, arXiv 2401.06706): draw from the target and look.

At each node a token is drawn from the target's law. If a child carries it, the walk goes on there. The law is
that of plain sampling whatever was drafted and however the candidates depend on each other; what it costs is
acceptance, sum of p(x) P(x was drafted), which only sampled children give up: for chosen ones it is the best
any rule has.

This is ``follow`` for drafts that were sampled with random numbers of their own, without replacement. As the
target draws with its keyed noise, the text is even that of plain decoding.
"""

from __future__ import annotations

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.tree import DraftTree
from hasten.verify.follow import follow

SYSTEM = System(
    name="mcsd-naive",
    title="Multi-Candidate Speculative Decoding",
    arxiv="2401.06706",
    kind="verification rule",
    guarantee="distribution",
    module="hasten.verify.naive",
    summary="draws from the target and follows the child among several sampled candidates (verify naive)",
)


def naive(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """The path of the target's own draws; logits: [nodes + 1, vocab], root first."""
    return follow(tree, logits, sequence)
