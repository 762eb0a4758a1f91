"""Trains ADJUST's sampler (arXiv 2509.22738): one layer that follows the model while tokens are revealed.

The model writes texts one token a forward pass, those of least entropy first. From a place in such a text the
sampler starts with the model's hidden states and is shown the next tokens one after the other; after each it
shall predict, at the positions still open, what the model predicts there (KL divergence of the sampler's law
from the model's), and its hidden states shall be the model's (smooth L1). Its own hidden states go into its
next call, so that it learns to go on from them. The model is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hasten.core import SamplingParams
from hasten.diffusion.canvas import Block, Canvas, Denoiser, Ids, Prediction, Query
from hasten.diffusion.defaults import REFERENCE
from hasten.diffusion.denoisers.joint_sampler import JointSampler
from hasten.diffusion.selectors.static import Static
from hasten.errors import ConfigError
from hasten.training.trajectories import Trajectory, write_canvases

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, number of steps, metrics)"""

_HELD_OUT_SHARE = 0.1
_HELD_OUT_PLACES = 64
_REPORT_EVERY = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class JointTraining:
    """How a sampler is trained. Raises ConfigError for a value that cannot work."""

    unroll: int = 3
    """tokens that are revealed one after the other; 3 serves "joint:4" """
    steps: int = 1000
    batch_size: int = 16
    """places in texts that a step learns from"""
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    """then the rate is constant"""
    temperature: float = 1.0
    """of the texts; 0 for a sampler that shall write greedily"""
    hidden_weight: float = 1.0
    """of the hidden states' part of the loss"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("unroll", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work; it must be at least 1")
        for name in ("warmup_steps", "temperature", "hidden_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work; it must be 0 or more")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate} cannot work; it must be above 0")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A canvas in the middle of its text, and what is revealed of it next."""

    token_ids: list[Ids]
    """int64 [length] each: the canvas, then with one more token each"""
    open_positions: list[Ids]
    """of the block, for each of these"""


