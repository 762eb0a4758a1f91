"""Finds out, by trying, what a model can verify in one pass.

A model that ignores or misreads a tree mask writes wrong text without any error, so no list of names is
trusted: the very session code that will decode runs on a small random tree, with a rejected branch left
behind, and every logit is compared with separate passes over the plain token sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hasten.core import Acceptance
from hasten.models.chain_session import ChainSession
from hasten.models.forward import Forward
from hasten.models.session import Session
from hasten.models.tree_session import TreeSession
from hasten.tree import DraftTree

Mode = Literal["tree", "chain", "chain with snapshots", "off", "recompute"]

SESSIONS: dict[Mode, Callable[[Forward], Session]] = {
    "tree": TreeSession,
    "chain": lambda forward: ChainSession(forward, "crop"),
    "chain with snapshots": lambda forward: ChainSession(forward, "snapshot"),
    "off": lambda forward: ChainSession(forward, "snapshot", drafts=False),
    "recompute": lambda forward: ChainSession(forward, "recompute"),
}
"""From the most to the least a model can do."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found.

    ``noise`` is the largest difference of a logit between the two ways to compute it; ``rejected`` says for
    every better mode why it cannot be used.
    """

    mode: Mode
    noise: float
    rejected: dict[str, str]


def probe(forward: Forward) -> ProbeResult:
    """The best mode that reproduces plain passes over the same tokens."""
    reference = _Reference(forward)
    rejected: dict[str, str] = {}
    for mode, start in SESSIONS.items():
        try:
            error = _largest_error(start(forward), reference)
        except (
            Exception
        ) as problem:  # whatever a model does with a mask it cannot take, the next mode is tried
            rejected[mode] = (
                f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
            )
            continue
        if error <= reference.tolerance:
            return ProbeResult(mode, error, rejected)
        rejected[mode] = f"logits differ by {error:.3g} (allowed {reference.tolerance:.3g})"
    return ProbeResult("recompute", 0.0, rejected)


class _Reference:
    """Logits of plain passes over whole token sequences, and how exact the agreement has to be."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        high = min(forward.vocab_size, 20_000)
        tokens = np.random.default_rng(0).choice(high, size=16, replace=high < 16).tolist()
        self.prompt, self.nodes = tokens[:8], tokens[8:]
        right = self.logits(self.prompt)
        swapped = self.logits([*self.prompt[:-2], self.nodes[0], self.prompt[-1]])
        # A wrongly visible or hidden token changes logits by about as much as swapping one does.
        leak = float((right - swapped).abs().max())
        precise = torch.finfo(forward.dtype).eps < 1e-5
        self.tolerance = (1e-3 if precise else 0.25) * leak

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """float32 [vocab] after ``token_ids``; one pass gives every prefix of the same text as well."""
        key = tuple(token_ids)
        if key not in self._known:
            rows = self._forward(np.asarray([key]), np.arange(len(key))[None], None, None)[0].float()
            for end in range(1, len(key) + 1):
                self._known[key[:end]] = rows[end - 1]
        return self._known[key]


def _largest_error(session: Session, reference: _Reference) -> float:
    """Two steps: a forked tree of which one branch is accepted, then a chain over the holes it left."""
    a, b, c, d, e, f, g, h = reference.nodes
    session.prefill([reference.prompt])
    first = session.fit(DraftTree([a, b, c, d, e], [-1, -1, 1, 0, 2], [0.5, 0.6, 0.5, 0.3, 0.4]))
    error = _step_error(session, reference, reference.prompt, first)
    path = [first.path_to(node) for node in range(len(first)) if first.token_ids[node] == c]
    accepted = path[0] if path else []
    text = [*first.token_ids[accepted].tolist(), f]
    session.keep([Acceptance(accepted, text)])
    prompt = [*reference.prompt, *text]
    return max(error, _step_error(session, reference, prompt, session.fit(DraftTree.chain([g, h]))))


def _step_error(session: Session, reference: _Reference, text: list[int], tree: DraftTree) -> float:
    rows = session.forward([tree])[0].float()
    ends = [text, *([*text, *tree.token_ids[tree.path_to(node)].tolist()] for node in range(len(tree)))]
    leaves_first = sorted(range(len(ends)), key=lambda row: -len(ends[row]))
    errors = [float((rows[row] - reference.logits(ends[row])).abs().max()) for row in leaves_first]
    return max(errors)
