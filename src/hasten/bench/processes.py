"""An object in a process of its own, whose methods are called from here; knows nothing of models.

Programs disturb each other in one process: threads of one wait on the processors that another needs, and what
one allocates slows the other. A process that waits for its next call sleeps in a read of its pipe.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from hasten.errors import HastenError, ModelError

IDLE_SHARE = "idle_share"
"""A method of every Remote: the share of one processor that its process used between calls."""

_START_SECONDS = 1800.0
"""A model that is neither there nor refused after so long never will be."""


class Remote:
    """Calls go through a pipe and are answered one at a time; torch has as many threads as here.

    Args:
        name: what an error calls it.
        make: makes the object there; a function of a module, or a partial of one. It begins at once, and
            the first call waits for it.

    Every method but ``close`` raises what is raised there of hasten's own errors, and ModelError, with the
    name and the reason, for any other end.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        import torch

        self._name = name
        self._is_ready = False
        self.waiting = Idling()
        """what this process does while the other one works"""
        context = multiprocessing.get_context("spawn")  # a fork would share threads that are not there
        self._pipe, there = context.Pipe()
        arguments = there, pickle.dumps(make), torch.get_num_threads()
        self._process = context.Process(target=_serve, args=arguments, daemon=True, name=f"hasten {name}")
        self._process.start()
        there.close()

    def ready(self) -> None:
        """Wait until the object is made."""
        if self._is_ready:
            return
        try:
            self._receive(_START_SECONDS)
        except BaseException:
            self.close()
            raise
        self._is_ready = True

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns."""
        self.ready()
        try:
            self._pipe.send_bytes(pickle.dumps((method, arguments)))
        except OSError:
            raise self._ended() from None
        self.waiting.begin()
        found = self._receive()
        self.waiting.end()
        return found

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._pipe.close()
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, timeout: float | None = None) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise ModelError(f"{self._name} was not ready after {timeout:.0f} seconds")
            kind, found = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == "error":
            raise found
        return found

    def _ended(self) -> ModelError:
        self._process.join(5)
        code = self._process.exitcode
        why = f"signal {-code}, as for too little memory" if code is not None and code < 0 else f"code {code}"
        return ModelError(f"the process of {self._name} ended by itself ({why}); leave it out, or look above")


class Idling:
    """Measures the processor time that a process spends between two calls, where it should spend none."""

    def __init__(self) -> None:
        self.seconds = self.spent = 0.0
        self._since: tuple[float, float] | None = None

    def begin(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def end(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since[0]
            self.spent += time.process_time() - self._since[1]

    @property
    def share(self) -> float:
        """Of one processor."""
        return self.spent / self.seconds if self.seconds else 0.0


def _serve(pipe: Connection, make: bytes, num_threads: int) -> None:
    """The other end: makes the object and answers until the pipe closes."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    torch.set_num_threads(num_threads)
    made: list[Any] = []
    if not _answer(pipe, lambda: made.append(pickle.loads(make)())):
        return
    idling = Idling()
    while True:
        idling.begin()
        try:
            method, arguments = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        idling.end()
        if method == IDLE_SHARE:
            _answer(pipe, lambda: idling.share)
        else:
            _answer(pipe, partial(getattr(made[0], method), *arguments))


def _answer(pipe: Connection, call: Callable[[], Any]) -> bool:
    """Send what a call returns, or its error; whether it went well."""
    try:
        found = call()
    except HastenError as problem:
        kind, found = "error", problem
    except Exception as problem:
        traceback.print_exc()
        name = multiprocessing.current_process().name.removeprefix("hasten ")
        kind, found = "error", ModelError(f"{name} failed: {type(problem).__name__}: {problem}")
    else:
        kind = "value"
    pipe.send_bytes(pickle.dumps((kind, found)))
    return kind == "value"
