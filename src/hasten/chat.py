"""From a conversation to the prompt of its next answer; knows the tokenizer's chat template and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as AbstractSequence
from typing import Any

from hasten.errors import ConfigError, PromptError
from hasten.files import require_characters

Message = Mapping[str, object]
"""One turn, such as {"role": "user", "content": "Hello!"}; what else it may hold is the template's affair."""

USER_STOP = "\nUser:"
"""Where an answer ends if the model goes on to write the user's next turn as well."""


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer says how a conversation is written."""
    return bool(getattr(tokenizer, "chat_template", None))


def conversation_ids(
    tokenizer: Any,
    messages: AbstractSequence[Message],
    *,
    chat_template: str | None = None,
    template_options: Mapping[str, object] | None = None,
) -> list[int]:
    """Token ids of a conversation, up to where the next answer begins.

    Args:
        chat_template: Jinja source, in place of the tokenizer's own.
        template_options: what the template or transformers' ``apply_chat_template`` knows besides, such as
            ``tools``, ``enable_thinking`` or ``continue_final_message``, which goes on with the last turn.

    Raises:
        ConfigError: there is no template.
        PromptError: there is no tokenizer, or the template refuses these messages.
    """
    if tokenizer is None:
        raise PromptError("this model was loaded without a tokenizer, so it cannot read a conversation")
    if chat_template is None and not has_template(tokenizer):
        raise ConfigError(
            "this model has no chat template, so nothing says how a conversation is written: give "
            "chat_template= (Jinja source), or write the prompt yourself and call generate"
        )
    _require_messages(messages)
    options: dict[str, object] = {"add_generation_prompt": True, **(template_options or {})}
    if options.get("continue_final_message"):
        options["add_generation_prompt"] = False
    if chat_template is not None:
        options["chat_template"] = chat_template
    text = _rendered(tokenizer, messages, options)
    require_characters(text, "the conversation")
    # The template writes the special tokens itself; the tokenizer would add them a second time.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: Any, messages: AbstractSequence[Message], options: dict[str, object]) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except (TemplateError, ValueError, TypeError, KeyError) as problem:  # whatever a template does with them
        reason = str(problem) or type(problem).__name__
        raise PromptError(f"the chat template cannot write this conversation: {reason}") from problem


def _require_messages(messages: Any) -> None:
    is_list = isinstance(messages, AbstractSequence) and not isinstance(messages, str | bytes) and messages
    if not is_list or not all(isinstance(each, Mapping) and "role" in each for each in messages):
        raise PromptError(
            f"messages={messages!r} are no conversation: give a list of dicts with role and content, such as "
            '[{"role": "user", "content": "Hello!"}]'
        )


def chat_prompt(tokenizer: Any, messages: AbstractSequence[Mapping[str, str]]) -> str | list[int]:
    """As ``conversation_ids``, and without a template a text of User: and Assistant: lines."""
    if has_template(tokenizer):
        return conversation_ids(tokenizer, messages)
    names = {"user": "User", "assistant": "Assistant"}
    lines = [f"{names[message['role']]}: {message['content'].strip()}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


def stop_strings(tokenizer: Any) -> tuple[str, ...]:
    """What ends an answer in the format of ``chat_prompt``."""
    return () if has_template(tokenizer) else (USER_STOP,)
