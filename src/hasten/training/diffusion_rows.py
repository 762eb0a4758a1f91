"""Rows of tokens for the training of masked-diffusion models: what stays clean and what may be masked.

Every batch is a function of the seed and its step. Knows text and list tasks; knows no model and no noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hasten.diffusion.list_tasks import MIN_SIZE, TASKS, WORDS
from hasten.training.data import BatchSampler, Corpus, held_out_windows
from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.tokenizer import END_OF_TEXT, MASK, PAD, text_encoder

_UNKNOWN = "<|unknown|>"
_TURN = "\nAssistant:"
_FIRST_SIZE = 4


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Clean tokens: a prompt, and the canvas after it, which may be masked."""

    token_ids: Tensor  # int64 [rows, length]
    is_canvas: Tensor  # bool [rows, length]

    def to(self, device: torch.device) -> Rows:
        return Rows(self.token_ids.to(device), self.is_canvas.to(device))


class RowSource(Protocol):
    """What a run learns from."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokens_per_step(self) -> int: ...

    def batch(self, step: int) -> Rows: ...

    def prompts(self, num_rows: int) -> Rows:
        """Rows whose canvas is to be written; its tokens mean nothing."""
        ...

    def held_out(self) -> list[Rows]:
        """Batches that no step sees; empty where nothing is held out."""
        ...


class TextRows:
    """Windows of a corpus. Some that hold an Assistant's turn keep the prompt before its first one clean."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, config: DiffusionConfig) -> None:
        self._config = config
        self._corpus = corpus
        # A sampler gives one token more than asked for, as causal training needs it.
        self._length = config.sequence_length - 1
        self._sampler = BatchSampler(corpus.train, config.batch_size, self._length, config.seed)
        self._turn = torch.tensor(text_encoder(tokenizer).encode(_TURN, add_special_tokens=False).ids)
        self.tokens_per_step = config.batch_size * config.sequence_length
        self.fingerprint = corpus.fingerprint

    def batch(self, step: int) -> Rows:
        token_ids = self._sampler.batch(step)
        random = np.random.default_rng((self._config.seed, step, 1))
        keeps_prompt = torch.from_numpy(random.random(len(token_ids)) < self._config.prompt_share)
        return Rows(token_ids, ~self._before_answers(token_ids) | ~keeps_prompt[:, None])

    def prompts(self, num_rows: int) -> Rows:
        """Windows up to the Assistant's turn, or up to their middle where they have none."""
        config = self._config
        random = np.random.default_rng((config.seed, num_rows, 5))
        token_ids = BatchSampler(
            self._corpus.train, num_rows, self._length, int(random.integers(2**62))
        ).batch(0)
        is_prompt = self._before_answers(token_ids)
        is_prompt[~is_prompt.any(1), : token_ids.shape[1] // 2] = True
        return Rows(token_ids, ~is_prompt)

    def held_out(self) -> list[Rows]:
        config = self._config
        if config.held_out_fraction == 0:
            return []
        windows = held_out_windows(self._corpus.held_out, self._length, config.num_held_out_windows)
        return [
            Rows(part, torch.ones_like(part, dtype=torch.bool))
            for part in torch.split(windows, config.batch_size)
        ]

    def _before_answers(self, token_ids: Tensor) -> Tensor:
        """bool [rows, length]: all up to the first turn of the Assistant; nothing where there is none."""
        is_turn = (token_ids.unfold(1, len(self._turn), 1) == self._turn).all(-1)
        ends = is_turn.long().argmax(1) + len(self._turn)
        is_before = torch.arange(token_ids.shape[1]) < ends[:, None]
        # A window that ends with the turn would have no canvas.
        has_answer = is_turn.any(1) & (ends < token_ids.shape[1])
        return is_before & has_answer[:, None]


class ListRows:
    """Questions about lists, equally many of each task, one right answer to each, then end-of-text tokens.

    All rows of a batch have one length; where its prompts differ, the shorter have a longer canvas.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: DiffusionConfig) -> None:
        self._config = config
        self._ids = tokenizer.get_vocab()
        self._end = int(tokenizer.eos_token_id)
        self.tokens_per_step = config.batch_size * (MAX_PROMPT + sum(config.canvas_lengths) // 2)
        self.fingerprint = hashlib.blake2b(" ".join(WORDS).encode(), digest_size=12).hexdigest()

    def batch(self, step: int) -> Rows:
        config = self._config
        random = np.random.default_rng((config.seed, step, 1))
        largest = self._largest(step)
        canvas = int(random.integers(config.canvas_lengths[0], config.canvas_lengths[1] + 1))
        num_rows = config.batch_size
        if config.long_canvas_lengths and step % config.long_canvas_every == config.long_canvas_every - 1:
            canvas = int(random.choice(config.long_canvas_lengths))
            # About as many tokens as other batches, but each task once at least.
            num_rows = max(len(TASKS), self.tokens_per_step // (MAX_PROMPT + canvas))
        sizes = random.integers(config.min_size, largest + 1, num_rows)
        return self._rows(sizes, canvas, random)

    def prompts(self, num_rows: int) -> Rows:
        config = self._config
        random = np.random.default_rng((config.seed, num_rows, 5))
        sizes = random.integers(config.min_size, config.max_size + 1, num_rows)
        return self._rows(sizes, config.canvas_lengths[1], random)

    def held_out(self) -> list[Rows]:
        """Fixed questions from another stream of draws, about lists of the usual sizes."""
        config = self._config
        if config.held_out_fraction == 0:
            return []
        random = np.random.default_rng((config.seed, 2))
        sizes = random.integers(
            min(MIN_SIZE, config.max_size), config.max_size + 1, config.num_held_out_windows
        )
        return [
            self._rows(part, config.canvas_lengths[1], random)
            for part in np.split(sizes, range(config.batch_size, len(sizes), config.batch_size))
        ]

    def _largest(self, step: int) -> int:
        config = self._config
        first = max(config.min_size, min(_FIRST_SIZE, config.max_size))
        done = min(1.0, step / config.curriculum_steps) if config.curriculum_steps else 1.0
        return first + int(done * (config.max_size - first))

    def _rows(self, sizes: NDArray[np.int64], canvas: int, random: np.random.Generator) -> Rows:
        tasks = list(TASKS.values())
        prompts, answers = [], []
        for number, size in enumerate(sizes):
            task = tasks[number % len(tasks)]
            question = task.question(int(size), random)
            prompts.append(self.encode(question.prompt.split()))
            answers.append(self.encode(task.answer(question, random)))
        return rows_of(prompts, answers, canvas, self._end)

    def encode(self, words: Sequence[str]) -> list[int]:
        return [self._ids[word] for word in words]


MAX_PROMPT = 20
"""Tokens of the longest question about a list."""


def rows_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], canvas: int, end: int
) -> Rows:
    """Rows of prompt, answer and end tokens; the longest prompt has `canvas` positions after it."""
    length = max(map(len, prompts)) + canvas
    token_ids = torch.full((len(prompts), length), end)
    is_canvas = torch.ones(len(prompts), length, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        written = [*prompt, *answer][:length]
        token_ids[row, : len(written)] = torch.tensor(written)
        is_canvas[row, : len(prompt)] = False
    return Rows(token_ids, is_canvas)


def list_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the list tasks; ids 0, 1 and 2 are the end of text, the mask and padding."""
    words = [END_OF_TEXT, MASK, PAD, _UNKNOWN, *WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_TEXT, MASK, PAD])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        mask_token=MASK,
        pad_token=PAD,
        unk_token=_UNKNOWN,
    )
