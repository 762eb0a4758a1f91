"""How long a corpus index takes to make, how big it is, and how fast it answers, cold and warm.

python bench/index.py FILES... [--megabytes 100] [--tokenizer demo] [--queries 2000] [--folder FOLDER]

The files are copied one after the other, and over again, until the corpus has its size. A query is a whole
proposal of REST after a text of which the last 2 to 16 tokens stand in the corpus. Cold: the system was told
to drop the store from memory, and every query is the first of its kind.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import typer

from hasten.core import Sequence
from hasten.drafters.corpus.corpus_index import CorpusIndex, open_index, write_index
from hasten.drafters.corpus.corpus_texts import find_files, tokenised
from hasten.drafters.corpus.rest import Rest
from hasten.models.loading import load_tokenizer
from hasten.models.vocabulary import vocabulary_fingerprint


def main(
    files: list[Path],
    *,
    megabytes: float = 100,
    tokenizer: str = "demo",
    queries: int = 2000,
    folder: Path | None = None,
    seed: int = 0,
) -> None:
    loaded = load_tokenizer(tokenizer)
    fingerprint = vocabulary_fingerprint(loaded, len(loaded))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        store = Path(scratch) / "store"
        corpus = collect(find_files(files), int(megabytes * 1e6), Path(scratch) / "corpus")
        warm_up(Path(scratch) / "small")
        numbers = build(store, corpus, loaded, fingerprint)
        texts = query_texts(store, queries, np.random.default_rng(seed))
        drop_from_memory(store)
        index = open_index(store, fingerprint)
        for name in ("cold", "warm"):
            numbers |= {f"{name}_{key}": value for key, value in ask(index, texts).items()}
    for key, value in numbers.items():
        print(f"{key:20} {value:,.3f}" if isinstance(value, float) else f"{key:20} {value:,}")
    print(json.dumps(numbers))


def collect(files: list[Path], num_bytes: int, folder: Path) -> Path:
    """Numbered copies; the last one is cut at the end of a line."""
    folder.mkdir()
    left = num_bytes
    for number, file in enumerate(cycle(files)):
        copy = folder / f"{number:05}{file.suffix}"
        shutil.copyfile(file, copy)
        if copy.stat().st_size >= left:
            copy.write_bytes(copy.read_bytes()[:left].rpartition(b"\n")[0])
            return folder
        left -= copy.stat().st_size
    raise AssertionError("a cycle does not end")


def warm_up(store: Path) -> None:
    """Compile everything."""
    write_index(store, [np.arange(1000) % 7], "small")
    index = open_index(store, "small")
    ask(index, [[1, 2, 3]])


def build(store: Path, corpus: Path, tokenizer: object, fingerprint: str) -> dict[str, float]:
    start = time.perf_counter()
    read_at = start

    def note(done: int, total: int) -> None:
        nonlocal read_at
        read_at = time.perf_counter()

    manifest = write_index(store, tokenised(find_files([corpus]), tokenizer, note), fingerprint)
    end = time.perf_counter()
    return {
        "corpus_bytes": sum(file.stat().st_size for file in corpus.iterdir()),
        "documents": manifest.num_documents,
        "tokens": manifest.num_tokens,
        "store_bytes": sum(file.stat().st_size for file in store.iterdir()),
        "tokenise_seconds": read_at - start,
        "sort_seconds": end - read_at,
        "build_seconds": end - start,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def query_texts(store: Path, count: int, rng: np.random.Generator) -> list[list[int]]:
    tokens = np.load(store / "tokens.npy", mmap_mode="r")
    texts = []
    for place in rng.integers(0, len(tokens) - 64, count):
        known = np.array(tokens[place : place + rng.integers(2, 17)], np.int64)
        strange = rng.integers(0, tokens.max() + 1, 16 - len(known))
        texts.append([*strange.tolist(), *np.maximum(known, 0).tolist()])
    return texts


def drop_from_memory(store: Path) -> None:
    for file in store.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(index: CorpusIndex, texts: list[list[int]]) -> dict[str, float]:
    drafter = Rest(index)
    times = []
    for text in texts:
        sequence = Sequence(text, len(text), len(text) + 64, None, None)  # type: ignore[arg-type]
        start = time.perf_counter()
        drafter.propose(sequence, 64)
        times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99))}


if __name__ == "__main__":
    typer.run(main)
