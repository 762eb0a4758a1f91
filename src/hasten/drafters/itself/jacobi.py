"""Speculative Jacobi decoding (arXiv 2410.01699): a window of guesses that every pass makes better.

The window is a chain below the last token. After a pass, each of its places that was not written is
guessed anew from this pass's row there, which saw the window as it was; the window moves on, and its new
end begins with tokens of the text. Where the text becomes clear, guesses stop changing and are accepted
several at a time.

By default a guess is drawn with the noise that the target will draw that position with, so that a guess
from the right logits is the token itself; greedy, this is plain Jacobi decoding. Where the verification
rule weighs laws (``verify="residual"``, the paper's rule), a guess is drawn with noise of its own and
carries the law it was drawn from. Its score must not depend on the token drawn then, because what is left
out of a tree for its token has another law; it is how much the place's law moved in the last pass.

The paper's models write images, whose neighbours agree; for text without training on it, gains are small.
What a guess is worth is a rough prior here and calibrated downstream. Knows one window a sequence, and no
model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.core import SAMPLED, LawSampler, Sequence, System, TopCandidates
from hasten.drafters.base import Forgetful, Observation
from hasten.errors import ConfigError
from hasten.laws import draw, normalised
from hasten.tree import ROOT, DraftTree

if TYPE_CHECKING:
    import torch

SYSTEM = System(
    name="jacobi",
    title="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi "
    "Decoding",
    arxiv="2410.01699",
    kind="training-free drafter",
    guarantee="exact",
    module="hasten.drafters.itself.jacobi",
    summary="guesses a window of tokens in parallel, and again from every pass",
)

FIRST_STREAM = 16
"""Of the sampler's random numbers: one a step, as each step draws every place anew."""
NEW_TOKEN_TRUST = 0.02
TRUSTS = (0.3, 0.6, 0.8)
"""Chance of a guess, given its parent is right, by how many passes left it as it was."""

Law = NDArray[np.float32]


@dataclass(slots=True)
class _Place:
    """One token of the window."""

    token_id: int
    trust: float = NEW_TOKEN_TRUST
    age: int = -1  # passes that gave this token again; -1: no pass gave it
    law: Law | None = None  # what it was drawn from; None: it was chosen


@dataclass(slots=True)
class _Window:
    rng: np.random.Generator
    places: list[_Place] = field(default_factory=list)
    num_steps: int = 0


class Jacobi(Forgetful):
    """A chain of guesses.

    Args:
        window: how many tokens are guessed at a time.
        start: a new place begins with "random", a token of the text so far, or "repeat", the last one.
        seed: of the random beginnings.

    Raises ConfigError for a value that cannot work.
    """

    name = "jacobi"
    top_k = 0

    def __init__(
        self, *, window: int = 16, start: Literal["random", "repeat"] = "random", seed: int = 0
    ) -> None:
        if window < 1:
            raise ConfigError(f"window={window} cannot work; it must be at least 1")
        if start not in ("random", "repeat"):
            raise ConfigError(f"start={start!r} is not one of random, repeat")
        self._size = window
        self._repeats = start == "repeat"
        self._seed = seed
        self._windows: dict[Sequence, _Window] = {}

    def begin(self, sequence: Sequence, prompt_candidates: TopCandidates | None) -> None:
        window = self._windows[sequence] = _Window(np.random.default_rng(self._seed))
        self._fill(sequence, window)

    def propose(self, sequence: Sequence, budget: int) -> DraftTree:
        places = self._windows[sequence].places[:budget]
        tree = DraftTree.chain(
            [place.token_id for place in places],
            np.cumprod([place.trust for place in places]).tolist(),
            (self.name,),
        )
        laws = [place.law for place in places]
        known = next((law for law in laws if law is not None), None)
        if known is not None:
            tree.draft_probs = np.zeros((len(places), len(known)), np.float32)
            for row, place in zip(tree.draft_probs, places, strict=True):
                if place.law is None:
                    row[place.token_id] = 1.0
                else:
                    row[:] = place.law
        return tree

    def observe(self, sequence: Sequence, observation: Observation) -> None:
        window = self._windows[sequence]
        rows = _own_rows(observation.tree, window.places)
        num_written = len(observation.acceptance.token_ids)
        window.num_steps += 1
        position = len(sequence.token_ids)
        before = window.places[num_written:]
        guesses = []
        # Row i saw i tokens of the window and tells of the next; the last row, of a place that is new.
        for index, row in enumerate(rows[num_written:]):
            old = before[index] if index < len(before) else _Place(sequence.token_ids[-1])
            if observation.logits is not None:
                logits = observation.logits[row]
                guesses.append(_guess(sequence, logits, position + index, old, window.num_steps))
        window.places = guesses + before[len(guesses) :]
        self._fill(sequence, window)

    def _fill(self, sequence: Sequence, window: _Window) -> None:
        text = sequence.token_ids
        while len(window.places) < self._size:
            at = -1 if self._repeats else int(window.rng.integers(len(text)))
            window.places.append(_Place(text[at]))

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """See ForkingDrafter."""
        self._windows[child] = copy.deepcopy(self._windows[parent])

    def end(self, sequence: Sequence) -> None:
        self._windows.pop(sequence, None)


def _guess(sequence: Sequence, logits: torch.Tensor, position: int, before: _Place, num_steps: int) -> _Place:
    """What the logits [vocab] say of a position."""
    sampler = sequence.sampler
    if sequence.proposals not in SAMPLED or not isinstance(sampler, LawSampler):
        token_id = sampler.guess(logits, position)
        age = before.age + 1 if token_id == before.token_id else 0
        return _Place(token_id, TRUSTS[min(age, len(TRUSTS) - 1)], age)
    law = sampler.law(logits).astype(np.float32)
    if not np.isfinite(law).all():
        return before
    token_id = draw(normalised(law), sampler.generator(position, FIRST_STREAM + num_steps))
    overlap = TRUSTS[0] if before.law is None else float(np.minimum(law, before.law).sum())
    return _Place(token_id, min(1.0, overlap), 0, law)


def _own_rows(tree: DraftTree, places: list[_Place]) -> list[int]:
    """The rows of the root and of the window's tokens, as far as the tree holds them."""
    rows, node = [0], ROOT
    for place in places:
        child = tree.child(node, place.token_id)
        if child is None:
            break
        rows.append(child + 1)
        node = child
    return rows
