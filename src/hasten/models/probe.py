"""Finds out, by trying, what a model can verify in one pass.

A model that ignores or misreads a tree mask writes wrong text without any error, so no list of names is
trusted: the very session code that will decode runs on a small random tree, with a rejected branch left
behind, and every logit is compared with separate passes over the plain token sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

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

_NUM_TEXTS = 6
_NUM_NODES = 10
_NUM_DECOYS = 40
_LONGEST_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found.

    ``noise`` is the largest difference of a logit between the two ways to compute it; ``rejected`` says for
    every better mode why it cannot be used.
    """

    mode: Mode
    noise: float
    rejected: dict[str, str]


class PlainPasses(Protocol):
    """What the probe needs of a model besides its sessions; see Forward."""

    vocab_size: int
    dtype: torch.dtype
    text_config: Any

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        position_ids: NDArray[np.int64] | None,
        attention_mask: None,
        cache: None,
        logits_to_keep: int = 0,
    ) -> torch.Tensor: ...

    def select(self, rows: list[int]) -> PlainPasses: ...


def probe(
    forward: Any, num_rows: int = 1, sessions: Mapping[Mode, Callable[[Any], Session]] = SESSIONS
) -> ProbeResult:
    """The best mode that reproduces plain passes over the same tokens.

    Args:
        forward: PlainPasses, as the sessions take them.
        num_rows: rows of the batch to try; all hold the same text, and the first is compared.
        sessions: what there is to try, the best first. "recompute" is the answer where none will do.
    """
    reference = _Reference(forward.select([0]))
    rejected: dict[str, str] = {}
    for mode, start in sessions.items():
        try:
            error = _largest_error(start(forward), reference, num_rows)
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


def reproduces_plain_passes(forward: Forward, session: Session) -> bool:
    """Whether a session of one row passes the probe's own test. One that raises does not."""
    reference = _Reference(forward)
    try:
        return _largest_error(session, reference) <= reference.tolerance
    except Exception:  # as in probe: whatever a model does with what it cannot take
        return False


class _Reference:
    """Logits of plain passes over whole token sequences, and how exact the agreement has to be."""

    def __init__(self, forward: PlainPasses) -> None:
        self._forward = forward
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        high = min(forward.vocab_size, 20_000)
        size = _NUM_NODES + _NUM_DECOYS + 8 + _hidden_window(forward.text_config)
        rng = np.random.default_rng(0)
        text: list[int] = []
        leak = 0.0
        for _ in range(_NUM_TEXTS):  # errors stand out in a text whose logits depend much on its tokens
            candidate = rng.choice(high, size, replace=high < size).tolist()
            prompt = candidate[_NUM_NODES + _NUM_DECOYS :]
            found = self._leak(prompt, candidate[0])
            if not (text and found <= leak):
                text, leak = candidate, found
            if leak > 0.3 * float(self.logits(prompt).norm()):
                break
        self.nodes, self.decoys = text[:_NUM_NODES], text[_NUM_NODES : _NUM_NODES + _NUM_DECOYS]
        self.prompt = text[_NUM_NODES + _NUM_DECOYS :]
        precise = torch.finfo(forward.dtype).eps < 1e-5
        self.tolerance = (1e-3 if precise else 0.25) * leak

    def _leak(self, prompt: list[int], other: int) -> float:
        """A wrongly visible or hidden token changes logits by about as much as swapping one does."""
        swapped = [*prompt[:-2], other, prompt[-1]]
        return float((self.logits(prompt) - self.logits(swapped)).norm())

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """float32 [vocab] after ``token_ids``; one pass gives the last prefixes of the same text as well."""
        key = tuple(token_ids)
        if key not in self._known:
            positions = np.arange(len(key))[None]
            rows = self._forward(np.asarray([key]), positions, None, None, logits_to_keep=16)[0, -16:]
            for back, row in enumerate(rows.flip(0).float()):
                self._known.setdefault(key[: len(key) - back], row)
        return self._known[key]


def _hidden_window(config: Any) -> int:
    """The longest window that attention.py makes no mask for: the probe has to look beyond it."""
    sizes = [
        value
        for name, value in config.to_dict().items()
        if "window" in name and name not in ("sliding_window", "max_window_layers") and type(value) is int
    ]
    return min(max(sizes, default=0), _LONGEST_WINDOW)


def _largest_error(session: Session, reference: _Reference, num_rows: int = 1) -> float:
    """A forked tree of which one branch is accepted, many rejected siblings, then a chain over all holes.

    The more holes, the clearer a model shows that it counts cache slots and not positions (ALiBi).
    """
    a, b, c, d, e, f, g, h, i, j = reference.nodes
    text = reference.prompt
    session.prefill([text] * num_rows)
    fork = session.fit(DraftTree([a, b, c, d, e], [-1, -1, 1, 0, 2], [0.5, 0.6, 0.5, 0.3, 0.4]))
    errors = [_step_error(session, reference, text, [fork] * num_rows)]
    text = text + _keep(session, [fork] * num_rows, c, f)
    decoys = reference.decoys
    wide = session.fit(DraftTree([*decoys, g], [-1] * (len(decoys) + 1), [0.1] * len(decoys) + [0.9]))
    session.forward([wide] * num_rows)
    text = text + _keep(session, [wide] * num_rows, g, h)
    chain = session.fit(DraftTree.chain([i, j]))
    errors.append(_step_error(session, reference, text, [chain] * num_rows))
    return float(np.max(errors))  # unlike max, never loses a NaN


def _keep(session: Session, trees: list[DraftTree], last: int, bonus: int) -> list[int]:
    """Accept the path to the node that carries ``last``, if the tree has it; returns the gained tokens."""
    tree = trees[0]
    path = next((tree.path_to(node) for node in range(len(tree)) if tree.token_ids[node] == last), [])
    gained = [*tree.token_ids[path].tolist(), bonus]
    session.keep([Acceptance(path, gained)] * len(trees))
    return gained


def _step_error(session: Session, reference: _Reference, text: list[int], trees: list[DraftTree]) -> float:
    tree = trees[0]
    rows = session.forward(trees)[0].float()
    ends = [text, *([*text, *tree.token_ids[tree.path_to(node)].tolist()] for node in range(len(tree)))]
    leaves_first = sorted(range(len(ends)), key=lambda row: -len(ends[row]))
    return float(np.max([float((rows[row] - reference.logits(ends[row])).norm()) for row in leaves_first]))
