"""Prompt files: every format, every mistake with its line, the spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import shared_file
from hasten.bench.prompts import BUNDLED_PROMPTS, Conversation, load_prompt_set, spread
from hasten.errors import ConfigError, PromptError


def write_lines(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "turns", "is_chat"),
    [
        ({"turns": ["a", "b"], "category": "writing"}, ("a", "b"), True),
        ({"task_id": "HumanEval/0", "prompt": "def f():\n"}, ("def f():\n",), False),
        ({"question": "How many?", "answer": "3"}, ("How many?",), True),
        ({"instruction": "Sum", "instances": [{"input": "1 2", "output": "3"}]}, ("Sum\n\n1 2",), True),
        ({"instruction": "Sing", "instances": [{"input": "", "output": "la"}]}, ("Sing",), True),
        ({"instruction": "Sum", "input": "4 5"}, ("Sum\n\n4 5",), True),
        ({"instruction": "Sing", "instances": []}, ("Sing",), True),
    ],
)
def test_formats(tmp_path: Path, row: dict[str, Any], turns: tuple[str, ...], is_chat: bool) -> None:
    found = load_prompt_set(write_lines(tmp_path / "some.jsonl", row), 100)
    assert found.name == "some"
    assert found.conversations[0].turns == turns
    assert found.conversations[0].is_chat is is_chat


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2 is not JSON"),
        ("[1]", ":2: list is not an object"),
        ('{"answer": 4}', ":2: none of turns"),
        ('{"prompt": ""}', ":2: every prompt"),
        ('{"prompt": 7}', ":2: every prompt"),
        ('{"turns": []}', ":2: every prompt"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        load_prompt_set(str(path), 100)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"cannot read prompts|not UTF-8"):
        load_prompt_set(str(tmp_path / "nothing.jsonl"), 100)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match="holds no prompts"):
        load_prompt_set(str(tmp_path / "empty.jsonl"), 100)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match=r"cannot read prompts|not UTF-8"):
        load_prompt_set(str(tmp_path / "binary.jsonl"), 100)


def test_random_prompts_are_the_same_every_time() -> None:
    first, again = load_prompt_set("random:3", 50), load_prompt_set("random:3", 50)
    assert first == again
    assert len(first.conversations) == 3
    assert all(0 <= token < 50 for one in first.conversations for token in one.token_ids)
    for wrong in ("random:0", "random:x", "random:"):
        with pytest.raises(ConfigError, match="random:N"):
            load_prompt_set(wrong, 50)


def test_spread_reaches_over_the_whole_file() -> None:
    rows = [Conversation((str(number),), False) for number in range(10)]
    assert [row.turns[0] for row in spread(rows, 5)] == ["0", "2", "4", "6", "8"]
    assert [row.turns[0] for row in spread(rows, 3)] == ["0", "3", "6"]
    assert spread(rows, 99) == spread(rows, None) == rows


@pytest.mark.parametrize("name", BUNDLED_PROMPTS)
def test_bundled_prompts_have_domains(name: str) -> None:
    conversations = load_prompt_set(name, 100).conversations
    assert len(conversations) >= 6
    assert all(one.domain for one in conversations)


@pytest.mark.parametrize(
    "name",
    ["gsm8k_test_400", "humaneval", "mt_redundant", "mt_bench", "spec_bench_half", "self_instruct_seed"],
)
def test_real_files(name: str) -> None:
    found = load_prompt_set(str(shared_file("data", "prompts", f"{name}.jsonl")), 100)
    assert len(found.conversations) >= 80
