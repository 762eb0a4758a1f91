"""Any console: one that lacks characters, a pipe that is closed early, a full disk."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from hasten.cli import main
from hasten.drafters.store import save_store


class Learnt:
    name = "suffix"

    def state(self):
        import numpy as np

        return {"token_ids": np.arange(3), "offsets": np.array([0, 3])}


@pytest.fixture
def run(monkeypatch):
    """Runs the program with a stdout of its own; gives the exit code and what stderr got."""

    def start(stdout, *arguments):
        errors = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "argv", ["hasten", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as ended:
            main()
        if not isinstance(stdout.buffer, io.BytesIO):
            stdout.close()
        errors.flush()
        return int(ended.value.code or 0), errors.buffer.getvalue().decode("ascii")

    return start


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_console_gets_what_it_can_show(run, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    code, errors = run(
        stdout, "generate", "demo", "-p", "Zo\u00eb \u65e5 \u00d7", "--max-new-tokens", "4", "--json"
    )
    assert code == 0, errors
    assert json.loads(stdout.buffer.getvalue().decode(encoding))["prompt"] == "Zo\u00eb \u65e5 \u00d7"


def test_characters_that_are_missing_are_spelt(run):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    code, errors = run(stdout, "store", "Zo\u00eb \u00d7.store")
    assert (code, errors) == (
        2,
        "error: no store at 'Zo\\xeb x.store'; save one first with save_store or --store\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["systems"], ["systems", "--json"]])
def test_a_full_disk_is_one_line(run, arguments):
    code, errors = run(open("/dev/full", "w", encoding="utf-8"), *arguments)  # noqa: SIM115 (closed by main)
    assert code == 1
    assert errors.startswith("error: cannot write: [Errno 28]")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["systems"], ["systems", "--json"]])
def test_a_reader_who_went_away_needs_no_message(run, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    assert run(os.fdopen(writing, "w", encoding="utf-8"), *arguments) == (1, "")


def test_bytes_that_are_no_text_are_refused_in_prompts(run):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    code, errors = run(stdout, "generate", "demo", "-p", "a\udcffb")
    assert code == 2
    assert "error: the prompt holds the lone surrogate U+DCFF" in errors


def test_store_shows_and_forgets(run, tmp_path):
    save_store(tmp_path / "store", Learnt(), "somebody's")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert run(stdout, "store", tmp_path / "store") == (0, "")
    shown = stdout.buffer.getvalue().decode()
    assert "learnt by suffix" in shown
    assert "1 text word for word, 3 tokens" in shown
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert run(stdout, "store", tmp_path / "store", "--forget", "--json") == (0, "")
    assert json.loads(stdout.buffer.getvalue()) == {
        "drafter": "suffix",
        "tokenizer": "somebody's",
        "bytes": pytest.approx(200, abs=150),
        "texts": 1,
        "text_tokens": 3,
        "arrays": {"offsets": "int64 [2]", "token_ids": "int64 [3]"},
        "forgotten": True,
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--store", "--trace"])
def test_an_output_that_cannot_be_written_is_an_error_of_its_own(run, tmp_path, option):
    (tmp_path / "file").write_text("")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    place = tmp_path / "file" / "output"
    code, errors = run(stdout, "generate", "demo", "-p", "Hi", "--max-new-tokens", "2", option, place)
    assert code == 1
    assert f"cannot write the {option[2:]}" in errors
