"""The sorted corpus against brute force, and stores that are damaged, foreign or half made."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from hasten.drafters.corpus import corpus_index
from hasten.drafters.corpus.corpus_index import CorpusIndex, Match, open_index, write_index
from hasten.drafters.corpus.suffix_array import DEPTH, SEPARATOR, sort_suffixes
from hasten.errors import IncompatibleModels, StoreError

REPETITIVE = strategies.builds(
    lambda unit, times, rest: unit * times + rest,
    strategies.lists(strategies.integers(0, 2), min_size=1, max_size=6),
    strategies.integers(1, 40),
    strategies.lists(strategies.integers(0, 3), max_size=6),
)
DOCUMENTS = strategies.lists(REPETITIVE, min_size=1, max_size=4)
SHORT = strategies.lists(
    strategies.lists(strategies.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=4
)
NAME = "token-ids-97"


def made(path: Path, documents: list[list[int]]) -> CorpusIndex:
    write_index(path, [np.array(document) for document in documents], NAME)
    return open_index(path, NAME)


def joined(documents: list[list[int]]) -> np.ndarray:
    ended = [token for document in documents for token in (*document, SEPARATOR)]
    return np.array([*ended, *[SEPARATOR] * DEPTH], np.int32)


def occurrences(documents: list[list[int]], tokens: list[int]) -> list[tuple[int, list[int]]]:
    """Document and what follows, for every occurrence that something follows."""
    length = len(tokens)
    return [
        (number, document[at + length :])
        for number, document in enumerate(documents)
        for at in range(len(document) - length)
        if document[at : at + length] == tokens
    ]


def padded(following: list[int], num_tokens: int) -> list[int]:
    return [*following, *[SEPARATOR] * num_tokens][:num_tokens]


def suffix_order(documents: list[list[int]]) -> list[int]:
    tokens = joined(documents).tolist()
    positions = [at for at, token in enumerate(tokens) if token != SEPARATOR]
    return sorted(positions, key=lambda at: (tokens[at : at + DEPTH], at))


@settings(max_examples=150)
@given(documents=DOCUMENTS)
def test_suffixes_are_in_order(documents):
    suffixes, starts = sort_suffixes(joined(documents))
    assert suffixes.tolist() == suffix_order(documents)
    everything = [token for document in documents for token in document]
    assert np.diff(starts).tolist() == np.bincount(everything).tolist()


@pytest.mark.parametrize(
    "document",
    [
        [0] * 3000,
        [0, 1] * 1500,
        [*range(40)] * 70,
        [3000 - at // 2 for at in range(3000)],
        np.random.default_rng(0).integers(0, 2, 3000).tolist(),
        np.random.default_rng(0).integers(0, 2, 300).tolist() * 10,
    ],
    ids=["one token", "two tokens", "period 40", "falling", "random", "copies"],
)
def test_long_texts_are_in_order(document):
    suffixes, _ = sort_suffixes(joined([document, document[:500]]))
    assert suffixes.tolist() == suffix_order([document, document[:500]])


def test_progress_reaches_the_end():
    seen: list[tuple[int, int]] = []
    sort_suffixes(joined([[*range(50)] * 20]), lambda *progress: seen.append(progress))
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)


@settings(max_examples=40)
@given(documents=SHORT)
def test_every_short_substring_is_counted_as_brute_force_counts_it(tmp_path_factory, documents):
    index = made(tmp_path_factory.mktemp("index") / "store", documents)
    substrings = {
        tuple(document[start:end])
        for document in documents
        for start in range(len(document))
        for end in range(start + 1, min(len(document), start + 16) + 1)
    }
    for tokens in map(list, substrings):
        expected = occurrences(documents, tokens)
        match = index.longest_match(np.array(tokens), len(tokens), len(tokens))
        assert (match.end - match.start if match else 0) == len(expected)
        if match:
            rows = index.continuations(match, 10, 10**6)
            assert rows.tolist() == sorted(padded(following, 10) for _, following in expected)


@settings(max_examples=60)
@given(
    documents=SHORT,
    text=strategies.lists(strategies.integers(0, 3), min_size=1, max_size=30),
    min_length=strategies.integers(1, 3),
)
def test_the_longest_match_equals_a_naive_scan(tmp_path_factory, documents, text, min_length):
    index = made(tmp_path_factory.mktemp("index") / "store", documents)
    match = index.longest_match(np.array(text), min_length, 16)
    lengths = [
        length
        for length in range(min_length, min(16, len(text)) + 1)
        if occurrences(documents, text[-length:])
    ]
    assert (match.length if match else None) == max(lengths, default=None)


def test_neither_matches_nor_what_follows_cross_documents(tmp_path):
    index = made(tmp_path / "store", [[1, 2, 3], [4, 5, 6, 7], [1, 2, 3, 8]])
    assert index.longest_match(np.array([3, 4]), 2, 16) is None
    assert index.longest_match(np.array([9, 6, 7]), 1, 16) is None  # nothing follows in that document
    match = index.longest_match(np.array([2, 3]), 2, 16)
    assert index.continuations(match, 3, 9).tolist() == [[8, SEPARATOR, SEPARATOR]]
    match = index.longest_match(np.array([1, 2]), 2, 16)
    assert index.continuations(match, 3, 9).tolist() == [[3, SEPARATOR, SEPARATOR], [3, 8, SEPARATOR]]


def test_token_ids_above_16_bits_survive(tmp_path):
    index = made(tmp_path / "store", [[70_000, 200_000, 4_464, 70_000, 200_001]])
    match = index.longest_match(np.array([70_000, 200_000]), 2, 16)
    assert index.continuations(match, 2, 9).tolist() == [[4_464, 70_000]]
    assert index.longest_match(np.array([4_464, 200_000 - 65_536]), 2, 16) is None
    assert index.longest_match(np.array([300_000]), 1, 16) is None
    assert index.longest_match(np.array([-1]), 1, 16) is None


def test_many_occurrences_are_sampled_evenly(tmp_path):
    index = made(tmp_path / "store", [[1, token] for token in range(2, 102) for _ in range(10)])
    match = index.longest_match(np.array([1]), 1, 16)
    assert (match.end - match.start, match.length) == (1000, 1)
    assert index.continuations(match, 1, 100)[:, 0].tolist() == list(range(2, 102))
    assert len(index.continuations(match, 1, 1000)) == 1000


def test_the_manifest_says_what_was_made(tmp_path):
    manifest = write_index(tmp_path / "store", [np.array([5, 6]), np.array([], int), np.array([9])], NAME)
    assert (manifest.num_documents, manifest.num_tokens, manifest.num_ids) == (2, 3, 10)
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["tokenizer"] == NAME
    assert open_index(tmp_path / "store", NAME).manifest == manifest


def test_arrays_are_mapped_not_read(tmp_path):
    index = made(tmp_path / "store", [[1, 2, 3]])
    assert isinstance(index._tokens.base, np.memmap)
    assert isinstance(index._suffixes.base, np.memmap)


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    made(tmp_path / "store", [[1, 2, 3]])
    with pytest.raises(IncompatibleModels, match="--tokenizer"):
        open_index(tmp_path / "store", "token-ids-98")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def array(store: Path, name: str) -> Path:
    [file] = store.glob(f"{name}-*.npy")
    return file


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "no folder": (lambda store: store.rename(store.parent / "elsewhere"), "no corpus index"),
    "no manifest": (lambda store: (store / "manifest.json").unlink(), "no corpus index"),
    "no array": (lambda store: (array(store, "suffixes")).unlink(), "damaged"),
    "empty array": (lambda store: (array(store, "tokens")).write_bytes(b""), "damaged"),
    "short array": (lambda store: _truncate(array(store, "tokens")), "damaged"),
    "foreign array": (lambda store: np.save(array(store, "tokens"), np.zeros(9)), "damaged.*int32"),
    "pickle": (lambda store: np.save(array(store, "tokens"), np.array([{}]), allow_pickle=True), "damaged"),
    "longer array": (lambda store: np.save(array(store, "suffixes"), np.zeros(4, np.int32)), "damaged"),
    "falling starts": (
        lambda store: np.save(array(store, "starts"), np.array([0, 2, 1, 3, 3])),
        "rise from 0",
    ),
    "not JSON": (lambda store: (store / "manifest.json").write_text("{"), "damaged"),
    "not an object": (lambda store: (store / "manifest.json").write_text("[]"), "damaged"),
    "wrong type": (lambda store: _rewrite(store / "manifest.json", num_tokens="3"), "damaged"),
    "new format": (
        lambda store: _rewrite(store / "manifest.json", format="hasten-index-9"),
        "hasten-index-9",
    ),
    "other depth": (lambda store: _rewrite(store / "manifest.json", depth=8), "depth 8"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_an_error_with_the_remedy(tmp_path, damage):
    made(tmp_path / "store", [[1, 2, 3]])
    spoil, message = DAMAGE[damage]
    spoil(tmp_path / "store")
    with pytest.raises(StoreError, match=message) as caught:
        open_index(tmp_path / "store", NAME)
    assert "hasten index FILES -o STORE" in str(caught.value)


def test_wrong_positions_are_never_read(tmp_path):
    """A damage that lengths do not show must not reach outside of the arrays."""
    made(tmp_path / "store", [[1, 2, 3, 4]])
    np.save(array(tmp_path / "store", "suffixes"), np.array([2**31 - 1, -(2**31), -9, 10**9], np.int32))
    index = open_index(tmp_path / "store", NAME)
    assert index.longest_match(np.array([1, 2]), 1, 16) is None
    assert index.continuations(Match(1, 0, 4), 3, 9).tolist() == [[SEPARATOR] * 3] * 4


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fails():
        yield np.array([1, 2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "store", fails(), NAME)
    assert not list(tmp_path.iterdir())
    made(tmp_path / "store", [[1, 2, 3]])
    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "store", fails(), NAME)
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    assert open_index(tmp_path / "store", NAME).manifest.num_tokens == 3


def test_an_interrupt_while_sorting_or_replacing_keeps_the_old_store(tmp_path, monkeypatch):
    made(tmp_path / "store", [[1, 2, 3]])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "store", [np.arange(1000)], NAME, interrupt)
    with monkeypatch.context() as patched:
        patched.setattr("hasten.drafters.corpus.corpus_index.write_text", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_index(tmp_path / "store", [np.arange(1000)], NAME)
    assert len(list((tmp_path / "store").iterdir())) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    assert open_index(tmp_path / "store", NAME).manifest.num_tokens == 3


def killed(store: Path, at: int) -> bool:
    """Replace the store in a process that dies at its n-th touch of a file there; whether it died."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] != 0
    touches = itertools.count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        touched = event in {"open", "os.rename", "os.remove"} and str(store) in str(arguments[0])
        if touched and next(touches) == at:
            os._exit(9)

    sys.addaudithook(hook)
    write_index(store, [np.arange(7)], NAME)
    os._exit(0)


