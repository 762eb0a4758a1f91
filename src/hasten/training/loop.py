"""The loop of every training run: steps, learning rate, checkpoints, metrics and the exported folder.

Knows how a run goes on, not what is learnt: the loss of a step comes from the caller.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hasten.errors import ConfigError, ModelError
from hasten.files import writing
from hasten.training.checkpoints import RunState, latest_checkpoint, load_tensors, read_state, save_checkpoint
from hasten.training.data import read_documents
from hasten.training.recipe import RunConfig
from hasten.training.tokenizer import load_tokenizer, train_tokenizer

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, number of steps, metrics): loss, learning_rate, gradient_norm, tokens_per_second (pauses
for tests and checkpoints included) and, where it was measured, held_out_loss"""


def find_start(config: RunConfig, output: Path) -> Path | None:
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


def prepare_tokenizer(
    config: RunConfig, files: Iterable[Path], output: Path, *, is_resumed: bool
) -> PreTrainedTokenizerFast:
    """The recipe's tokenizer, or one trained on the files and kept in `output`."""
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if is_resumed:
        return load_tokenizer(str(output))
    assert config.vocab_size is not None
    documents = (document for path in files for document in read_documents(path))
    tokenizer = train_tokenizer(documents, config.vocab_size)
    tokenizer.save_pretrained(output)
    return tokenizer


def learning_rate_at(step: int, config: RunConfig) -> float:
    """Linear warm-up, then half a cosine down to the final ratio."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    ratio = config.final_learning_rate_ratio
    return config.learning_rate * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(slots=True, kw_only=True)
class Loop:
    """One run: a model that follows the gradient of `loss`."""

    config: RunConfig
    device: torch.device
    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    fingerprint: str
    """of what the steps are drawn from; a checkpoint of another one is refused"""
    tokens_per_step: int
    loss: Callable[[int], Tensor]
    """of the step of that number, a function of it and the seed alone"""
    held_out_loss: Callable[[], float] | None

    def restore(self, checkpoint: Path) -> int:
        """Loads what a checkpoint holds; returns the steps it has done."""
        state = read_state(checkpoint)
        if state.corpus_fingerprint != self.fingerprint:
            raise ConfigError(
                f"cannot resume: the text or the tokenizer has changed since {checkpoint} was written; bring"
                " the earlier files back, or start again in another output folder"
            )
        load_tensors(checkpoint, self.model, self.optimizer)
        return state.step

    def train(self, first_step: int, progress: Progress | None) -> dict[str, float]:
        """Goes through the steps; returns the last metrics. Raises ModelError where the loss is no number."""
        config = self.config
        metrics: dict[str, float] = {}
        clock = _Clock(first_step, self.tokens_per_step)
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
                if is_evaluated and self.held_out_loss is not None:
                    metrics["held_out_loss"] = self.held_out_loss()
                if is_saved:
                    self._save(done)
                if progress is not None:
                    progress(done, config.steps, metrics)
        if not metrics and self.held_out_loss is not None:  # the run had already ended
            metrics["held_out_loss"] = self.held_out_loss()
        return metrics

    def _train_step(self, step: int) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config)
        loss = self.loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return loss.detach(), gradient_norm

    def _save(self, step: int) -> None:
        state = RunState(step, self.config.as_dict(), self.fingerprint)
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


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The recipe's precision for the passes of one step."""
    if config.precision == "auto":
        is_used = device.type == "cuda" and torch.cuda.is_bf16_supported()
    else:
        is_used = config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=is_used)


def llama_config(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The shape that the recipe asks for."""
    return LlamaConfig(
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


def new_model(shape: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A model with random weights; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)


def move(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    # transformers wraps to() in a type that mypy cannot call.
    nn.Module.to(model, device=device, dtype=dtype)


def build_optimizer(model: LlamaForCausalLM, config: RunConfig) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes the model in bfloat16 and its tokenizer, whole or not at all. Raises WriteError."""
    exported = copy.deepcopy(model)
    move(exported, torch.device("cpu"), torch.bfloat16)
    temporary = output / "export.tmp"
    with writing(output, "model"):
        try:
            exported.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for file in sorted(temporary.iterdir()):
                file.replace(output / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}
