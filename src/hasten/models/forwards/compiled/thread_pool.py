"""Threads that run compiled functions side by side and sleep in between."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from operator import call
from typing import Any

Task = Callable[[], Any]


class ThreadPool:
    """``run(function, *arguments)`` calls function(thread, num_threads, *arguments) in every thread at once.

    The functions wait for each other by themselves (machine.barrier): all threads have to come.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._lock = threading.Lock()  # two callers could each hold a thread that the other one waits for
        self._tasks: list[queue.SimpleQueue[Task]] = [queue.SimpleQueue() for _ in range(1, num_threads)]
        for number, tasks in enumerate(self._tasks, 1):
            threading.Thread(target=_work, args=(tasks,), daemon=True, name=f"hasten-{number}").start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        parts = [
            partial(function, thread, self.num_threads, *arguments) for thread in range(self.num_threads)
        ]
        calls: list[Task] = [
            partial(tasks.put, part) for tasks, part in zip(self._tasks, parts[1:], strict=True)
        ]
        with self._lock:
            # Without a bytecode between them: Ctrl-C would leave threads that wait for this one for ever.
            deque(map(call, [*calls, parts[0]]), maxlen=0)  # type: ignore[arg-type]


def thread_pool(num_threads: int) -> ThreadPool:
    """One for all models that use as many threads."""
    return _thread_pool(num_threads, os.getpid())


@cache
def _thread_pool(num_threads: int, process: int) -> ThreadPool:
    """Threads do not survive a fork, so each process has its own."""
    return ThreadPool(num_threads)


def _work(tasks: queue.SimpleQueue[Task]) -> None:
    while True:
        tasks.get()()
