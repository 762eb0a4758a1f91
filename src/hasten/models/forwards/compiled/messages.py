"""Says what is compiled while one waits, and how long it took. Code from the cache says nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

_log = logging.getLogger("hasten")


class _Listener(event.Listener):
    """A function that calls others is compiled with them: the outermost one is announced."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._depth = 0
        self.seconds = 0.0
        self._start = 0.0

    def on_start(self, event: Any) -> None:
        if self._depth == 0:
            if not self.seconds:
                _log.warning("compiling %s for this CPU, once; this takes about half a minute", self._what)
            self._start = time.perf_counter()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._start


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Around whatever may compile ``what``."""
    listener = _Listener(what)
    try:
        with event.install_listener("numba:compile", listener):
            yield
    finally:
        if listener.seconds:
            _log.warning("compiled %s in %.0f s", what, listener.seconds)
