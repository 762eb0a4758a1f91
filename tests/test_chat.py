"""Conversations as prompts: by the tokenizer's template, or as lines."""

from __future__ import annotations

from typing import Any

from hasten.chat import chat_prompt, stop_strings


def test_chat_without_a_template(demo: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi "},
        {"role": "assistant", "content": " Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert chat_prompt(demo.tokenizer, messages) == "User: Hi\nAssistant: Hello\nUser: Bye\nAssistant:"
    assert stop_strings(demo.tokenizer) == ("\nUser:",)


def test_chat_with_a_template_adds_no_second_start_token() -> None:
    class Templated:
        chat_template = "{{ messages }}"

        def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
            assert options == {"add_generation_prompt": True, "tokenize": False}
            return "<s>" + messages[-1]["content"]

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [*([0] if add_special_tokens else []), *map(ord, text)]}

    assert chat_prompt(Templated(), [{"role": "user", "content": "a"}]) == [*map(ord, "<s>a")]
    assert stop_strings(Templated()) == ()
