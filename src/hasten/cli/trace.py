"""Writes what every decoding step did, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hasten.files import writing

if TYPE_CHECKING:
    from hasten.text.decode import Step
    from hasten.text.drafting import Gain
    from hasten.text.engine import LanguageModel


class TraceWriter:
    """A trace callback that writes to a file. Lines are written as steps end, so an interrupt loses none.

    Raises WriteError if the file cannot be written.
    """

    def __init__(self, path: Path, language_model: LanguageModel) -> None:
        self._tokenizer = language_model.tokenizer
        self._num_steps = 0
        self._numbers: dict[int, int] = {}
        self._seen: list[object] = []  # keeps the sequences alive, so that no id is used twice
        self._path = path
        with writing(path, "trace"):
            self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with writing(self._path, "trace"):
            self._file.close()

    def __call__(self, step: Step) -> None:
        line = {
            "step": self._num_steps,
            "milliseconds": {phase: round(spent, 4) for phase, spent in step.milliseconds.items()},
            "sequences": [self._describe(gain) for gain in step.gains],
        }
        self._num_steps += 1
        with writing(self._path, "trace"):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _describe(self, gain: Gain) -> dict[str, Any]:
        tree, written = gain.tree, gain.acceptance.token_ids
        return {
            "sequence": self._number(gain.sequence),
            "tree": {
                "token_ids": tree.token_ids.tolist(),
                "tokens": self._texts(tree.token_ids.tolist()),
                "parents": tree.parents.tolist(),
                "sources": [tree.source_names[source] for source in tree.sources.tolist()],
                "scores": [round(score, 6) for score in tree.scores.tolist()],
            },
            "accepted_path": list(gain.acceptance.path),
            "written_token_ids": list(written),
            "written_tokens": self._texts(written),
            "finish_reason": gain.acceptance.finish_reason,
        }

    def _number(self, sequence: object) -> int:
        """Sequences are numbered as they first appear."""
        if id(sequence) not in self._numbers:
            self._numbers[id(sequence)] = len(self._seen)
            self._seen.append(sequence)
        return self._numbers[id(sequence)]

    def _texts(self, token_ids: list[int]) -> list[str] | None:
        if self._tokenizer is None:
            return None
        return [str(self._tokenizer.decode([token_id])) for token_id in token_ids]
