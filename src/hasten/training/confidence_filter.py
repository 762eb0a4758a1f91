"""Trains Learn2PD's filter (arXiv 2509.25188): is a candidate the token that the text will end with?

The denoiser writes each text one token a forward pass; that is the answer. Then it writes the text again, and
in each forward pass every candidate that equals the answer is written ("extremely greedy parallel"). Each of
those passes is an example: how sure the denoiser was at every position of the block, and which candidates
were right. The denoiser is not changed.

What differs from the paper: where no candidate is right, one token of the answer is written and not the whole
block; positions that are written already are read but not learnt, because nothing is decided about them; and
the weights of the epoch with the least loss on texts that were not trained on are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hasten.diffusion.base import Wants
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.canvas import Canvas, Denoiser
from hasten.diffusion.confidence_filter import ConfidenceFilter
from hasten.diffusion.defaults import REFERENCE
from hasten.diffusion.selectors.learn2pd import block_confidences
from hasten.diffusion.selectors.oracle import Oracle
from hasten.diffusion.steps import DenoisingStep, Selection
from hasten.errors import ConfigError
from hasten.training.trajectories import write_canvases

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, number of steps, metrics)"""

ACCEPT_LEVELS = (0.9, 0.96)
"""What the paper accepts at for Dream and for LLaDA; metrics are of both."""
_FEWEST_TEXTS = 10
_CHECK_EVERY = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterTraining:
    """How a filter is trained. Raises ConfigError for a value that cannot work."""

    block_size: int = 32
    hidden_size: int = 32
    epochs: int = 2000
    """each sees all examples at once"""
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "hidden_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work; it must be at least 1")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate} cannot work; it must be above 0")


@dataclass(frozen=True, slots=True, eq=False)
class FilterExamples:
    """Forward passes that a filter learns from; those of one text stand together."""

    confidences: Tensor
    """float32 [passes, block_size], see ``block_confidences``"""
    is_right: Tensor
    """bool [passes, block_size]: the candidate is the token of the answer"""
    is_open: Tensor
    """bool [passes, block_size]: the others are not learnt"""

    @classmethod
    def of(cls, passes: Sequence[_Pass]) -> FilterExamples:
        arrays = zip(*passes, strict=True)
        confidences, is_right, is_open = (torch.from_numpy(np.stack(one)) for one in arrays)
        return cls(confidences.float(), is_right, is_open)


_Pass = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""confidences, is_right, is_open"""


def train_confidence_filter(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    options: FilterTraining,
    progress: Progress | None = None,
) -> tuple[ConfidenceFilter, dict[str, float]]:
    """A filter for this denoiser, from the texts that it writes on these canvases, and metrics.

    Metrics, of the tenth of the texts that took no part in training: "false_positives_0.9", the share of
    wrong candidates that are accepted above 0.9, "accepted_0.9", that of right ones, both for 0.96 too;
    "forwards" and "oracle_forwards", passes a text takes one token a pass, and if every right candidate is
    written.

    Raises ConfigError for fewer than 10 canvases, or ones that the blocks do not divide.
    """
    if len(canvases) < _FEWEST_TEXTS:
        raise ConfigError(f"{len(canvases)} texts are too few to train and test a filter; give 10 or more")
    report = progress or (lambda done, total, metrics: None)
    passes, metrics = collect_passes(denoiser, canvases, options.block_size, report)
    order, tenth = np.random.default_rng(options.seed).permutation(len(passes)), len(passes) // 10
    parts = np.split(order, [tenth, 2 * tenth])
    test, check, train = (FilterExamples.of([one for text in part for one in passes[text]]) for part in parts)
    made = fit_filter(train, check, options, report)
    return made, metrics | rates(made, test)


def collect_passes(
    denoiser: Denoiser, canvases: Sequence[Canvas], block_size: int, report: Progress
) -> tuple[list[list[_Pass]], dict[str, float]]:
    """By text, the examples of its passes; and how many passes texts take on average."""
    blocks = FixedBlocks(block_size, aligned=denoiser.spec.attention == "block-causal")
    total = 2 * len(canvases)
    plain = write_canvases(
        denoiser,
        canvases,
        [replace(REFERENCE, blocks=blocks)] * len(canvases),
        report=lambda done: report(done, total, {}),
    )
    watched = [_Watched(one.end.token_ids, block_size) for one in plain]
    greedy = write_canvases(
        denoiser,
        canvases,
        [replace(REFERENCE, blocks=blocks, selector=one) for one in watched],
        report=lambda done: report(len(canvases) + done, total, {}),
    )
    return [one.passes for one in watched], {
        "forwards": float(np.mean([len(one.records) for one in plain])),
        "oracle_forwards": float(np.mean([len(one.records) for one in greedy])),
    }


@dataclass(frozen=True, eq=False)
class _Watched(Oracle):
    """The oracle, which remembers what a filter would have seen."""

    wants: ClassVar[Wants] = "block"
    width: int
    """positions of a full block"""
    passes: list[_Pass] = field(default_factory=list)

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        positions = np.arange(step.block.start, step.block.end)
        size = len(positions)
        is_right, is_open = np.ones(self.width, bool), np.zeros(self.width, bool)
        is_right[:size] = step.prediction.at(positions).token_ids == self.answer[positions]
        is_open[:size] = step.canvas.is_open[positions]
        self.passes.append((block_confidences(step, self.width), is_right, is_open))
        return super().select(step, state)


def fit_filter(
    train: FilterExamples, check: FilterExamples, options: FilterTraining, report: Progress
) -> ConfidenceFilter:
    """A filter that learnt ``train``, with the weights that did best on ``check``."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to change
        torch.manual_seed(options.seed)
        made = ConfidenceFilter(options.block_size, options.hidden_size)
    optimizer = torch.optim.AdamW(made.parameters(), lr=options.learning_rate)
    best, best_loss = copy.deepcopy(made.state_dict()), float("inf")
    for epoch in range(1, options.epochs + 1):
        loss = filter_loss(made, train)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if epoch % _CHECK_EVERY == 0 or epoch == options.epochs:
            with torch.no_grad():
                checked = filter_loss(made, check).item()
            if checked < best_loss:
                best, best_loss = copy.deepcopy(made.state_dict()), checked
            report(epoch, options.epochs, {"loss": loss.item(), "held_out_loss": checked})
    made.load_state_dict(best)
    return made.requires_grad_(False)


def filter_loss(made: ConfidenceFilter, examples: FilterExamples) -> Tensor:
    """Cross-entropy at the open positions."""
    logits = made(examples.confidences)[examples.is_open]
    return functional.binary_cross_entropy_with_logits(logits, examples.is_right[examples.is_open].float())


@torch.no_grad()
def rates(made: ConfidenceFilter, examples: FilterExamples) -> dict[str, float]:
    """By level, the shares of wrong and of right candidates at open positions that a filter accepts."""
    chances = torch.sigmoid(made(examples.confidences).double())[examples.is_open]
    is_right = examples.is_right[examples.is_open]
    found = {}
    for level in ACCEPT_LEVELS:
        accepted = chances > level
        for name, kind in (("false_positives", ~is_right), ("accepted", is_right)):
            found[f"{name}_{level}"] = float((accepted & kind).sum() / max(1, int(kind.sum())))
    return found
