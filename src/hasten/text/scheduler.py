"""A queue in front of a running batch: texts wait, are read a little between steps, and take free places.

Knows texts and their methods; knows no prompts and no outputs. ``generate``, ``stream`` and servers drive it:
they submit, take one step after another, and look at what each step says of their texts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hasten.core import Sequence
from hasten.models.forwards.forward import PREFILL_CHUNK
from hasten.models.sessions.prefix_cache import PrefixCache
from hasten.models.target import Target
from hasten.text.decode import RunningBatch, Step
from hasten.text.drafting import Method
from hasten.text.reading import Entry


class Scheduler:
    """Writes the texts that are submitted, at most ``max_batch`` side by side, in the order they came in.

    ``submit`` and ``cancel`` may be called by any thread, also during a step; everything else by the one that
    takes the steps. What a text is written to does not depend on what else is written.

    Args:
        model: the target.
        max_batch: texts that are written side by side.
        prefill_tokens: prompt tokens that are read between two steps, rounded up to whole chunks, so that
            texts which are being written do not wait long for those that join.
        prefixes: see ``RunningBatch``.
    """

    def __init__(
        self,
        model: Target,
        *,
        max_batch: int = 16,
        prefill_tokens: int = PREFILL_CHUNK,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._max_batch = max_batch
        self._prefill_tokens = prefill_tokens
        self._batch = RunningBatch(model, prefixes)
        self._waiting: deque[Entry] = deque()
        self._was_cancelled = False

    @property
    def has_work(self) -> bool:
        """Whether another step has anything to do or to say."""
        return bool(self._waiting) or self._batch.has_work

    @property
    def num_waiting(self) -> int:
        """Texts whose prompts are not read yet, nor being read."""
        return len(self._waiting)

    def submit(self, sequence: Sequence, method: Method) -> None:
        """A text to be written as soon as there is a place."""
        self._waiting.append((sequence, method))

    def cancel(self, sequence: Sequence) -> None:
        """The text ends where it is, as "interrupted"; the next step says so (``Step.ended``)."""
        self._batch.cancel(sequence)
        self._was_cancelled = True

    def fork(self, sequence: Sequence, sample: int | None = None) -> Sequence:
        """See ``RunningBatch.fork``. The new text does not wait, even where all places are taken."""
        return self._batch.fork(sequence, sample)

    def step(self) -> Step:
        """Let texts join, read some of their prompts, and write what one pass gives to all that were read.

        A step without gains only read, or has only texts that were cancelled to tell of.
        """
        ended = self._drop_cancelled() if self._was_cancelled else []
        self._admit()
        self._batch.read(self._prefill_tokens)
        step = self._batch.step()
        return replace(step, ended=[*ended, *step.ended]) if ended else step

    def close(self) -> None:
        """Give everything back; texts stay as they are."""
        self._waiting.clear()
        self._batch.close()

    def _admit(self) -> None:
        if self._batch.is_reading:
            return
        entries: list[Entry] = []
        while self._waiting and self._batch.num_texts + len(entries) < self._max_batch:
            entries.append(self._waiting.popleft())
        self._batch.admit(entries)

    def _drop_cancelled(self) -> list[Sequence]:
        """Texts that are given up before they began."""
        self._was_cancelled = False
        entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
        going_on = [entry for entry in entries if not entry[0].finish_reason]
        self._waiting.extendleft(reversed(going_on))  # before those that came in meanwhile
        return [sequence for sequence, _ in entries if sequence.finish_reason]
