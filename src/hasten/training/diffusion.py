"""Trains a small masked-diffusion model: a stock Llama that sees a whole canvas and predicts its masks.

Builds the run from its parts: `diffusion_rows` says what is read, `diffusion_objective` what is learnt,
`diffusion_certainty` how a teacher's answers are, and the loop is that of `train lm`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hasten.diffusion.canvas import DenoiserSpec
from hasten.errors import ConfigError, IncompatibleModels
from hasten.files import write_text
from hasten.training.cutting import cut
from hasten.training.data import load_corpus
from hasten.training.diffusion_certainty import TaughtRows, certainty_of_step
from hasten.training.diffusion_objective import Denoising, hide
from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.diffusion_rows import ListRows, RowSource, TextRows, list_tokenizer
from hasten.training.loop import (
    Loop,
    Progress,
    autocast,
    build_optimizer,
    export,
    find_start,
    llama_config,
    move,
    new_model,
    prepare_tokenizer,
    resolve_device,
    versions,
)
from hasten.training.teacher import load_like
from hasten.training.tokenizer import resolve_model

__all__ = ["DiffusionConfig", "train_diffusion_model"]


def train_diffusion_model(config: DiffusionConfig, progress: Progress | None = None) -> Path:
    """Trains as the recipe says; returns the output folder, a model in bfloat16 with its denoiser_spec.json.

    The folder also keeps the last checkpoint and, in training.json, what was done. Raises ConfigError,
    IncompatibleModels or ModelError before training where something cannot work, and ModelError when the loss
    is no number any more.
    """
    output = Path(config.output)
    checkpoint = find_start(config, output)
    device = resolve_device(config.device)
    tokenizer = _tokenizer(config, output, is_resumed=checkpoint is not None)
    run = _Run.start(config, device, tokenizer)
    loop = Loop(
        config=config,
        device=device,
        model=run.model,
        optimizer=build_optimizer(run.model, config),
        fingerprint=run.source.fingerprint,
        tokens_per_step=run.source.tokens_per_step,
        loss=run.loss,
        held_out_loss=run.held_out_loss if config.held_out_fraction > 0 else None,
    )
    first_step = 0 if checkpoint is None else loop.restore(checkpoint)
    metrics = loop.train(first_step, progress)
    export(run.model, tokenizer, output)
    run.spec.save(output)
    report = {
        "options": config.as_dict(),
        "num_parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "final_metrics": metrics,
        "device": device.type,
        "versions": versions(),
    }
    write_text(output / "training.json", json.dumps(report, indent=2) + "\n", "report")
    return output


@dataclass(frozen=True, slots=True)
class _Run:
    config: DiffusionConfig
    device: torch.device
    model: LlamaForCausalLM
    source: RowSource
    spec: DenoiserSpec

    @classmethod
    def start(cls, config: DiffusionConfig, device: torch.device, tokenizer: PreTrainedTokenizerFast) -> _Run:
        spec = _spec(config, tokenizer)
        model = _build_model(config, tokenizer)
        move(model, device, torch.float32)
        model.train()
        source = _open_source(config, tokenizer)
        if config.teacher is not None:
            teacher = _load_teacher(config, tokenizer, spec, device)
            source = TaughtRows(teacher, source, config, Path(config.output) / "corpus")
        return cls(config, device, model, source, spec)

    @property
    def denoising(self) -> Denoising:
        assert self.spec.mask_id is not None
        return Denoising(self.model, self.spec.mask_id, self.spec.logits_shift)

    def loss(self, step: int) -> Tensor:
        with autocast(self.config, self.device):
            if isinstance(self.source, TaughtRows):
                return certainty_of_step(self.denoising, self.source, self.config)(step)
            rows = self.source.batch(step)
            random = np.random.default_rng((self.config.seed, step, 3))
            return self.denoising.loss(rows, hide(rows, self.config, random))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean of the same objective over what is held out, always with the same masks."""
        losses, counts = [], []
        for number, rows in enumerate(self.source.held_out()):
            random = np.random.default_rng((self.config.seed, number))
            with autocast(self.config, self.device):
                losses.append(self.denoising.loss(rows, hide(rows, self.config, random)).item())
            counts.append(len(rows.token_ids))
        return float(np.average(losses, weights=counts))


def _tokenizer(config: DiffusionConfig, output: Path, *, is_resumed: bool) -> PreTrainedTokenizerFast:
    if config.subject == "list-tasks":
        return list_tokenizer()
    return prepare_tokenizer(config, _paths(config), output, is_resumed=is_resumed)


def _paths(config: DiffusionConfig) -> list[Path]:
    return [Path(config.data) / file for file in config.files]


def _open_source(config: DiffusionConfig, tokenizer: PreTrainedTokenizerFast) -> RowSource:
    if config.subject == "list-tasks":
        return ListRows(tokenizer, config)
    folder = Path(config.output) / "corpus"
    return TextRows(
        load_corpus(_paths(config), tokenizer, config.held_out_fraction, folder), tokenizer, config
    )


def _spec(config: DiffusionConfig, tokenizer: PreTrainedTokenizerFast) -> DenoiserSpec:
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"tokenizer={config.tokenizer!r} has no mask_token, which hides what is to be learnt; choose one"
            " that has"
        )
    return DenoiserSpec(
        mask_id=tokenizer.mask_token_id,
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
        logits_shift=config.logits_shift,
        attention="full" if config.block_size is None else "block-causal",
        block_size=config.block_size,
    )


def _build_model(config: DiffusionConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    shape = llama_config(config, tokenizer)
    shape.is_causal = False
    shape.initializer_range = config.initializer_range
    model = new_model(shape, config.seed)
    if config.origin is not None:
        name = "start_from" if config.start_from is not None else "teacher"
        source = load_like(name, config.origin, config, tokenizer)
        cut(source, model, tuple(range(config.num_layers)), config.origin)
    return model


def _load_teacher(
    config: DiffusionConfig, tokenizer: PreTrainedTokenizerFast, spec: DenoiserSpec, device: torch.device
) -> Denoising:
    """The teacher, ready to write; the student must be asked as it is."""
    assert config.teacher is not None
    assert spec.mask_id is not None
    teacher = load_like("teacher", config.teacher, config, tokenizer)
    its_spec = DenoiserSpec.load(Path(resolve_model(config.teacher)))
    if its_spec != spec:
        raise IncompatibleModels(
            f"teacher={config.teacher!r} is asked as {its_spec}, the student as {spec}; give the student the"
            " teacher's logits_shift"
        )
    move(teacher, device, torch.float32)
    teacher.train(False)
    return Denoising(teacher, spec.mask_id, spec.logits_shift)
