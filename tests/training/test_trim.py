"""Which tokens are kept: the most frequent ones of the texts, said with what that covers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

import hasten
from hasten.cli import app
from hasten.errors import ConfigError
from hasten.models.draft.trimmed_vocabulary import TRIM_FILE, load_kept_ids
from hasten.models.loading import load_pretrained, load_tokenizer
from hasten.models.vocabulary import vocabulary_fingerprint
from hasten.training.trim import count_tokens, most_frequent, trim_vocabulary


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_counts_hold_every_text_and_its_end():
    texts = [np.array([3, 3, 5], np.int32), np.array([], np.int32), np.array([5], np.int32)]
    assert count_tokens(texts, 7, 0).tolist() == [2, 0, 0, 2, 0, 2, 0]
    assert count_tokens(texts, 7, None).tolist() == [0, 0, 0, 2, 0, 2, 0]


def test_the_most_frequent_are_kept_and_earlier_ids_win_ties():
    assert most_frequent(np.array([0, 4, 9, 4, 4]), 3).tolist() == [1, 2, 3]
    assert most_frequent(np.array([0, 4, 9, 4, 4]), 1).tolist() == [2]
    assert most_frequent(np.array([0, 0, 0]), 3).tolist() == [0, 1, 2]


def test_a_file_says_what_it_covers(tmp_path: Path):
    tokenizer = load_tokenizer("demo-draft")
    lines = ["I want to book a table.", "I want to book a flight.", "zebra"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    ids = [token for line in lines for token in tokenizer.encode(line)] + [tokenizer.eos_token_id] * 3
    made = trim_vocabulary(tokenizer, [tmp_path / "texts.jsonl"], 7, tmp_path / "deep" / "kept")
    assert made.num_tokens == len(ids)
    assert len(made.kept_ids) == 7
    assert made.coverage == pytest.approx(np.isin(ids, made.kept_ids).mean())
    assert min(ids.count(each) for each in made.kept_ids) >= max(
        ids.count(each) for each in set(ids) - set(made.kept_ids.tolist())
    )
    fingerprint = vocabulary_fingerprint(tokenizer, 0)
    assert load_kept_ids(tmp_path / "deep" / "kept", fingerprint).tolist() == made.kept_ids.tolist()
    with safe_open(tmp_path / "deep" / "kept", framework="numpy") as file:
        assert float(file.metadata()["coverage"]) == pytest.approx(made.coverage, abs=1e-6)


@pytest.mark.parametrize("keep", [0, 8193])
def test_a_number_that_cannot_be_kept_is_refused(tmp_path: Path, keep: int):
    with pytest.raises(ConfigError, match=rf"keep={keep} .* 8192"):
        trim_vocabulary(load_tokenizer("demo-draft"), [tmp_path], keep, tmp_path / "kept")


def test_texts_that_hold_nothing_are_refused(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match="hold no text"):
        trim_vocabulary(load_tokenizer("demo-draft"), [tmp_path], 5, tmp_path / "kept")


def test_the_command_writes_beside_a_local_draft_which_then_uses_it(tmp_path: Path):
    model, tokenizer = load_pretrained("demo-draft", "auto", "cpu")
    folder = tmp_path / "my draft"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.txt").write_text("book a table " * 5)
    (tmp_path / "b.txt").write_text("and a chair " * 5)
    files = ["--data", tmp_path / "a.txt", "--data", tmp_path / "b.txt"]
    result = run("train", "trim", folder, *files, "--keep", 6)
    assert result.exit_code == 0, result.output
    assert (folder / TRIM_FILE).is_file()
    assert f"--draft '{folder}'" in result.stdout
    lm = hasten.load("demo", draft=folder, drafter="off", device="cpu")
    assert lm.resources.draft is not None
    kept = tokenizer.convert_ids_to_tokens(lm.resources.draft.head_ids.tolist())
    assert {"Ġtable", "Ġa", "Ġand"} <= set(kept)


def test_mistakes(tmp_path: Path):
    (tmp_path / "a.txt").write_text("book a table")
    for arguments, part in (
        (["demo-draft", "--data", tmp_path / "a.txt"], "give --output FILE"),
        (["demo-draft", "--data", tmp_path / "no.txt", "-o", tmp_path / "k"], "no.txt"),
        (["demo-draft", "--data", tmp_path / "a.txt", "--keep", 0, "-o", tmp_path / "k"], "keep=0"),
        (["demo-draft", "--data", tmp_path / "a.txt", "-o", "/dev/null/k"], "cannot write"),
        (["./nothing", "--data", tmp_path / "a.txt", "-o", tmp_path / "k"], "no model at"),
    ):
        result = run("train", "trim", *arguments)
        assert result.exit_code == (1 if part == "cannot write" else 2), result.output
        assert part in result.stderr
