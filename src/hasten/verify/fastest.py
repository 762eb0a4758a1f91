"""Whichever rule accepts most, among those that keep the law of the text.

Rules want different drafts of a model (``core.Proposals``), and which pays depends on how much draft and
target differ: coupled drafts agree often where the laws are alike, chosen ones where the target is sure,
sampled ones in between. Each is tried for some steps of a text, then the one that gained most a step is used,
the others now and then. What decides is the past alone, and a step's noise is new, so every token keeps the
target's law.
"""

from __future__ import annotations

import torch

from hasten.core import Acceptance, Proposals, Sequence
from hasten.tree import DraftTree
from hasten.verify.follow import follow
from hasten.verify.point_mass import point_mass
from hasten.verify.traversal import traversal

RULES = {"coupled": follow, "distinct": traversal, "chosen": point_mass}
"""The best rule for each kind of proposals; drafts that were not sampled go through any of them."""

_TRIAL_STEPS = 4
_EXPLORE_EVERY = 32


def fastest(tree: DraftTree, logits: torch.Tensor, sequence: Sequence) -> Acceptance:
    """A path that the rule for this step's proposals accepts; then chooses those of the next step.

    Args:
        logits: [nodes + 1, vocab], root first.
    """
    used = sequence.proposals
    acceptance = RULES[used](tree, logits, sequence)
    stats = sequence.stats
    if len(tree):  # a step without a draft tells nothing
        stats.rule_steps[used] += 1
        stats.rule_tokens[used] += len(acceptance.token_ids)
    sequence.proposals = _next(sequence)
    return acceptance


def _next(sequence: Sequence) -> Proposals:
    steps, tokens = sequence.stats.rule_steps, sequence.stats.rule_tokens
    names: list[Proposals] = ["coupled", "distinct", "chosen"]
    fewest = min(names, key=lambda name: steps[name])
    if steps[fewest] < _TRIAL_STEPS or steps.total() % _EXPLORE_EVERY == 0:
        return fewest
    return max(names, key=lambda name: tokens[name] / steps[name])
