"""Trains a small causal language model from text, to be a target or a draft model.

Knows models, losses and the loop; text comes from `data`, options from `recipe`, `checkpoints` keeps the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hasten.files import write_text
from hasten.training.cutting import ExitLoss, agreements, cut, hidden_states_at
from hasten.training.data import BatchSampler, Corpus, held_out_windows, load_corpus
from hasten.training.loop import (
    Loop,
    Progress,
    autocast,
    build_optimizer,
    export,
    find_start,
    learning_rate_at,
    llama_config,
    move,
    new_model,
    prepare_tokenizer,
    resolve_device,
    versions,
)
from hasten.training.recipe import TrainingConfig
from hasten.training.teacher import load_like, load_teacher, teacher_rows

__all__ = ["Progress", "TrainingConfig", "learning_rate_at", "resolve_device", "train_language_model"]


def train_language_model(config: TrainingConfig, progress: Progress | None = None) -> Path:
    """Trains as the recipe says and returns the output folder, which transformers loads in bfloat16.

    The folder also keeps the tokenised text, the last checkpoint and, in training.json, what was done.
    Raises ConfigError, IncompatibleModels or ModelError before training where something cannot work, and
    ModelError when the loss is no number any more.
    """
    output = Path(config.output)
    checkpoint = find_start(config, output)
    device = resolve_device(config.device)
    paths = [Path(config.data) / file for file in config.files]
    tokenizer = prepare_tokenizer(config, paths, output, is_resumed=checkpoint is not None)
    corpus = load_corpus(paths, tokenizer, config.held_out_fraction, output / "corpus")
    run = _Run.start(config, device, tokenizer, corpus)
    loop = Loop(
        config=config,
        device=device,
        model=run.model,
        optimizer=build_optimizer(run.model, config),
        fingerprint=corpus.fingerprint,
        tokens_per_step=config.batch_size * config.sequence_length,
        loss=lambda step: run.loss(run.batch(step).to(device)),
        held_out_loss=None if run.held_out is None else run.held_out_loss,
    )
    first_step = 0 if checkpoint is None else loop.restore(checkpoint)
    metrics = loop.train(first_step, progress)
    export(run.model, tokenizer, output)
    _write_report(run, metrics, output)
    return output


@dataclass(slots=True)
class _Run:
    config: TrainingConfig
    device: torch.device
    model: LlamaForCausalLM
    corpus: Corpus
    sampler: BatchSampler
    held_out: Tensor | None  # [windows, sequence_length + 1]
    teacher: PreTrainedModel | None
    written: Tensor | None  # by the teacher: [rows, sequence_length + 1]
    written_held_out: Tensor | None
    exits: tuple[int, ...]  # ends with the full depth

    @classmethod
    def start(
        cls, config: TrainingConfig, device: torch.device, tokenizer: PreTrainedTokenizerFast, corpus: Corpus
    ) -> _Run:
        model = _build_model(config, tokenizer, device)
        held_out = None
        if config.held_out_fraction > 0:
            held_out = held_out_windows(corpus.held_out, config.sequence_length, config.num_held_out_windows)
        teacher = load_teacher(config, tokenizer, device)
        written = written_held_out = None
        if teacher is not None and config.teacher_text_tokens:
            folder = Path(config.output) / "corpus"
            written, written_held_out = teacher_rows(teacher, corpus, config, len(tokenizer), folder)
        return cls(
            config=config,
            device=device,
            model=model,
            corpus=corpus,
            sampler=BatchSampler(corpus.train, config.batch_size, config.sequence_length, config.seed),
            held_out=held_out,
            teacher=teacher,
            written=written,
            written_held_out=written_held_out,
            exits=(*config.exits, config.num_layers),
        )

    def batch(self, step: int) -> Tensor:
        """[batch, sequence_length + 1]; the last rows are the teacher's writing, if there is any."""
        windows = self.sampler.batch(step)
        if self.written is None:
            return windows
        num_written = round(self.config.teacher_text_share * self.config.batch_size)
        random = np.random.default_rng((self.config.seed, step, 1))
        rows = torch.from_numpy(random.integers(0, len(self.written), num_written))
        return torch.cat([windows[: len(windows) - num_written], self.written[rows]])

    def loss(self, windows: Tensor) -> Tensor:
        """Of the text and, with a teacher, of the distance to the teacher's distribution; over all exits."""
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad(), autocast(self.config, self.device):
                teacher_logits = self.teacher(input_ids=windows[:, :-1], use_cache=False).logits
        loss = ExitLoss(self.config.exit_weight, self.config.distill_weight)
        with autocast(self.config, self.device):
            hidden = hidden_states_at(self.model, windows[:, :-1], self.exits)
            return loss(hidden, self.model.lm_head, windows[:, 1:], teacher_logits)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss per held-out token; of the text alone, so runs with and without a teacher compare."""
        assert self.held_out is not None
        total = 0.0
        for windows in torch.split(self.held_out, self.config.batch_size):
            on_device = windows.to(self.device)
            with autocast(self.config, self.device):
                logits = self.model(input_ids=on_device[:, :-1], use_cache=False).logits.flatten(0, 1).float()
            total += functional.cross_entropy(logits, on_device[:, 1:].flatten(), reduction="sum").item()
        return total / (self.held_out.shape[0] * self.config.sequence_length)

    def top1_agreement(self) -> dict[str, dict[str, float]]:
        """By text and exit, the share of positions where student and teacher have one most likely token.

        "held_out_text" is the text; "teacher_text" what the teacher wrote greedily after pieces of it.
        """
        if self.teacher is None or self.held_out is None:
            return {}
        places = {"held_out_text": (self.held_out, 0)}
        if self.written_held_out is not None:
            places["teacher_text"] = (self.written_held_out, self.config.teacher_prompt_length - 1)
        shares = {}
        for name, (rows, first) in places.items():
            counts = torch.zeros(len(self.exits), dtype=torch.long, device=self.device)
            for windows in torch.split(rows[:, :-1], self.config.batch_size):
                counts += agreements(self.model, self.teacher, windows.to(self.device), self.exits, first)
            positions = len(rows) * (self.config.sequence_length - first)
            by_exit = (counts / positions).tolist()
            shares[name] = {str(layers): share for layers, share in zip(self.exits, by_exit, strict=True)}
        return shares


def _build_model(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> LlamaForCausalLM:
    model_config = llama_config(config, tokenizer)
    if config.exits:
        model_config.hasten_exits = [*config.exits, config.num_layers]
    model = new_model(model_config, config.seed)
    if config.start_from is not None:
        source = load_like("start_from", config.start_from, config, tokenizer)
        cut(source, model, config.keep_layers, config.start_from)
    move(model, device, torch.float32)
    model.train()
    return model


def _write_report(run: _Run, metrics: dict[str, float], output: Path) -> None:
    corpus = run.corpus
    report = {
        "options": run.config.as_dict(),
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "num_tokens": len(corpus.token_ids),
            "num_train_tokens": corpus.num_train_tokens,
            "num_documents": corpus.num_documents,
            "num_held_out_documents": corpus.num_held_out_documents,
        },
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "final_metrics": metrics,
        "top1_agreement": run.top1_agreement(),
        "device": run.device.type,
        "versions": versions(),
    }
    write_text(output / "training.json", json.dumps(report, indent=2) + "\n", "report")
