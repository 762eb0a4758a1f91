"""Trains a small causal language model from text, to be a target or a draft model.

Knows models, losses and the loop; text comes from `data`, options from `recipe`, `checkpoints` keeps the run.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hasten.errors import ConfigError, ModelError
from hasten.training.checkpoints import RunState, latest_checkpoint, load_tensors, read_state, save_checkpoint
from hasten.training.cutting import ExitLoss, agreements, cut, hidden_states_at
from hasten.training.data import BatchSampler, Corpus, held_out_windows, load_corpus, read_documents
from hasten.training.recipe import TrainingConfig
from hasten.training.teacher import load_like, load_teacher, teacher_rows
from hasten.training.tokenizer import load_tokenizer, train_tokenizer

__all__ = ["Progress", "TrainingConfig", "train_language_model"]

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, number of steps, metrics): loss, learning_rate, gradient_norm, tokens_per_second (pauses
for tests and checkpoints included) and, where it was measured, held_out_loss"""


def train_language_model(config: TrainingConfig, progress: Progress | None = None) -> Path:
    """Trains as the recipe says and returns the output folder, which transformers loads in bfloat16.

    The folder also keeps the tokenised text, the last checkpoint and, in training.json, what was done.
    Raises ConfigError, IncompatibleModels or ModelError before training where something cannot work, and
    ModelError when the loss is no number any more.
    """
    output = Path(config.output)
    checkpoint = _find_start(config, output)
    device = resolve_device(config.device)
    tokenizer = _prepare_tokenizer(config, output, is_resumed=checkpoint is not None)
    corpus = load_corpus(_paths(config), tokenizer, config.held_out_fraction, output / "corpus")
    run = _Run.start(config, device, tokenizer, corpus)
    first_step = 0 if checkpoint is None else run.restore(checkpoint)
    metrics = run.train(first_step, progress or (lambda step, num_steps, metrics: None))
    _export(run.model, tokenizer, output)
    _write_report(run, metrics, output)
    return output


def _find_start(config: TrainingConfig, output: Path) -> Path | None:
    """The checkpoint to go on from; refuses to mix one run with another."""
    checkpoint = latest_checkpoint(output / "checkpoints")
    if config.resume:
        if checkpoint is None:
            raise ConfigError(f"nothing to resume in {output}: it has no checkpoint; train without resume")
        config.require_same_run(read_state(checkpoint).options)
        return checkpoint
    if checkpoint is not None or (output / "model.safetensors").exists():
        raise ConfigError(
            f"output={config.output!r} holds a trained model or a checkpoint; resume, or name another"
        )
    return None


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is the fastest one at hand."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={name!r} cannot be used here ({reason}); try auto or cpu") from error
    return device


def _paths(config: TrainingConfig) -> list[Path]:
    return [Path(config.data) / file for file in config.files]


def _prepare_tokenizer(config: TrainingConfig, output: Path, *, is_resumed: bool) -> PreTrainedTokenizerFast:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if is_resumed:
        return load_tokenizer(str(output))
    assert config.vocab_size is not None
    documents = (document for path in _paths(config) for document in read_documents(path))
    tokenizer = train_tokenizer(documents, config.vocab_size)
    tokenizer.save_pretrained(output)
    return tokenizer


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine down to the final ratio."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    ratio = config.final_learning_rate_ratio
    return config.learning_rate * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(slots=True)
