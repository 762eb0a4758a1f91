"""Files and folders become the documents of a corpus index, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.drafters.corpus.corpus_texts import find_files, tokenised
from hasten.errors import ConfigError


class Letters:
    """A tokenizer of characters."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def texts_of(paths: list[Path]) -> list[str]:
    documents = tokenised(find_files(paths), Letters())
    return ["".join(map(chr, document.tolist())) for document in documents]


def test_files_folders_and_jsonl_lines_are_documents(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "a.txt").write_text("\ufeffone\r\ntwo", encoding="utf-8")
    (inner / "b.md").write_text("drei ä", encoding="utf-8")
    (inner / "c.jsonl").write_text('{"text": "x\\u2028y"}\n\n{"text": "z", "more": 1}\n', encoding="utf-8")
    (inner / "d.csv").write_text("not read", encoding="utf-8")
    (inner / ".hidden.txt").write_text("not read", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("")
    assert texts_of([tmp_path]) == ["one\ntwo", "drei ä", "x\u2028y", "z"]
    assert texts_of([inner / "b.md", inner, inner / "b.md"]) == ["drei ä", "x\u2028y", "z"]
    assert texts_of([inner / "d.csv"]) == ["not read"]


def test_long_texts_are_whole_and_progress_is_told(tmp_path):
    lines = "".join(f"line {number} of a long text\n" for number in range(200_000))
    for name, text in (("a.txt", lines), ("b.txt", "x" * 200_000), ("c.txt", "end")):
        (tmp_path / name).write_text(text)
    seen: list[tuple[int, int]] = []
    found = list(tokenised(find_files([tmp_path]), Letters(), lambda *progress: seen.append(progress)))
    assert ["".join(map(chr, document.tolist())) for document in found] == [lines, "x" * 200_000, "end"]
    total = len(lines) + 200_003
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "a.txt.* not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": 3}\n', 'a.jsonl:1 has no "text"'),
        ("a.jsonl", b'["text"]\n', 'a.jsonl:1 has no "text"'),
        ("a.csv", b"x", r"no \.jsonl, \.md, \.py, \.txt files"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        texts_of([tmp_path])
    with pytest.raises(ConfigError, match=r"no file or folder at .*missing"):
        find_files([tmp_path / "missing"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("z.txt", b"\xff", r"z\.txt.* is not UTF-8 .*; give text files"),
        (
            "z.jsonl",
            b'{"text": "x"}\n\n{"content": "x"}\n',
            r'z\.jsonl:3 has no "text".*; write every line as',
        ),
        ("z.jsonl", b'{"text": "x"}\n{"text": "x"\n', r"z\.jsonl:2 is not JSON .*; write every line as"),
    ],
)
def test_a_bad_file_is_found_before_anything_is_tokenised(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(
        "hasten.drafters.corpus.corpus_texts._BATCH", 1
    )  # a call of the tokenizer for every piece
    (tmp_path / "a.txt").write_text("a good file comes first")
    (tmp_path / name).write_bytes(content)
    asked: list[str] = []

    def tokenizer(texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        asked.extend(texts)
        return Letters()(texts)

    with pytest.raises(ConfigError, match=message):
        list(tokenised(find_files([tmp_path]), tokenizer))
    assert asked == []
    (tmp_path / name).unlink()
    list(tokenised(find_files([tmp_path]), tokenizer))
    assert asked[0] == "a good file comes first"


def test_a_fast_tokenizer_gives_what_it_gives_to_prompts(tmp_path, demo):
    text = "def add(a, b):\n    return a + b  # ä€\n"
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    demo.tokenizer.backend_tokenizer.enable_truncation(3)  # as a tokenizer file may ask for
    [document] = tokenised([tmp_path / "a.py"], demo.tokenizer)
    assert document.tolist() == demo.encode(text)
