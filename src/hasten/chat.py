"""From a conversation to the prompt of its next answer; knows the tokenizer's chat template and no model."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Any

from hasten.files import require_characters

USER_STOP = "\nUser:"
"""Where an answer ends if the model goes on to write the user's next turn as well."""


def chat_prompt(tokenizer: Any, messages: AbstractSequence[dict[str, str]]) -> str | list[int]:
    """The prompt for the assistant's next answer, by the tokenizer's chat template where it has one."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        require_characters(text, "the conversation")
        # The template writes the special tokens itself; the tokenizer would add them a second time.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    names = {"user": "User", "assistant": "Assistant"}
    lines = [f"{names[message['role']]}: {message['content'].strip()}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


def stop_strings(tokenizer: Any) -> tuple[str, ...]:
    """What ends an answer in the format of ``chat_prompt``."""
    return () if getattr(tokenizer, "chat_template", None) else (USER_STOP,)
