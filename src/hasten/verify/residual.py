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
import torch
from numpy.typing import NDArray

from hasten.core import Acceptance, LawSampler, Sequence
from hasten.errors import ConfigError
from hasten.tree import ROOT, DraftTree

STREAM = 1
"""Of the sampler's random numbers; drafters use others."""

Law = NDArray[np.float64]


def residual(tree: DraftTree, logits: torch.Tensor, sequence: Sequence) -> Acceptance:
    """A path whose tokens have the law of plain sampling; greedy, the path of plain decoding.

    Args:
        logits: [nodes + 1, vocab], root first.

    Processors see each written position once, with its own prefix; nothing is drawn after the stop.

    Raises ConfigError for a sampler that does not tell its laws.
    """
    sampler = sequence.sampler
    if not isinstance(sampler, LawSampler):
        raise ConfigError(
            f"verify='residual' needs a sampler that tells its laws, and {type(sampler).__name__} does not; "
            "choose verify='follow'"
        )
    token_ids = list(sequence.token_ids)
    path: list[int] = []
    node = ROOT
    while True:
        law = sampler.law(logits[node + 1], token_ids)
        generator = sampler.generator(len(token_ids), STREAM)
        token_id, child = _try_children(tree, node, law, generator)
        token_ids.append(token_id)
        finish_reason = sequence.stop_rule.after(token_id)
        if finish_reason or child is None:
            return Acceptance(path, token_ids[len(sequence.token_ids) :], finish_reason)
        path.append(child)
        node = child


def _try_children(
    tree: DraftTree, parent: int, law: Law, generator: np.random.Generator
) -> tuple[int, int | None]:
    """The token written below a node, and the child that carries it if that was accepted."""
    for child in np.flatnonzero(tree.parents == parent).tolist():
        token_id = int(tree.token_ids[child])
        draft_law = _draft_law(tree, child, len(law))
        rest = np.maximum(law - draft_law, 0.0)
        # Nothing is left only where both laws are the same, and then nothing is rejected.
        if generator.random() * draft_law[token_id] < law[token_id] or not rest.any():
            return token_id, child
        law = rest / rest.sum()
    return draw(law, generator), None


def _draft_law(tree: DraftTree, node: int, vocab_size: int) -> Law:
    if tree.draft_probs is None:
        law: Law = np.eye(1, vocab_size, int(tree.token_ids[node]))[0]
        return law
    return normalised(tree.draft_probs[node])


def normalised(probs: NDArray[np.floating]) -> Law:
    """In float64, so that who drew from a float32 law and who weighs it mean the same numbers."""
    law: Law = probs.astype(np.float64)
    law /= law.sum()
    return law


def draw(law: Law, generator: np.random.Generator) -> int:
    """A token drawn from a law [vocab]; never one of probability 0."""
    total = law.cumsum()
    return int(np.searchsorted(total, generator.random() * total[-1], side="right"))
