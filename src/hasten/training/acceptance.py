"""Trains SpecDec++'s acceptance head (arXiv 2405.19715): does the target accept what the draft guesses here?

The target goes on with prompts at temperature 1; at each place the draft guesses one token Y, whose label is
min(1, p(Y) / q(Y)). The draft then reads the text again with most tokens replaced by its guesses ("token
mixing": the text's own token stays with probability 0.15), and the head learns the labels of the guesses from
the hidden states there. Rejections weigh 6 times as much as acceptances. The two models are not changed.

What differs from the paper: the learning rate is larger, because there are some thousand examples here
instead of millions. As there, labels are those of the text's own prefix, and of temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hasten.core import Acceptance
from hasten.drafters.trees.acceptance_head import AcceptanceHead
from hasten.errors import ConfigError, IncompatibleModels
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import DraftLM
from hasten.models.forwards.hidden_tap import HiddenTap
from hasten.tree import DraftTree

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, number of steps, metrics)"""

REJECTION_WEIGHT = 6.0
TEXT_SHARE = 0.15
_HELD_OUT_SHARE = 0.1
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptanceTraining:
    """How the head is trained. Raises ConfigError for a value that cannot work."""

    num_texts: int = 256
    prompt_length: int = 64
    """tokens of the data that a text begins with"""
    new_tokens: int = 64
    """that the target writes after them"""
    num_blocks: int = 3
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_texts": 2, "prompt_length": 1, "new_tokens": 1, "num_blocks": 0, "epochs": 1}
        for name, lowest in (least | {"batch_size": 1}).items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name}={getattr(self, name)} cannot work; it must be at least {lowest}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate={self.learning_rate} cannot work; it must be above 0")


@dataclass(frozen=True, slots=True)
class Examples:
    """What the head learns from."""

    hidden: Tensor
    """float32 [examples, hidden], the draft's at tokens it guessed"""
    labels: Tensor
    """float32 [examples], the chance that the target accepts the token"""


def train_acceptance_head(
    draft: DraftLM,
    target: CausalLM,
    token_ids: NDArray[np.integer],
    options: AcceptanceTraining,
    progress: Progress | None = None,
) -> tuple[AcceptanceHead, dict[str, float]]:
    """A head for this draft and target, and its metrics.

    Args:
        token_ids: [tokens] of text that prompts are taken from.

    Metrics: "loss" of the last step; "held_out_loss" of texts that were not trained on, "untrained_loss" the
    best there without looking at the hidden state; "acceptance", the mean label.

    Raises:
        ConfigError: too little text, or more than the models have positions for.
        IncompatibleModels: the draft has another tokenizer than the target.
    """
    report = progress or (lambda done, total, metrics: None)
    _check(draft, target, token_ids, options)
    examples = _collect(draft, target, _prompts(token_ids, options), options, report)
    # Examples of a text stand together: of the first text that is trained on, a few may be held out.
    num_held_out = max(1, round(_HELD_OUT_SHARE * len(examples.labels)))
    train = Examples(examples.hidden[num_held_out:], examples.labels[num_held_out:])
    held_out = Examples(examples.hidden[:num_held_out], examples.labels[:num_held_out])
    head, metrics = _fit(train, options, report)
    with torch.no_grad():
        metrics["held_out_loss"] = acceptance_loss(head(held_out.hidden), held_out.labels).item()
        blind = torch.full_like(held_out.labels, _best_constant(train.labels))
        metrics["untrained_loss"] = acceptance_loss(blind, held_out.labels).item()
    metrics["acceptance"] = examples.labels.mean().item()
    return head, metrics


def acceptance_loss(log_odds: Tensor, labels: Tensor) -> Tensor:
    """Weighted cross-entropy of soft labels, both [examples], over the sum of the weights."""
    rejected = REJECTION_WEIGHT * (1 - labels)
    losses = -labels * functional.logsigmoid(log_odds) - rejected * functional.logsigmoid(-log_odds)
    return losses.sum() / (labels + rejected).sum()


def _best_constant(labels: Tensor) -> float:
    accepted = float(labels.sum())
    rejected = REJECTION_WEIGHT * float((1 - labels).sum())
    return float(np.log(max(accepted, 1e-6) / max(rejected, 1e-6)))