def test_a_run_killed_anywhere_leaves_the_old_store_or_the_new_one(tmp_path):
    store, found, at, died = tmp_path / "store", [], 0, True
    while died:
        at += 1
        made(store, [[1, 2, 3]])
        died = killed(store, at)
        found.append(open_index(store, NAME).manifest.num_tokens)
    assert found == sorted(found)
    assert set(found) == {3, 7}
    for file in store.iterdir():
        os.utime(file, (0, 0))
    made(store, [[1, 2, 3]])
    assert len(list(store.iterdir())) == 4  # what the killed runs left is gone


def test_a_store_that_is_replaced_while_it_is_opened_is_read(tmp_path, monkeypatch):
    made(tmp_path / "store", [[1, 2, 3]])
    read = corpus_index._read_manifest
    manifests = [read(tmp_path / "store")]
    made(tmp_path / "store", [[1, 2, 3, 4]])
    monkeypatch.setattr(
        corpus_index, "_read_manifest", lambda folder: manifests.pop() if manifests else read(folder)
    )
    assert open_index(tmp_path / "store", NAME).manifest.num_tokens == 4


def test_a_store_is_replaced_and_nothing_else_is(tmp_path):
    made(tmp_path / "store", [[1, 2, 3]])
    assert made(tmp_path / "store", [[1, 2, 3, 4, 5]]).manifest.num_tokens == 5
    (tmp_path / "empty").mkdir()
    made(tmp_path / "empty", [[1, 2, 3]])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more")
    for name in ("folder", "file"):
        with pytest.raises(StoreError, match="is no index"):
            write_index(tmp_path / name, [np.array([1, 2])], NAME)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "years of work"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "file", "folder", "store"]
    with pytest.raises(StoreError, match="cannot write"):
        write_index(tmp_path / "no" / "such" / "place", [np.array([1, 2])], NAME)


def test_documents_that_cannot_be_indexed_are_refused(tmp_path):
    for documents, message in (
        ([], "no tokens"),
        ([np.array([], int)], "no tokens"),
        ([np.array([1, -1])], "between 0 and"),
        ([np.array([2**31 - 1])], "between 0 and"),
    ):
        with pytest.raises(StoreError, match=message):
            write_index(tmp_path / "store", documents, NAME)
    assert not list(tmp_path.iterdir())
