"""Text becomes tokens, a split and batches, the same ones every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hasten.errors import ConfigError
from hasten.training.data import BatchSampler, held_out_windows, load_corpus, read_documents
from hasten.training.tokenizer import load_tokenizer


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_text_is_split_at_the_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n<|endoftext|>\n  three\n<|endoftext|>\n")
    assert list(read_documents(path)) == ["one\ntwo", "  three"]


@pytest.mark.parametrize(
    ("record", "document"),
    [
        ({"text": "plain"}, "plain"),
        ({"prompt": "p", "completion": " c"}, "User: p\nAssistant: c"),
        ({"instruction": "i", "input": "", "output": "o"}, "User: i\nAssistant: o"),
        ({"instruction": "i", "input": "x", "output": "o"}, "User: i\nx\nAssistant: o"),
        (
            {"question": "2+3?", "answer": "It is <<2+3=5>>5.\n#### 5"},
            "User: 2+3?\nAssistant: It is 5.\nThe answer is 5",
        ),
    ],
)
def test_records_are_rendered(record: dict[str, str], document: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", json.dumps(record) + "\n\n" + json.dumps(record))
    whole = write(tmp_path / "a.json", json.dumps([record]))
    assert list(read_documents(lines)) == [document, document]
    assert list(read_documents(whole)) == [document]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"a\.jsonl:2 has the keys txt; known are text"),
        ("a.jsonl", "{\n", ":1 is not JSON"),
        ("a.json", '{"text": "a"}', "must be a JSON list"),
        ("a.json", '[{"text": 3}]', "record 1 is not an object of strings"),
        ("missing.txt", None, "cannot read .*No such file"),
    ],
)
def test_unreadable_files_are_named(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        list(read_documents(tmp_path / name))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match=r"not UTF-8.*byte 2"):
        list(read_documents(tmp_path / "a.txt"))


def test_corpus_keeps_every_token_and_is_made_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("demo")
    documents = [f"Document {number} says <|mask|> {number * 7}." for number in range(60)]
    documents += [documents[0]] * 3
    path = write(tmp_path / "a.txt", "\n<|endoftext|>\n".join(documents))
    corpus = load_corpus([path], tokenizer, 0.2, tmp_path / "corpus")

    def texts(token_ids: np.ndarray) -> list[str]:
        return tokenizer.decode(token_ids).removesuffix("<|endoftext|>").split("<|endoftext|>")

    train, held_out = texts(corpus.train), texts(corpus.held_out)
    assert sorted(train + held_out) == sorted(documents)
    assert not set(train) & set(held_out)
    assert len(held_out) == corpus.num_held_out_documents
    assert 0.1 < len(corpus.held_out) / len(corpus.token_ids) <= 0.2
    assert 1 not in corpus.token_ids  # a mask in the text is no mask token
    assert corpus.token_ids.dtype == np.int32
    assert isinstance(corpus.token_ids, np.memmap)

    array = next((tmp_path / "corpus").glob("*.npy"))
    written = array.stat().st_mtime_ns
    again = load_corpus([path], tokenizer, 0.2, tmp_path / "corpus")
    assert array.stat().st_mtime_ns == written
    assert again.fingerprint == corpus.fingerprint

    write(path, "another text")
    assert load_corpus([path], tokenizer, 0.2, tmp_path / "corpus").fingerprint != corpus.fingerprint


def test_a_file_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text in"):
        load_corpus([write(tmp_path / "a.txt", "\n")], load_tokenizer("demo"), 0.1, tmp_path)


def test_batches_depend_on_seed_and_step_alone() -> None:
    token_ids = np.arange(1000, dtype=np.int32)
    sampler = BatchSampler(token_ids, batch_size=4, sequence_length=8, seed=5)
    same = BatchSampler(token_ids, batch_size=4, sequence_length=8, seed=5)
    sampler.batch(0)
    assert sampler.batch(3).tolist() == same.batch(3).tolist()
    assert sampler.batch(3).tolist() != sampler.batch(4).tolist()
    for row in sampler.batch(6).tolist():
        assert row == list(range(row[0], row[0] + 9))


def test_batches_reach_the_last_token() -> None:
    sampler = BatchSampler(np.arange(10, dtype=np.int32), batch_size=50, sequence_length=8, seed=0)
    assert sampler.batch(0).max() == 9


def test_held_out_windows_are_spread_and_do_not_overlap() -> None:
    windows = held_out_windows(np.arange(101, dtype=np.int32), sequence_length=10, max_windows=4)
    assert windows[:, 0].tolist() == [0, 25, 50, 75]
    assert held_out_windows(np.arange(11, dtype=np.int32), 10, 4).tolist() == [list(range(11))]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="8 training tokens are too few"):
        BatchSampler(np.arange(8, dtype=np.int32), batch_size=1, sequence_length=8, seed=0)
    with pytest.raises(ConfigError, match="raise held_out_fraction"):
        held_out_windows(np.arange(8, dtype=np.int32), 8, 4)