def train_joint_sampler(
    denoiser: Denoiser,
    sampler: JointSampler,
    canvases: Sequence[Canvas],
    options: JointTraining,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Trains ``sampler``, which was made for the model of ``denoiser``; returns metrics.

    Metrics, on a tenth of the texts that took no part in training: "divergence", the mean KL divergence in
    nats of the sampler's laws from the model's, and "untrained_divergence", that of using the first
    prediction for all tokens.

    Raises ConfigError for fewer than 2 canvases, or texts in which nothing is left to predict.
    """
    report = progress or (lambda done, total, metrics: None)
    if len(canvases) < 2:
        raise ConfigError(f"{len(canvases)} texts are too few to train and test a sampler; give 2 or more")
    texts = write_canvases(
        denoiser,
        canvases,
        [replace(REFERENCE, selector=Static(1, "entropy"))] * len(canvases),
        params=SamplingParams(temperature=options.temperature),
        seed=options.seed,
        report=lambda done: report(done, len(canvases), {}),
    )
    num_held_out = max(1, round(_HELD_OUT_SHARE * len(texts)))
    random = np.random.default_rng(options.seed)
    order = random.permutation(len(texts))
    held_out = _places([texts[number] for number in order[:num_held_out]], options.unroll)
    places = _places([texts[number] for number in order[num_held_out:]], options.unroll)
    if not places or not held_out:
        raise ConfigError("the blocks of these texts are too short for a second token; give longer ones")
    asked = [held_out[number] for number in random.permutation(len(held_out))[:_HELD_OUT_PLACES]]
    base = _Base(denoiser)
    untrained = _divergence(base, sampler, asked)
    _fit(base, sampler, places, options, report)
    return {"divergence": _divergence(base, sampler, asked), "untrained_divergence": untrained}


def _places(texts: Sequence[Trajectory], unroll: int) -> list[Place]:
    """Every place after which at least two positions of the block are open."""
    found = []
    for text in texts:
        states, opens, blocks = _replayed(text)
        for first, block in enumerate(blocks):
            last = first
            while last < first + unroll and last + 1 < len(blocks) and blocks[last + 1] == block:
                last += 1
            if last > first:
                found.append(Place(states[first : last + 1], opens[first : last + 1]))
    return found


def _replayed(text: Trajectory) -> tuple[list[Ids], list[Ids], list[Block]]:
    """Before each step: the canvas, the block's open positions, and the block."""
    canvas = text.start.fork()
    states, opens, blocks = [], [], []
    for record in text.records:
        states.append(canvas.token_ids.copy())
        opens.append(canvas.open_in(record.block))
        blocks.append(record.block)
        canvas.commit(record.positions, record.token_ids)
    return states, opens, blocks


class _Base:
    """Predictions of the model with their hidden states."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def __call__(self, places: Sequence[Place]) -> list[list[Prediction]]:
        """For each place, of all its canvases."""
        queries = [
            Query(sequence=row, token_ids=token_ids, wanted=wanted, wants_hidden=True)
            for row, place in enumerate(places)
            for token_ids, wanted in zip(place.token_ids, place.open_positions, strict=True)
        ]
        session = self._denoiser.open([len(one.token_ids[0]) for one in places], keeps_rows=False)
        predictions = iter(session.forward(queries))
        return [[next(predictions) for _ in place.token_ids] for place in places]


@dataclass(frozen=True, slots=True)
class _Losses:
    divergence: Tensor
    hidden: Tensor


def _losses(sampler: JointSampler, places: Sequence[Place], targets: list[list[Prediction]]) -> _Losses:
    """Means over all predictions of the sampler, and over all its hidden states."""
    hidden = [_hidden(of_place[0], sampler) for of_place in targets]
    divergences, distances = [], []
    for number in range(1, max(len(place.token_ids) for place in places)):
        rows = [row for row, place in enumerate(places) if len(place.token_ids) > number]
        states = _next(sampler, [(places[row].token_ids[number], hidden[row]) for row in rows])
        for row, state in zip(rows, states, strict=True):
            target = targets[row][number]
            positions = torch.from_numpy(target.positions).to(state.device)
            divergences.append(divergence(target.logits, sampler.logits(state, positions)))
            distances.append(functional.smooth_l1_loss(state, _hidden(target, sampler)))
            hidden[row] = state
    return _Losses(torch.cat(divergences).mean(), torch.stack(distances).mean())


def _hidden(prediction: Prediction, sampler: JointSampler) -> Tensor:
    assert prediction.hidden is not None
    return prediction.hidden.to(sampler.join.weight)


def _next(sampler: JointSampler, inputs: list[tuple[Ids, Tensor]]) -> list[Tensor]:
    """The sampler's hidden states [length, width] for each canvas and its last ones."""
    lengths = [len(token_ids) for token_ids, _ in inputs]
    device = sampler.join.weight.device
    pad = torch.nn.utils.rnn.pad_sequence
    token_ids = pad([torch.from_numpy(ids).to(device) for ids, _ in inputs], batch_first=True)
    hidden = pad([one for _, one in inputs], batch_first=True)
    is_real = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    states: Tensor = sampler(token_ids, hidden, None if is_real.all() else is_real)
    return [state[:length] for state, length in zip(states, lengths, strict=True)]


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """float32 [rows]: KL divergence, nats, of the law of ``logits`` from that of ``target`` [rows, vocab]."""
    wanted, made = target.float().log_softmax(-1), logits.log_softmax(-1)
    terms = wanted.exp() * (wanted - made)
    return terms.masked_fill(wanted.isneginf(), 0).sum(-1)


@torch.no_grad()
def _divergence(base: _Base, sampler: JointSampler, places: Sequence[Place]) -> float:
    return _losses(sampler, places, base(places)).divergence.item()


def _fit(
    base: _Base, sampler: JointSampler, places: list[Place], options: JointTraining, report: Progress
) -> None:
    if sampler.join.weight.dtype in {torch.float16, torch.bfloat16}:
        sampler.float()  # small steps vanish in half precision
    sampler.requires_grad_(True)
    optimizer = torch.optim.AdamW(sampler.parameters(), lr=options.learning_rate)
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (options.warmup_steps + 1))
    )
    random = np.random.default_rng((options.seed, 1))
    for step in range(1, options.steps + 1):
        drawn = [places[number] for number in random.integers(len(places), size=options.batch_size)]
        losses = _losses(sampler, drawn, base(drawn))
        loss = losses.divergence + options.hidden_weight * losses.hidden
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % _REPORT_EVERY == 0 or step == options.steps:
            report(step, options.steps, {"loss": loss.item(), "divergence": losses.divergence.item()})
    sampler.requires_grad_(False)