def _check(
    draft: DraftLM, target: CausalLM, token_ids: NDArray[np.integer], options: AcceptanceTraining
) -> None:
    if not draft.vocabulary.is_same:
        raise IncompatibleModels(
            f"the draft {draft.name!r} has another tokenizer than the target; a head needs the same"
        )
    if len(token_ids) <= options.prompt_length:
        raise ConfigError(
            f"{len(token_ids)} tokens of text are too few for prompt_length={options.prompt_length}; add text"
        )
    length = options.prompt_length + options.new_tokens
    for model in (draft.model, target):
        if model.max_length is not None and length > model.max_length:
            raise ConfigError(
                f"prompt_length + new_tokens = {length} is above a model's {model.max_length} positions; "
                "choose smaller ones"
            )


def _prompts(token_ids: NDArray[np.integer], options: AcceptanceTraining) -> Tensor:
    """int64 [texts, prompt_length], from places drawn anywhere in the text."""
    rng = np.random.default_rng(options.seed)
    starts = rng.integers(0, len(token_ids) - options.prompt_length, options.num_texts)
    rows = [token_ids[start : start + options.prompt_length] for start in starts]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _collect(
    draft: DraftLM, target: CausalLM, prompts: Tensor, options: AcceptanceTraining, report: Progress
) -> Examples:
    generator = torch.Generator().manual_seed(options.seed)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(prompts), _ROWS_AT_ONCE):
        rows = prompts[start : start + _ROWS_AT_ONCE]
        texts, laws = _written(target, rows, options.new_tokens, generator)
        found.append(_examples(draft, texts, laws, generator))
        report(min(start + _ROWS_AT_ONCE, len(prompts)), len(prompts), {})
    return Examples(torch.cat([each for each, _ in found]), torch.cat([each for _, each in found]))


def _written(
    target: CausalLM, prompts: Tensor, num_tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(texts [rows, tokens] written on at temperature 1, the laws [rows, num_tokens, vocab] of that)."""
    session = target.open()
    session.prefill(prompts.tolist())
    laws, written = [], [prompts]
    for _ in range(num_tokens):
        rows = session.forward([DraftTree()] * len(prompts))
        laws.append(torch.softmax(torch.cat(rows).float().cpu(), -1))
        written.append(torch.multinomial(laws[-1], 1, generator=generator))
        session.keep([Acceptance([], token_ids) for token_ids in written[-1].tolist()])
    return torch.cat(written, dim=1), torch.stack(laws, dim=1)


def _examples(
    draft: DraftLM, texts: Tensor, target_laws: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(hidden states, labels) of the draft's guesses at the places of the laws, which are the last."""
    start = texts.shape[1] - target_laws.shape[1]
    logits, _ = _read(draft.model, texts)
    laws = torch.softmax(draft.to_target(logits[:, start - 1 : -1]).cpu(), -1)
    guesses = torch.multinomial(laws.flatten(0, 1), 1, generator=generator).view(laws.shape[:-1])
    mine, theirs = (each.gather(-1, guesses[..., None])[..., 0] for each in (laws, target_laws))
    is_guess = torch.rand(guesses.shape, generator=generator) >= TEXT_SHARE
    mixed = torch.cat((texts[:, :start], torch.where(is_guess, guesses, texts[:, start:])), dim=1)
    _, hidden = _read(draft.model, mixed)
    return hidden[:, start:].float().cpu()[is_guess], (theirs / mine).clamp(max=1)[is_guess]


def _read(model: CausalLM, texts: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, last hidden states) at every token."""
    tap = HiddenTap(model.forward.model)
    try:
        positions = np.tile(np.arange(texts.shape[1]), (len(texts), 1))
        logits = model.forward(texts.numpy(), positions, None, None)
    finally:
        tap.close()
    assert tap.newest is not None
    return logits, tap.newest


def _fit(
    train: Examples, options: AcceptanceTraining, report: Progress
) -> tuple[AcceptanceHead, dict[str, float]]:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to change
        torch.manual_seed(options.seed)
        head = AcceptanceHead(train.hidden.shape[1], options.num_blocks)
    generator = torch.Generator().manual_seed(options.seed + 1)
    per_epoch = -(-len(train.labels) // options.batch_size)
    total = options.epochs * per_epoch
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.learning_rate)
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    loss, done = torch.zeros(()), 0
    for _ in range(options.epochs):
        order = torch.randperm(len(train.labels), generator=generator)
        for rows in torch.split(order, options.batch_size):
            loss = acceptance_loss(head(train.hidden[rows]), train.labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == total:
                report(done, total, {"loss": loss.item()})
    return head.requires_grad_(False), {"loss": loss.item()}
