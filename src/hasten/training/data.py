"""Turns text files into one array of token ids, split by document, and draws batches from it.

Knows files, documents and tokens; knows no model. The array is kept beside a hash of everything it was made
from, so a second run on the same text starts at once and a changed text is never mistaken for the old one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hasten.errors import ConfigError
from hasten.files import parse_json, read_json_lines, read_text, write_array, write_text
from hasten.training.tokenizer import END_OF_TEXT, text_encoder

TokenArray = NDArray[np.int32]

_FORMAT = 1
"""Part of the hash: raised when the same text would give another array."""
_ENCODE_AT_ONCE = 256


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file, none of them empty.

    .json and .jsonl files hold records; any other file holds text with `<|endoftext|>` between documents.
    """
    if path.suffix in (".json", ".jsonl"):
        documents: Iterable[str] = (_render(record, where) for where, record in _records(path))
    else:
        documents = read_text(path, ConfigError).split(END_OF_TEXT)
    for document in documents:
        if stripped := document.strip("\n"):
            yield stripped


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each record after the place an error message names."""
    if path.suffix == ".jsonl":
        yield from read_json_lines(path, ConfigError)
        return
    records = parse_json(read_text(path, ConfigError), str(path), ConfigError, "make it a JSON list")
    if not isinstance(records, list):
        raise ConfigError(f"text file {path} must be a JSON list of records; make it one, or use .jsonl")
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _render(record: Any, where: str) -> str:
    """A record as a document: its text, or one question and answer between User and Assistant."""
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        raise ConfigError(f"{where} is not an object of strings")
    match sorted(record):
        case ["text"]:
            return str(record["text"])
        case ["answer", "question"]:
            return _dialogue(record["question"], _plain_solution(record["answer"]))
        case ["instruction", "output"] | ["input", "instruction", "output"]:
            question = "\n".join(filter(None, (record["instruction"], record.get("input", ""))))
            return _dialogue(question, record["output"])
        case ["completion", "prompt"]:
            return _dialogue(record["prompt"], record["completion"])
    raise ConfigError(
        f"{where} has the keys {', '.join(sorted(record))}; known are text, or question and answer, or"
        " instruction, input and output, or prompt and completion"
    )


def _dialogue(question: str, answer: str) -> str:
    return f"User: {question.strip()}\nAssistant: {answer.strip()}"


def _plain_solution(answer: str) -> str:
    """GSM8K's marks as prose: `<<2+3=5>>` is for a calculator, `#### 5` is the answer."""
    without_calculator = re.sub(r"<<[^<>]*>>", "", answer)
    return re.sub(r"^#### *(.+)$", r"The answer is \1", without_calculator, flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Token ids of all documents, each followed by the end-of-text token; the held-out ones come last."""

    token_ids: TokenArray
    num_train_tokens: int
    num_documents: int
    num_held_out_documents: int
    fingerprint: str
    """hash of the texts, the tokenizer and the split"""

    @property
    def train(self) -> TokenArray:
        return self.token_ids[: self.num_train_tokens]

    @property
    def held_out(self) -> TokenArray:
        return self.token_ids[self.num_train_tokens :]


def load_corpus(
    paths: list[Path], tokenizer: PreTrainedTokenizerFast, held_out_fraction: float, folder: Path
) -> Corpus:
    """The corpus of these files, memory-mapped from `folder`, where it is written unless it is there."""
    encoder = _Encoder(text_encoder(tokenizer), int(tokenizer.eos_token_id))
    fingerprint = _fingerprint(paths, encoder, held_out_fraction)
    array_path = folder / f"tokens-{fingerprint}.npy"
    notes_path = array_path.with_suffix(".json")
    if not notes_path.exists():  # written last, so the array beside it is whole
        token_ids, notes = _tokenise(paths, encoder, held_out_fraction)
        write_array(array_path, token_ids, "tokenised corpus")
        write_text(notes_path, json.dumps(notes), "notes on the tokenised corpus")
    counts = json.loads(notes_path.read_text(encoding="utf-8"))
    token_ids = np.load(array_path, mmap_mode="r", allow_pickle=False)
    return Corpus(token_ids, fingerprint=fingerprint, **counts)


@dataclass(frozen=True, slots=True)
class _Encoder:
    tokenizer: Tokenizer
    end_of_text_id: int

    def encode(self, documents: list[str]) -> list[TokenArray]:
        encodings = self.tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        return [np.asarray([*encoding.ids, self.end_of_text_id], dtype=np.int32) for encoding in encodings]


def _fingerprint(paths: list[Path], encoder: _Encoder, held_out_fraction: float) -> str:
    options = f"{_FORMAT} {encoder.end_of_text_id} {held_out_fraction!r}"
    digest = hashlib.blake2b(options.encode(), digest_size=12)
    digest.update(encoder.tokenizer.to_str().encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(f"{path.suffix} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise ConfigError(f"text file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _tokenise(
    paths: list[Path], encoder: _Encoder, held_out_fraction: float
) -> tuple[TokenArray, dict[str, int]]:
    keys: list[bytes] = []
    arrays: list[TokenArray] = []
    for batch in _batched(document for path in paths for document in read_documents(path)):
        keys += [hashlib.blake2b(document.encode(), digest_size=16).digest() for document in batch]
        arrays += encoder.encode(batch)
    if not arrays:
        raise ConfigError(f"no text in {', '.join(map(str, paths))}")
    held_out_keys = _choose_held_out(keys, arrays, held_out_fraction)
    train = [array for key, array in zip(keys, arrays, strict=True) if key not in held_out_keys]
    held_out = [array for key, array in zip(keys, arrays, strict=True) if key in held_out_keys]
    notes = {
        "num_train_tokens": sum(map(len, train)),
        "num_documents": len(arrays),
        "num_held_out_documents": len(held_out),
    }
    return np.concatenate(train + held_out), notes


def _batched(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _ENCODE_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _choose_held_out(keys: list[bytes], arrays: list[TokenArray], fraction: float) -> set[bytes]:
    """Documents in the order of their hashes while they fit; equal ones stay on one side of the split."""
    sizes: dict[bytes, int] = {}
    for key, array in zip(keys, arrays, strict=True):
        sizes[key] = sizes.get(key, 0) + len(array)
    room = int(fraction * sum(sizes.values()))
    chosen: set[bytes] = set()
    for key in sorted(sizes):
        if sizes[key] <= room:
            chosen.add(key)
            room -= sizes[key]
    return chosen


class BatchSampler:
    """Random windows of the training tokens; batch `step` depends on the seed and the step alone.

    So a resumed run draws what the unbroken one would have drawn, with no state to keep.
    """

    def __init__(self, token_ids: TokenArray, batch_size: int, sequence_length: int, seed: int) -> None:
        if len(token_ids) <= sequence_length:
            raise ConfigError(
                f"{len(token_ids)} training tokens are too few for sequence_length={sequence_length}; give"
                " more text or a smaller sequence_length"
            )
        self._token_ids = token_ids
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._seed = seed

    def batch(self, step: int) -> Tensor:
        """[batch, sequence_length + 1]: the inputs and, one place on, the tokens to predict."""
        random = np.random.default_rng((self._seed, step))
        starts = random.integers(0, len(self._token_ids) - self._sequence_length, self._batch_size)
        return _windows(self._token_ids, starts, self._sequence_length)


def held_out_windows(token_ids: TokenArray, sequence_length: int, max_windows: int) -> Tensor:
    """[windows, sequence_length + 1], evenly spread and not overlapping."""
    num_windows = min(max_windows, (len(token_ids) - 1) // sequence_length)
    if num_windows < 1:
        raise ConfigError(
            f"{len(token_ids)} held-out tokens are too few for sequence_length={sequence_length}; raise"
            " held_out_fraction, or set it to 0 to train without"
        )
    spacing = (len(token_ids) - 1) // num_windows
    return _windows(token_ids, np.arange(num_windows, dtype=np.int64) * spacing, sequence_length)


def _windows(token_ids: TokenArray, starts: NDArray[np.int64], sequence_length: int) -> Tensor:
    positions = starts[:, None] + np.arange(sequence_length + 1)
    return torch.from_numpy(token_ids[positions].astype(np.int64))
