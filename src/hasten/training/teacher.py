"""Loads the model that another learns from or is cut from, and lets it write text to train on.

Knows models and token ids; knows no losses. A draft model is used on what its target writes, so one that has
also trained on such text agrees more often (DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from hasten.errors import ConfigError, IncompatibleModels, ModelError
from hasten.files import write_whole
from hasten.models.weights import load_weights
from hasten.training.data import Corpus, TokenArray
from hasten.training.recipe import RunConfig, TrainingConfig
from hasten.training.tokenizer import load_tokenizer, resolve_model

_ROWS_AT_ONCE = 128


def load_like(
    option: str, name: str, config: RunConfig, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """The model that `option` names, in float32 on the CPU; its tokens must be those of `tokenizer`."""
    vocabulary, its_vocabulary = tokenizer.get_vocab(), load_tokenizer(name).get_vocab()
    if vocabulary != its_vocabulary:
        raise IncompatibleModels(
            f"{option}={name!r} has a tokenizer of {len(its_vocabulary)} tokens"
            f" that is not the student's of {len(vocabulary)}; train with tokenizer={name!r}"
        )
    try:
        model: PreTrainedModel = load_weights(AutoModelForCausalLM, resolve_model(name), dtype=torch.float32)
    except (ModelError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{option}={name!r} cannot be loaded: {error}") from error
    # A model's output may be padded beyond its tokenizer, which is cut off; less than it has no meaning.
    if model.config.get_text_config().vocab_size < len(tokenizer):
        raise IncompatibleModels(f"{option}={name!r} has fewer outputs than its tokenizer tokens")
    max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if max_length is not None and max_length < config.sequence_length:
        raise ConfigError(
            f"sequence_length={config.sequence_length} is above {option}={name!r}'s limit of {max_length}"
        )
    return model


def load_teacher(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> PreTrainedModel | None:
    """The model of distill_from, ready to be asked, or None where nothing is learnt from it."""
    if config.distill_from is None or config.distill_weight == 0:
        return None
    teacher = load_like("distill_from", config.distill_from, config, tokenizer)
    nn.Module.to(teacher, device=device)  # transformers wraps to() in a type mypy cannot call
    teacher.train(False)
    return teacher


def teacher_rows(
    teacher: PreTrainedModel, corpus: Corpus, config: TrainingConfig, vocab_size: int, folder: Path
) -> tuple[Tensor, Tensor]:
    """What the teacher writes: rows to train on and rows held out, both [rows, sequence_length + 1].

    Each row starts with `teacher_prompt_length` tokens of the text, from its own side of the split. Even
    training rows and all held-out rows go on greedily, odd training rows with draws at temperature 1. The
    rows are kept in `folder`, so a run that is resumed trains on the same.
    """
    length = config.sequence_length + 1
    num_rows = math.ceil(config.teacher_text_tokens / (length - config.teacher_prompt_length))
    num_held_out = config.num_held_out_windows if config.held_out_fraction > 0 else 0
    options = (config.distill_from, config.teacher_prompt_length, length, num_rows, num_held_out, config.seed)
    wanted = f"{corpus.fingerprint} {options}"
    path = folder / "teacher-rows.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["wanted"]) == wanted:
                return torch.from_numpy(stored["train"]).long(), torch.from_numpy(stored["held_out"]).long()
    writer = _Writer(teacher, vocab_size, torch.Generator().manual_seed(config.seed))
    train = writer.write(_prompts(corpus.train, num_rows, config), length, greedy_every=2)
    held_out = torch.empty(0, length, dtype=torch.long)
    if num_held_out:
        held_out = writer.write(_prompts(corpus.held_out, num_held_out, config), length, greedy_every=1)
    as_stored = {"train": train.numpy().astype(np.int32), "held_out": held_out.numpy().astype(np.int32)}

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, wanted=np.array(wanted), **as_stored)

    write_whole(path, write, "teacher's texts")
    return train, held_out


def _prompts(token_ids: TokenArray, num_rows: int, config: TrainingConfig) -> Tensor:
    """[rows, teacher_prompt_length], from random places of the text."""
    length = config.teacher_prompt_length
    if len(token_ids) < length:
        raise ConfigError(
            f"teacher_prompt_length={length} cannot work with {len(token_ids)} tokens of text on one side of"
            " the split; it must be smaller"
        )
    starts = np.random.default_rng((config.seed, num_rows)).integers(0, len(token_ids) - length + 1, num_rows)
    return torch.from_numpy(token_ids[starts[:, None] + np.arange(length)].astype(np.int64))


@dataclass(frozen=True, slots=True)
class _Writer:
    teacher: PreTrainedModel
    vocab_size: int
    random: torch.Generator  # of the CPU, so that the device does not change the draws

    def write(self, prompts: Tensor, length: int, greedy_every: int) -> Tensor:
        """[rows, length]; every so many rows greedily, the others drawn."""
        is_greedy = (torch.arange(len(prompts)) % greedy_every == 0)[:, None]
        parts = zip(torch.split(prompts, _ROWS_AT_ONCE), torch.split(is_greedy, _ROWS_AT_ONCE), strict=True)
        return torch.cat([self._continue(*part, length) for part in parts])

    @torch.inference_mode()
    def _continue(self, prompts: Tensor, is_greedy: Tensor, length: int) -> Tensor:
        cache = DynamicCache(config=self.teacher.config)
        columns = [prompts]
        for _ in range(length - prompts.shape[1]):
            given = columns[-1].to(self.teacher.device)
            output = self.teacher(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1, : self.vocab_size].float().cpu()
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=self.random)
            columns.append(torch.where(is_greedy, logits.argmax(-1, keepdim=True), drawn))
        return torch.cat(columns, 1)
