"""Prompts from the files that ``--file`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.errors import PromptError
from hasten.files import read_text


def read_prompts(path: Path, tokenizer: Any, vocab_size: int) -> list[Any]:
    """The prompts of a .jsonl as for bench; any other file is one prompt. Raises PromptError."""
    if path.suffix != ".jsonl":
        return [read_text(path)]
    from hasten.bench.prompts import load_prompt_set
    from hasten.chat import chat_prompt

    prompts: list[Any] = []
    for conversation in load_prompt_set(str(path), vocab_size).conversations:
        if len(conversation.turns) > 1:
            raise PromptError(
                f"{path} has a conversation of {len(conversation.turns)} turns; generate answers single "
                "prompts, bench and chat several turns"
            )
        text = conversation.turns[0]
        user = [{"role": "user", "content": text}]
        prompts.append(chat_prompt(tokenizer, user) if conversation.is_chat else text)
    return prompts
