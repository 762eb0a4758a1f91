"""Conversations as prompts: by the tokenizer's template, or as lines."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from hasten.chat import chat_prompt, conversation_ids, stop_strings
from hasten.core import SamplingParams
from hasten.errors import ConfigError, PromptError
from hasten.text.engine import LanguageModel

CHATML = (
    "{{ bos_token }}{% if tools %}<|tools|>{{ tools | length }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + CHATML
TURNS = [
    {"role": "user", "content": "Hello, what is your name?"},
    {"role": "assistant", "content": "I am Tom."},
    {"role": "user", "content": "How old are you?"},
]


@pytest.fixture(scope="module")
def talker(demo: LanguageModel) -> LanguageModel:
    """The demo model with a template that writes the start token, and a tokenizer that does so too."""
    tokenizer = copy.deepcopy(demo.tokenizer)
    name, start = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, start)]
    )
    tokenizer.chat_template = CHATML
    assert tokenizer("a")["input_ids"][0] == start
    return LanguageModel(demo.target, tokenizer, drafter="off")


PARAMS = SamplingParams(max_new_tokens=12)


def test_a_conversation_has_the_tokens_of_transformers(talker: LanguageModel) -> None:
    expected = talker.tokenizer.apply_chat_template(
        TURNS, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    found = talker.chat_prompt(TURNS)
    assert found == expected
    assert found.count(talker.tokenizer.bos_token_id) == 1
    goes_on = talker.chat_prompt(TURNS[:2], template_options={"continue_final_message": True})
    assert goes_on == talker.tokenizer.apply_chat_template(
        TURNS[:2], continue_final_message=True, tokenize=True, return_dict=False
    )
    assert talker.tokenizer.decode(goes_on).endswith("I am Tom.")
    tools = talker.chat_prompt(TURNS, template_options={"tools": [{"type": "function"}]})
    assert "<|tools|>1" in talker.tokenizer.decode(tools)


def test_chat_writes_what_generate_writes_after_the_template(talker: LanguageModel) -> None:
    expected = talker.generate(talker.chat_prompt(TURNS), PARAMS)
    assert talker.chat(TURNS, PARAMS, drafter="suffix", num_draft_tokens=4).token_ids == expected.token_ids
    pieces = list(talker.stream_chat(TURNS, PARAMS, drafter="suffix"))
    assert pieces[-1].output is not None
    assert pieces[-1].output.text == "".join(piece.text for piece in pieces) == expected.text


def test_a_template_of_the_caller(demo: LanguageModel, talker: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"no chat template.*chat_template="):
        demo.chat(TURNS)
    own = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    ids = demo.chat_prompt(TURNS, chat_template=own)
    assert demo.tokenizer.decode(ids) == "".join(f"[{turn['content']}]" for turn in TURNS)
    assert demo.chat(TURNS, PARAMS, chat_template=own).prompt_ids == ids
    assert talker.chat_prompt(TURNS, chat_template=own) == ids


def test_what_is_no_conversation_is_refused(talker: LanguageModel) -> None:
    for wrong in ([], "Hello!", [{"content": "Hello!"}], ["Hello!"], {"role": "user", "content": "Hello!"}):
        with pytest.raises(PromptError, match="no conversation"):
            talker.chat(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        PromptError, match="the chat template cannot write this conversation: the user begins"
    ):
        talker.chat_prompt(TURNS[1:], chat_template=STRICT)
    with pytest.raises(PromptError, match="cannot write this conversation"):
        talker.chat_prompt(TURNS, chat_template="{% for %}")
    with pytest.raises(PromptError, match="without a tokenizer"):
        conversation_ids(None, TURNS)
    with pytest.raises(ConfigError, match=r"n=2 cannot be written for a single prompt"):
        talker.chat(TURNS, SamplingParams(n=2))


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
