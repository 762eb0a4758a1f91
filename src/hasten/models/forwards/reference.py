"""What a model computes before its weights are laid out anew, to compare with what it computes afterwards.

In 16 bits the model itself is only near to what its weights say, so both are measured by their distance from
a pass in float32 (full_precision.py): what is laid out anew may not be much farther away than the model was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hasten.models.forwards.forward import Forward
from hasten.models.forwards.full_precision import FullPrecision
from hasten.models.sessions.attention import short_windows

if TYPE_CHECKING:
    from hasten.models.forwards.compiled.executor import CompiledForward

_TOKENS = 16
_ALLOWED = 1e-3
"""of the norm of all logits: many times the rounding of float32, far less than a wrong connection makes"""
_COMPILED_TIMES, _MODULES_TIMES = 2.0, 3.0
"""as far from float32 as the model itself is may compiled passes be, and modules over weights laid out anew;
right ones are 0.4 to 0.8 and 0.8 to 1.3 times as far (docs/log.md)"""
_ROUNDING = 0.02
"""what rounding is taken for where 16 bits cannot be computed in float32"""
_log = logging.getLogger("hasten")


class Reference:
    """Logits of a short text, which windows are shorter than, as the model itself computes them; and how long
    it takes for them.

    Args:
        passes: what runs the modules of the model as they are at the time.
    """

    def __init__(self, passes: Callable[[], Forward]) -> None:
        forward = passes()
        limit = getattr(forward.text_config, "max_position_embeddings", None) or -1  # XLNet says -1
        size = min(_TOKENS, limit) if limit > 0 else _TOKENS
        self._passes = passes
        self._token_ids = np.random.default_rng(0).integers(0, forward.vocab_size, (1, size))
        self._positions = np.arange(size)[None]
        own, self._seconds = _second_run(self._run)
        self._logits, self._own_distance = self._exact(own, forward.dtype)

    def _run(self) -> torch.Tensor:
        forward = self._passes()
        with short_windows(forward.text_config):
            return forward(self._token_ids, self._positions, None, None).float()

    def _exact(self, own: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
        """(logits to compare with, how far from them rounding takes one), from those of the model itself."""
        if torch.finfo(dtype).eps < 1e-5:
            return own, 0.0
        try:
            with FullPrecision():
                logits = self._run()
        except Exception as problem:
            _log.info("this model cannot be computed in float32 (%s): rounding is allowed for", problem)
            return own, _ROUNDING
        return logits, _distance(own, logits)

    def compare(self, forward: CompiledForward) -> tuple[str, float]:
        """(what is wrong with the logits, or "", and how many times as fast a compiled pass is)

        Wrong may be those of the compiled pass, and those of the modules that read the tiles.
        """
        compiled = forward.plain_passes()
        with forward.undisturbed(), short_windows(forward.text_config):
            logits, seconds = _second_run(lambda: compiled(self._token_ids, self._positions))
        why_not = self._judge("logits", logits, _COMPILED_TIMES) or self.check(
            "logits of its modules over tiles"
        )
        return why_not, self._seconds / seconds

    def check(self, whose: str = "logits") -> str:
        """What is wrong with the logits of the modules as they are now, or ""."""
        return self._judge(whose, self._run(), _MODULES_TIMES)

    def _judge(self, whose: str, found: torch.Tensor, times: float) -> str:
        error, allowed = _distance(found, self._logits), max(_ALLOWED, times * self._own_distance)
        if error <= allowed:  # NaN is wrong
            return ""
        return f"{whose} differ by {error:.2g} of their norm ({allowed:.2g} is allowed)"


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of logits [batch, positions, vocab]: relative, L2 over the tokens, the mean of all positions.

    The largest of many differences says how many there are; a sum over positions hears the loudest alone.
    """
    errors = (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
    return float(errors.mean())


def _second_run(run: Callable[[], Any]) -> tuple[torch.Tensor, float]:
    """What it gives, and its seconds: in the first one, memory is touched for the first time."""
    run()
    start = time.perf_counter()
    return run(), time.perf_counter() - start
