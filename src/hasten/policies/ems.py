"""EMS-SD (arXiv 2405.07542): every sequence of a batch drafts what it has, and none is padded for the others.

A sequence with a match drafts its copy, one without drafts nothing, and a step in which none has a match is
plain. The other half of the paper, rows that go on at offsets of their own after uneven acceptance, is the
session's work under every policy. Its packed pass is not: here a pass is as wide as its widest row.
"""

from __future__ import annotations

from hasten.core import System
from hasten.policies.base import FixedPolicy

SYSTEM = System(
    name="ems-sd",
    title="EMS-SD: Efficient Multi-sample Speculative Decoding for Accelerating Large Language Models",
    arxiv="2405.07542",
    kind="draft policy",
    guarantee="exact",
    module="hasten.policies.ems",
    summary="batches: each sequence drafts its own copy of up to 7 tokens, or nothing (policy ems)",
)

NUM_COPY = 7


class EmsPolicy(FixedPolicy):
    """The whole draft of every sequence, up to the paper's 7 tokens."""

    def __init__(self, num_copy: int = NUM_COPY) -> None:
        super().__init__(num_copy)
