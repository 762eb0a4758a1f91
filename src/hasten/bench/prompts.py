"""Reads prompt files in the formats the field uses; runs no model."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from hasten.errors import ConfigError, PromptError
from hasten.files import read_json_lines

BUNDLED_PROMPTS: tuple[str, ...] = ("demo", "repeat", "base", "chat")
"""Names that stand for a file of this package."""

_RANDOM_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one line of a prompts file asks.

    ``turns`` are the user's; a chat formats them as such, otherwise the only turn is the prompt as it is.
    ``token_ids`` stands in their place where a prompt has no text.
    """

    turns: tuple[str, ...]
    is_chat: bool
    domain: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All conversations of one file."""

    name: str
    conversations: tuple[Conversation, ...]


def load_prompt_set(source: str, vocab_size: int) -> PromptSet:
    """The prompts of a .jsonl file, of a bundled name, or of ``random:N`` (N prompts of random token ids).

    A line is an object with ``turns`` (Spec-Bench, MT-Bench), ``prompt`` (HumanEval, or anything),
    ``question`` (GSM8K) or ``instruction`` (self-instruct, with its input).

    Raises PromptError with the line number for what cannot be read.
    """
    if source.startswith("random:"):
        return _random_prompts(source, vocab_size)
    path = Path(source)
    if source in BUNDLED_PROMPTS and not path.exists():
        path = Path(str(files("hasten.bench") / "prompts" / f"{source}.jsonl"))
    if not path.exists():
        raise PromptError(
            f"cannot read prompts from {source!r} (no such file); give a .jsonl file, "
            f"{', '.join(BUNDLED_PROMPTS)}, or random:N"
        )
    conversations = [_conversation(row, place) for place, row in read_json_lines(path)]
    if not conversations:
        raise PromptError(f"{source} holds no prompts; write one JSON object a line")
    return PromptSet(path.stem, tuple(conversations))


def load_prompt_sets(sources: AbstractSequence[str], vocab_size: int) -> list[PromptSet]:
    """Several at once. Raises PromptError as ``load_prompt_set``, ConfigError if two have the same name."""
    sets = [load_prompt_set(source, vocab_size) for source in sources]
    names = [prompt_set.name for prompt_set in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"prompt sets {', '.join(names)} cannot be told apart; rename one of the files")
    return sets


def spread(conversations: AbstractSequence[Conversation], limit: int | None) -> list[Conversation]:
    """``limit`` of them, spread evenly over all: files are often sorted by topic."""
    if limit is None or limit >= len(conversations):
        return list(conversations)
    return [conversations[index * len(conversations) // limit] for index in range(limit)]


def batches(conversations: AbstractSequence[Conversation], size: int) -> list[list[Conversation]]:
    """All of them in full batches; where they do not fill the last one, the first ones come again."""
    filled = [*conversations, *islice(cycle(conversations), -len(conversations) % size)]
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def _random_prompts(source: str, vocab_size: int) -> PromptSet:
    count = source.removeprefix("random:")
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(
            f"prompts {source!r} cannot work; write random:N with N at least 1, as in random:16"
        )
    token_ids = np.random.default_rng(0).integers(0, vocab_size, (int(count), _RANDOM_LENGTH)).tolist()
    return PromptSet("random", tuple(Conversation((), False, "random", tuple(row)) for row in token_ids))


def _conversation(row: Any, place: str) -> Conversation:
    if not isinstance(row, dict):
        raise PromptError(f"{place}: {type(row).__name__} is not an object; write one JSON object a line")
    turns, is_chat = _turns(row, place)
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise PromptError(f"{place}: every prompt must be a text that is not empty")
    return Conversation(turns, is_chat, str(row.get("domain") or row.get("category") or ""))


def _turns(row: dict[str, Any], place: str) -> tuple[tuple[Any, ...], bool]:
    if isinstance(row.get("turns"), list):
        return tuple(row["turns"]), True
    if "prompt" in row:
        return (row["prompt"],), False
    if "question" in row:
        return (row["question"],), True
    if "instruction" in row:
        extra = row.get("input") or next((case.get("input") for case in row.get("instances", [])), "")
        return (f"{row['instruction']}\n\n{extra}" if extra else row["instruction"],), True
    raise PromptError(f"{place}: none of turns, prompt, question and instruction is there")
