"""What the passes of a model cost here: measured before the first draft, kept from run to run.

A few short passes are timed, for two seconds at most, when a model first drafts on a machine; what is found,
and what later passes took, is kept in a small file in the user's cache directory (``XDG_CACHE_HOME``, by
default ``~/.cache``, there ``hasten/prices``). Without the file, or where it cannot be written, passes are
timed again. A wrong file costs speed for a few steps, and no text depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.errors import ConfigError, WriteError
from hasten.files import write_text
from hasten.models.target import Target
from hasten.policies import ForwardCost, PromptPrices

_VERSION = 2
_SECONDS = 2.0
_ROWS = (1, 2, 8, 16, 4, 32, 64)
"""The first say most."""
_ROUNDS = 3
_CONTEXT = 64
_TOP_K, _FEW = 8, 4
_PROMPT_FIELDS = ("token_ms", "first_ms", "position_ms")
_HELD = 1.5
"""Prices that are off by more than this factor are measured anew."""
_KEPT_EVERY = 30.0
"""Seconds between two writes."""


class Prices:
    """The cost of a target's passes, from the file or measured, and back into the file now and then."""

    def __init__(self, target: Target) -> None:
        self.cost = ForwardCost()
        self._path = _directory() / f"{_key(target)}.json"
        self._written = time.monotonic()
        if not self._read() or not still_hold(target, self.cost):
            self.cost = ForwardCost()
            measure(target, self.cost)
            self.cost.of_prompts = measure_prompts(target)
            self._write()

    def keep(self) -> None:
        """Called after texts were written; costs nothing most times."""
        if time.monotonic() - self._written >= _KEPT_EVERY:
            self._write()

    def _read(self) -> bool:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["version"] != _VERSION:
                return False
            self.cost.restore(kept["passes"])
            prompts = kept["prompts"]
            if prompts is not None:
                self.cost.of_prompts = PromptPrices(*(float(prompts[name]) for name in _PROMPT_FIELDS))
        except (OSError, ValueError, LookupError, TypeError, ConfigError):
            return False  # none, or none of ours: as if it was never there
        return self.cost.is_known

    def _write(self) -> None:
        """Where there is no room or no right to write, the next run measures again."""
        self._written = time.monotonic()
        prompts = self.cost.of_prompts
        kept = {
            "version": _VERSION,
            "passes": self.cost.state(),
            "prompts": None if prompts is None else asdict(prompts),
        }
        with suppress(WriteError):
            write_text(self._path, json.dumps(kept), "prices")


def still_hold(target: Target, cost: ForwardCost) -> bool:
    """Whether a few passes take about what they did: what a busy machine measured is not to be kept.

    Prices of passes that no text pays for any more would never be corrected.
    """
    now = ForwardCost()
    measure(target, now, seconds=0.0)
    rows = np.array([1, 2])
    share = now(rows, _CONTEXT) / cost(rows, _CONTEXT)
    return bool(((share > 1 / _HELD) & (share < _HELD)).all())


def measure(target: Target, cost: ForwardCost, seconds: float = _SECONDS) -> None:
    """Time passes of several sizes after a short text, the most telling ones first, for so long at most.

    One row and two are always timed; a size that the time left would not suffice for is left out.
    """
    limit = target.max_length or 2**30
    context = min(_CONTEXT, limit // 2)
    if target.max_length is not None and limit < 4:
        return
    prompt = np.random.default_rng(0).integers(0, target.vocab_size, context).tolist()
    with target.undisturbed():
        session = target.open()
        session.prefill([prompt])
        target.time_pass(session, 1)  # the first touches memory for the first time
        started, length = time.perf_counter(), context + 1  # every pass keeps its root
        for rows in _sizes(_ROUNDS):
            if length + rows - 1 > limit:
                continue
            left = seconds - (time.perf_counter() - started)
            expected = float(cost(np.array([rows]), context)[0]) / 1000 if cost.is_known else 0.0
            if rows > 2 and expected > left:
                continue
            length += 1
            found, milliseconds = target.time_pass(session, rows)
            cost.observe(found, milliseconds, context)


def measure_prompts(target: Target) -> PromptPrices | None:
    """Cache a short prompt without candidates, with those of a few positions, and with those of all.

    None for a context too short to tell.
    """
    size = min(_CONTEXT, (target.max_length or _CONTEXT + 1) - 1)
    if size < _FEW * 2:
        return None
    prompt = np.random.default_rng(0).integers(0, target.vocab_size, size + 1).tolist()
    asked = {0: 0, _FEW: _TOP_K, size: _TOP_K}
    spent = {}
    with target.undisturbed():
        for count in (0, *asked):  # the first touches memory for the first time
            start = time.perf_counter()
            target.open().prefill([prompt], asked[count], [np.arange(size - count, size)])
            target.synchronize()
            spent[count] = 1000 * (time.perf_counter() - start)
    few, every = (max(0.0, spent[count] - spent[0]) for count in (_FEW, size))
    position_ms = max(0.0, every - few) / (size - _FEW)
    return PromptPrices(spent[0] / size, max(0.0, few - _FEW * position_ms), position_ms)


def _sizes(rounds: int) -> Iterator[int]:
    for repeat in range(rounds):
        yield from (rows for rows in _ROWS if repeat == 0 or rows <= 32)


def _key(target: Target) -> str:
    """The same for equal models run the same way on the same machine."""
    facts: list[Any] = [
        target.architecture,
        target.num_bytes(),
        target.vocab_size,
        target.max_length,
        str(target.dtype),
        target.pass_kind,
        torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else _processor(),
        torch.get_num_threads(),
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} x {os.cpu_count()}"
    return f"{platform.machine()} {platform.processor()} x {os.cpu_count()}"


def _directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # relative ones are to be ignored, the specification says
        root = os.path.expanduser("~/.cache")
    return Path(root) / "hasten" / "prices"
