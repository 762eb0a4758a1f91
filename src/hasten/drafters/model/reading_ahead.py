"""Drafting while the target verifies (DuoDecoding, arXiv 2503.00784), as if all that is drafted were right.

Nothing is proposed from it: what was read ahead is in the draft's cache when the next round asks for it. So
the texts and the trees are the same with and without, and only their time is not.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.drafters.trees.rows import Row
    from hasten.models.draft.draft_session import DraftSession

Overlap = Literal["auto", "on", "off"]

_MAX_PASSES = 16
_USUAL_ROUNDS = 12
_TRIAL_ROUNDS = 6


class ReadingAhead:
    """Decides whether to read ahead, and does it in a thread.

    Args:
        overlap: "auto" reads ahead where the draft has a device of its own; else it tries it for a few
            rounds and goes on if they took less time than those before.
        has_own_device: whether the draft's device is another than the target's.

    Raises ConfigError for an unknown overlap.
    """

    def __init__(self, overlap: Overlap, *, has_own_device: bool) -> None:
        if overlap not in ("auto", "on", "off"):
            raise ConfigError(f"overlap={overlap!r} is unknown; choose auto, on, off")
        self._decided: bool | None = {"on": True, "off": False, "auto": has_own_device or None}[overlap]
        self._times: tuple[list[float], list[float]] = ([], [])  # ms of rounds without, with

    def is_on(self) -> bool:
        if self._decided is not None:
            return self._decided
        return len(self._times[0]) >= _USUAL_ROUNDS

    def judge(self, round_ms: float) -> None:
        """How long the last round took, drafting and verifying; what it gained does not depend on this."""
        if self._decided is not None:
            return
        without, trial = self._times
        (trial if self.is_on() else without).append(round_ms)
        usual = statistics.median(without)
        # A round that takes much longer has shown enough: the two get into each other's way.
        if trial and (len(trial) >= _TRIAL_ROUNDS or trial[-1] > 1.5 * usual):
            self._decided = statistics.median(trial) < usual

    @contextmanager
    def reading(self, session: DraftSession, rows: list[Row]) -> Iterator[None]:
        """Reads on until the body is done. Errors of the draft are raised here."""
        is_verified = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                _read_on(session, rows, is_verified)
            except BaseException as error:  # raised in the thread that asked
                failures.append(error)

        thread = threading.Thread(target=read, name="hasten-reading-ahead")
        thread.start()
        try:
            yield
        finally:
            is_verified.set()
            thread.join()
        if failures:
            raise failures[0]


def _read_on(session: DraftSession, rows: list[Row], is_verified: threading.Event) -> None:
    """The likeliest path of every row, then what the draft would write after it."""
    found = session.grow([row.unread() for row in rows])
    nodes = [ids[0] if ids else row.last_read() for row, ids in zip(rows, found, strict=True)]
    for _ in range(_MAX_PASSES):
        if is_verified.is_set():
            return
        grown = session.grow([[row.following(node)] for row, node in zip(rows, nodes, strict=True)])
        nodes = [node for [node] in grown]
