"""Residual rejection (arXiv 2211.17192, 2302.01318): a draft's law is weighed against the target's.

At each node the children are tried in draft order. One that was drawn from the law q is accepted with
probability min(1, p/q) of its token; otherwise p becomes norm(max(0, p - q)) and the next child is tried.
What is left of p after the last child draws the recovered (or bonus) token. A child without a law was
chosen, not drawn: its q is 1 at its token. So sampled and chosen children mix, and each token has the
target's law, whatever was drafted.

What a drafter owes: its laws are those its tokens were drawn from, with noise independent of the target's
(a ``LawSampler`` has streams for that); siblings stand in the order they were drawn in, each with its law
given those before it; and whether a drawn token is in the tree does not depend on the token.
"""

from __future__ import annotations

import numpy as np

from hasten.core import Acceptance, LogitRows, Sequence, System
from hasten.laws import STREAM, Law, draft_law, draw, law_sampler
from hasten.tree import DraftTree
from hasten.verify.walk import walk

SYSTEM = System(
    name="specinfer",
    title="SpecInfer: Accelerating Generative Large Language Model Serving with Tree-based Speculative "
    "Inference and Verification",
    arxiv="2305.09781",
    kind="verification rule",
    guarantee="distribution",
    module="hasten.verify.residual",
    summary="recursive rejection of independently drawn siblings (verify residual-independent)",
)


def residual(tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Processors see each written position once, with its own prefix; nothing is drawn after the stop.

    Raises ConfigError for a sampler that does not tell its laws.
    """
    sampler = law_sampler(sequence, "residual")

    def choose(node: int, token_ids: list[int]) -> tuple[int, int | None]:
        law = sampler.law(logits[node + 1], token_ids)
        return try_children(tree, node, law, sampler.generator(len(token_ids), STREAM))

    return walk(sequence, choose)


def try_children(
    tree: DraftTree, parent: int, law: Law, generator: np.random.Generator
) -> tuple[int, int | None]:
    """The token written below a node, and the child that carries it if that was accepted."""
    for child in tree.drawn_below(parent):
        token_id = int(tree.token_ids[child])
        drafted = draft_law(tree, child, len(law))
        rest = np.maximum(law - drafted, 0.0)
        # Nothing is left only where both laws are the same, and then nothing is rejected.
        if generator.random() * drafted[token_id] < law[token_id] or not rest.any():
            return token_id, child
        law = rest / rest.sum()
    return draw(law, generator), None