class _Run:
    config: TrainingConfig
    device: torch.device
    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
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
            optimizer=_build_optimizer(model, config),
            corpus=corpus,
            sampler=BatchSampler(corpus.train, config.batch_size, config.sequence_length, config.seed),
            held_out=held_out,
            teacher=teacher,
            written=written,
            written_held_out=written_held_out,
            exits=(*config.exits, config.num_layers),
        )

    def restore(self, checkpoint: Path) -> int:
        state = read_state(checkpoint)
        if state.corpus_fingerprint != self.corpus.fingerprint:
            raise ConfigError(
                f"cannot resume: the text or the tokenizer has changed since {checkpoint} was written; bring"
                " the earlier files back, or start again in another output folder"
            )
        load_tensors(checkpoint, self.model, self.optimizer)
        return state.step

    def train(self, first_step: int, progress: Progress) -> dict[str, float]:
        """The loop; returns the last metrics."""
        config = self.config
        metrics: dict[str, float] = {}
        clock = _Clock(first_step, config.batch_size * config.sequence_length)
        for step in range(first_step, config.steps):
            loss, gradient_norm = self._train_step(step)
            done = step + 1
            is_last = done == config.steps
            is_evaluated = is_last or done % config.evaluate_every == 0
            is_saved = is_last or done % config.checkpoint_every == 0
            # Only now and then, since reading a number from a GPU waits for it.
            if is_evaluated or is_saved or done % config.report_every == 0:
                metrics = {"loss": loss.item(), "gradient_norm": gradient_norm.item()}
                _require_finite(metrics, done)
                metrics["learning_rate"] = learning_rate_at(step, config)
                metrics["tokens_per_second"] = clock.tokens_per_second(done)
                if is_evaluated and self.held_out is not None:
                    metrics["held_out_loss"] = self.held_out_loss()
                if is_saved:
                    self._save(done)
                progress(done, config.steps, metrics)
        if not metrics and self.held_out is not None:  # the run had already ended
            metrics["held_out_loss"] = self.held_out_loss()
        return metrics

    def _train_step(self, step: int) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config)
        loss = self._loss(self._batch(step).to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return loss.detach(), gradient_norm

    def _batch(self, step: int) -> Tensor:
        """[batch, sequence_length + 1]; the last rows are the teacher's writing, if there is any."""
        windows = self.sampler.batch(step)
        if self.written is None:
            return windows
        num_written = round(self.config.teacher_text_share * self.config.batch_size)
        random = np.random.default_rng((self.config.seed, step, 1))
        rows = torch.from_numpy(random.integers(0, len(self.written), num_written))
        return torch.cat([windows[: len(windows) - num_written], self.written[rows]])

    def _loss(self, windows: Tensor) -> Tensor:
        """Of the text and, with a teacher, of the distance to the teacher's distribution; over all exits."""
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_logits = self.teacher(input_ids=windows[:, :-1], use_cache=False).logits
        loss = ExitLoss(self.config.exit_weight, self.config.distill_weight)
        with self._autocast():
            hidden = hidden_states_at(self.model, windows[:, :-1], self.exits)
            return loss(hidden, self.model.lm_head, windows[:, 1:], teacher_logits)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=_uses_bfloat16(self.config, self.device)
        )

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss per held-out token; of the text alone, so runs with and without a teacher compare."""
        assert self.held_out is not None
        total = 0.0
        for windows in torch.split(self.held_out, self.config.batch_size):
            on_device = windows.to(self.device)
            with self._autocast():
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

    def _save(self, step: int) -> None:
        state = RunState(step, self.config.as_dict(), self.corpus.fingerprint)
        save_checkpoint(Path(self.config.output) / "checkpoints", self.model, self.optimizer, state)


class _Clock:
    def __init__(self, first_step: int, tokens_per_step: int) -> None:
        self._step, self._time = first_step, time.perf_counter()
        self._tokens_per_step = tokens_per_step

    def tokens_per_second(self, step: int) -> float:
        """Since it was last asked."""
        now = time.perf_counter()
        speed = (step - self._step) * self._tokens_per_step / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return speed


def _require_finite(metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ModelError(
                f"{name} is {value} at step {step}; lower learning_rate or lengthen warmup_steps"
            )


def _uses_bfloat16(config: TrainingConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bfloat16"


def _build_model(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> LlamaForCausalLM:
    model_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if config.exits:
        model_config.hasten_exits = [*config.exits, config.num_layers]
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to change
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(model_config)
    if config.start_from is not None:
        source = load_like("start_from", config.start_from, config, tokenizer)
        cut(source, model, config.keep_layers, config.start_from)
    _move(model, device, torch.float32)
    model.train()
    return model


def _move(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    # transformers wraps to() in a type that mypy cannot call.
    nn.Module.to(model, device=device, dtype=dtype)


def _build_optimizer(model: LlamaForCausalLM, config: TrainingConfig) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def _export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    exported = copy.deepcopy(model)
    _move(exported, torch.device("cpu"), torch.bfloat16)
    temporary = output / "export.tmp"
    exported.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in sorted(temporary.iterdir()):
        file.replace(output / file.name)
    temporary.rmdir()


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
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
