"""Files are there as a whole or not at all, and whatever is wrong with one is said by name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hasten.errors import PromptError, WriteError
from hasten.files import (
    ABANDONED,
    read_json_lines,
    read_text,
    require_writable,
    write_text,
    write_whole,
)


def put(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: Path(temporary).write_text(text), "note")


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "deep" / "note"
    put(file, "one")

    def half(temporary: str) -> None:
        Path(temporary).write_text("tw")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, half, "note")
    assert file.read_text() == "one"
    put(file, "two")
    assert [(each.name, each.read_text()) for each in file.parent.iterdir()] == [("note", "two")]


def test_links_are_written_through_and_permissions_stay(tmp_path):
    file, link = tmp_path / "note", tmp_path / "link"
    put(file, "one")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
    file.chmod(0o640)
    link.symlink_to(file)
    put(link, "two")
    assert link.is_symlink()
    assert file.read_text() == "two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later")
    put(dangling, "three")
    assert (tmp_path / "later").read_text() == "three"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind):
    place = tmp_path / "place"
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "device":
            place = Path("/dev/full")
    before = place.stat().st_mode
    with pytest.raises(WriteError, match=r"note.*no regular file"):
        put(place, "one")
    assert place.stat().st_mode == before


def test_text_goes_to_devices_as_it_is_and_a_full_one_is_named(tmp_path):
    write_text("/dev/null", "report", "report")
    with pytest.raises(WriteError, match=r"cannot write the report '/dev/full'.*No space left"):
        write_text("/dev/full", "report", "report")
    write_text(tmp_path / "report", "é\n", "report")
    assert (tmp_path / "report").read_bytes() == "é\n".encode()
    with pytest.raises(WriteError, match=r"cannot write the report .*Not a directory; choose another"):
        write_text(tmp_path / "report" / "below", "report", "report")


def test_what_killed_runs_left_is_removed_after_a_day(tmp_path):
    old, new, other = (tmp_path / f".{name}.unfinished" for name in ("n[o]te.1", "n[o]te.2", "mine.3"))
    for file in (old, new, other):
        file.write_text("half")
    for file in (old, other):
        os.utime(file, (file.stat().st_mtime - ABANDONED - 1,) * 2)
    put(tmp_path / "n[o]te", "one")
    assert {file.name for file in tmp_path.iterdir()} == {"n[o]te", new.name, other.name}


def test_a_place_is_tried_before_the_work(tmp_path):
    require_writable(tmp_path / "deep" / "report", "report")
    assert not list((tmp_path / "deep").iterdir())
    (tmp_path / "file").write_text("kept")
    require_writable(tmp_path / "file", "report")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(WriteError, match=r"cannot write the report.*choose another"):
        require_writable(tmp_path / "file" / "report", "report")


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_text(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(tmp_path / "text") == "one\ntwo"


LINES = [
    ('{"a": 1}\r\n\r\n{"b": 2}', [(1, {"a": 1}), (3, {"b": 2})]),
    ('\ufeff"x\u2028y\u2029z\x85\x1c"\n', None),
    ('"x\u2028y\u2029z\x85"\n  \n3\n', [(1, "x\u2028y\u2029z\x85"), (3, 3)]),
    ('"\\ud83d\\ude00"', [(1, "😀")]),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_lines_end_at_line_feeds_only(tmp_path, text, expected):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(text.encode())
    if expected is None:  # a control character is no JSON
        with pytest.raises(PromptError, match=r"lines.jsonl:1 is not JSON"):
            list(read_json_lines(file))
    else:
        assert list(read_json_lines(file)) == [(f"{file}:{number}", value) for number, value in expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', ":2 is not JSON"),
        (b'1\n\n"\\ud83d"\n', r":3 holds the lone surrogate U\+D83D"),
        (b'{"a": {"\\udc80": 1}}', r":1 holds the lone surrogate U\+DC80"),
        (b"1\n\xff", "is not UTF-8 .*at byte 2"),
        (b"[" * 100_000, ":1 is not JSON"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path, content, message):
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(PromptError, match="lines.jsonl'?" + message if message[0] == ":" else message):
        list(read_json_lines(tmp_path / "lines.jsonl"))
    with pytest.raises(PromptError, match="cannot read"):
        read_text(tmp_path / "missing")
