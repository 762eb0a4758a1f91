"""Rows keep prompts clean, answers right and draws a function of seed and step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hasten.diffusion.list_tasks import MAX_SIZE, MIN_SIZE, TASKS, Question, is_correct
from hasten.training.data import load_corpus
from hasten.training.diffusion_recipe import DiffusionConfig
from hasten.training.diffusion_rows import MAX_PROMPT, ListRows, Rows, TextRows, list_tokenizer
from hasten.training.tokenizer import load_tokenizer


def lists(**changes: Any) -> ListRows:
    config = DiffusionConfig(subject="list-tasks", output="out", **changes)
    return ListRows(list_tokenizer(), config)


def read_back(rows: Rows) -> list[tuple[Question, str]]:
    tokenizer = list_tokenizer()
    read = []
    for token_ids, is_canvas in zip(rows.token_ids, rows.is_canvas, strict=True):
        head, _, tail = tokenizer.decode(token_ids[~is_canvas]).partition(" : ")
        task, *extras = head.split()
        index = next((int(extra) for extra in extras if extra.isdigit()), None)
        item = next((extra for extra in extras if extra.isalpha()), None)
        items = tuple(word for word in tail.split() if word not in {"-", "="})
        read.append(
            (
                Question(task, items, index, item),
                tokenizer.decode(token_ids[is_canvas], skip_special_tokens=True),
            )
        )
    return read


def test_list_rows_hold_right_answers_of_every_task() -> None:
    source = lists(batch_size=40)
    rows = source.batch(7)
    questions = read_back(rows)
    assert all(is_correct(question, text) for question, text in questions)
    assert {question.task for question, _ in questions} == set(TASKS)
    assert {len(question.prompt.split()) for question, _ in questions} <= {18, 19, MAX_PROMPT}
    assert 16 <= int(rows.is_canvas.sum(1).min()) <= 32
    # After the answer there is nothing but the end of text.
    for token_ids, is_canvas, (_, text) in zip(rows.token_ids, rows.is_canvas, questions, strict=True):
        assert (token_ids[is_canvas][len(text.split()) :] == 0).all()


def test_equal_steps_draw_equal_rows() -> None:
    source = lists()
    assert torch.equal(source.batch(3).token_ids, lists().batch(3).token_ids)
    assert not torch.equal(source.batch(3).token_ids[:, :18], source.batch(4).token_ids[:, :18])
    assert not torch.equal(source.batch(3).token_ids[:, :18], lists(seed=1).batch(3).token_ids[:, :18])


def test_lists_grow_with_the_curriculum() -> None:
    source = lists(curriculum_steps=100, batch_size=200)

    def sizes(step: int) -> set[int]:
        return {len(question.items) for question, _ in read_back(source.batch(step))}

    assert sizes(0) == {2, 3, 4}
    assert max(sizes(50)) == 9
    assert sizes(100) == sizes(500) == set(range(2, MAX_SIZE + 1))


def test_now_and_then_a_canvas_is_long_and_its_batch_small() -> None:
    source = lists(long_canvas_lengths=[512], long_canvas_every=5, batch_size=60, canvas_lengths=[20, 20])
    shapes = [tuple(source.batch(step).token_ids.shape) for step in range(10)]
    assert shapes[4] == shapes[9] == (len(TASKS), MAX_PROMPT + 512)
    assert all(shape == (60, MAX_PROMPT + 20) for shape in shapes[:4])


def test_held_out_lists_have_the_usual_sizes_and_never_change() -> None:
    source = lists(num_held_out_windows=70, batch_size=32)
    parts = source.held_out()
    assert [len(part.token_ids) for part in parts] == [32, 32, 6]
    asked = [question for part in parts for question, _ in read_back(part)]
    assert {len(question.items) for question in asked} == set(range(MIN_SIZE, MAX_SIZE + 1))
    assert torch.equal(source.held_out()[1].token_ids, parts[1].token_ids)
    assert lists(held_out_fraction=0.0).held_out() == []


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("demo")


def texts(folder: Path, tokenizer: PreTrainedTokenizerFast, document: str, **changes: Any) -> TextRows:
    (folder / "text.txt").write_text(
        "<|endoftext|>".join(f"{document} {i}" for i in range(60)), encoding="utf-8"
    )
    config = DiffusionConfig(
        files=("text.txt",), tokenizer="demo", output="out", sequence_length=24, batch_size=64, **changes
    )
    corpus = load_corpus([folder / "text.txt"], tokenizer, config.held_out_fraction, folder)
    return TextRows(corpus, tokenizer, config)


def test_prompts_before_an_answer_stay_clean(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    document = "User: How many?\nAssistant: Seven of them, and one more."
    source = texts(tmp_path, tokenizer, document, prompt_share=1.0, held_out_fraction=0.0)
    rows = source.batch(0)
    assert rows.token_ids.shape == (64, 24)
    prompts = 0
    for token_ids, is_canvas in zip(rows.token_ids, rows.is_canvas, strict=True):
        text = tokenizer.decode(token_ids)
        assert is_canvas.any()
        if text.partition("\nAssistant:")[2]:
            clean = tokenizer.decode(token_ids[~is_canvas])
            assert clean.endswith("\nAssistant:")
            assert clean.count("\nAssistant:") == 1
            prompts += 1
        else:
            assert is_canvas.all()
    assert prompts > 32
    assert texts(tmp_path, tokenizer, document, prompt_share=0.0).batch(0).is_canvas.all()
    some = texts(tmp_path, tokenizer, document, prompt_share=0.5).batch(0).is_canvas
    assert 0.25 < (~some).any(1).float().mean() < 0.75


def test_a_teacher_is_asked_with_the_first_half_where_there_is_no_turn(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    document = "The cat sat on the mat and the dog sat on the cat all day."
    source = texts(tmp_path, tokenizer, document, held_out_fraction=0.1)
    asked = source.prompts(5)
    assert asked.token_ids.shape == (5, 24)
    assert torch.equal(asked.is_canvas, (torch.arange(24) >= 12).expand(5, 24))
    assert all(part.is_canvas.all() for part in source.held_out())
