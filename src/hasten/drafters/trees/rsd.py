"""Recursive speculative decoding (RSD, arXiv 2402.14160): trees sampled without replacement.

RSD-C draws by a branching vector: so many tokens below every node of a level. The paper ranks a node's tokens
by log-probability plus Gumbel noise; drawing one after the other from what is left, as here, has the same
law. Where the rule wants independent draws, they are.

RSD-S is stochastic beam search: every node gets a perturbed log-probability, the largest of its children's
being its own, and the best of a level go on. All kept nodes are the tree. How many children a beam keeps
depends on the perturbed values only, which tell nothing of a child's token once its elder siblings are known:
so each sibling has the law of what was left when it was drawn. It draws without replacement whatever the rule
wants; coupled and chosen, it is beam search over the noisy or plain log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from hasten.core import Acceptance, System
from hasten.drafters.trees.growing import Growing
from hasten.drafters.trees.widths import Widths, checked_count, checked_widths, grow_by_widths
from hasten.laws import Law
from hasten.tree import ROOT, DraftTree

_TITLE = "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement"

CONSTANT_SYSTEM = System(
    name="rsd-c",
    title=_TITLE,
    arxiv="2402.14160",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.rsd",
    summary="a tree by a branching vector, drawn without replacement (Gumbel-top-k)",
)
BEAM_SYSTEM = System(
    name="rsd-s",
    title=_TITLE,
    arxiv="2402.14160",
    kind="draft tree",
    guarantee="exact",
    module="hasten.drafters.trees.rsd",
    summary="stochastic beam search: the best beams of a level by perturbed log-probability",
)

_NO_NOISE = np.float32(1e-30)


class RsdConstant:
    """RSD-C.

    Args:
        branching: children of each node, level by level; None: what suits the budget.

    Raises ConfigError for widths no tree has.
    """

    def __init__(self, branching: Sequence[int] | None = None) -> None:
        self._branching = checked_widths(branching, "branching")
        self._widths = Widths()

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        return grow_by_widths(tree, self._branching or self._widths.for_levels(tree))

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._widths.learn(tree, acceptance)


class _Beam(NamedTuple):
    score: float
    """perturbed where tokens are sampled"""
    log_prob: float
    """of the path"""
    parent: int
    token_id: int


class RsdBeams:
    """RSD-S.

    Args:
        width: beams of a level; None: what suits the budget.
        depth: levels; None: what suits the budget.

    Raises ConfigError for a number below 1.
    """

    def __init__(self, width: int | None = None, depth: int | None = None) -> None:
        self._width = checked_count(width, "width")
        self._depth = checked_count(depth, "depth")
        self._widths = Widths()

    def grow(self, tree: Growing) -> Iterator[list[int]]:
        width, depth = self._widths.for_beams(tree, self._width, self._depth)
        level = {ROOT: _Beam(0.0, 0.0, ROOT, ROOT)}
        for place in range(min(depth, tree.max_depth)):
            kept = min(width, tree.room)
            if not kept or not level:
                return
            if place:
                yield list(level)
            beams = [beam for node, above in level.items() for beam in _best_below(tree, node, above, kept)]
            level = _add(tree, sorted(beams, key=lambda beam: -beam.score)[:kept])

    def learn(self, tree: DraftTree, acceptance: Acceptance) -> None:
        self._widths.learn(tree, acceptance)


def _best_below(tree: Growing, node: int, above: _Beam, count: int) -> list[_Beam]:
    """The best continuations of a beam, best first."""
    siblings = tree.siblings(node)
    if not siblings.remaining:
        return []
    log_probs = above.log_prob + siblings.log_probs()
    scores = log_probs
    if tree.generator is not None:
        noise = tree.generator.standard_exponential(len(log_probs), np.float32)
        scores = log_probs - np.log(np.maximum(noise, _NO_NOISE))  # a Gumbel is minus the log of this
    best = torch.topk(torch.from_numpy(scores), min(count, len(scores)))
    token_ids, values = best.indices.tolist(), best.values.numpy()
    if tree.generator is not None:
        values = conditioned(values, above.score)
    return [
        _Beam(score, float(log_probs[token_id]), node, token_id)
        for score, token_id in zip(values.tolist(), token_ids, strict=True)
        if score > -np.inf
    ]


def conditioned(scores: Law, largest: float) -> Law:
    """Gumbel scores as if their largest, which comes first, had been ``largest``; the order stays.

    Truncated Gumbels by -log(exp(-largest) - exp(-max) + exp(-score)), in the form that does not overflow.
    """
    with np.errstate(divide="ignore"):
        gap = largest - scores + np.log1p(-np.exp(scores - scores[0]))
        found: Law = largest - np.maximum(gap, 0.0) - np.log1p(np.exp(-np.abs(gap)))
    return found


def _add(tree: Growing, beams: list[_Beam]) -> dict[int, _Beam]:
    """The nodes of a level, siblings in the order of their scores."""
    level: dict[int, _Beam] = {}
    for parent in dict.fromkeys(beam.parent for beam in beams):
        below = [beam for beam in beams if beam.parent == parent]
        candidates = tree.siblings(parent).named([beam.token_id for beam in below])
        level |= {tree.add(parent, each): beam for each, beam in zip(candidates, below, strict=False)}
    return level
