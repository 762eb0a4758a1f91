"""Moving averages: of a value, of a value that grows with rows, and of what promises were worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_RATE = 0.1
_KEPT = 0.95
"""Of the weight of earlier samples, a step later."""
_FADING = 0.98
_SPIKE = 4.0
"""A sample counts at most as so many times what was expected: one pause says nothing of the next step."""


class Mean:
    """Follows a value; ``first`` before there is one."""

    def __init__(self, first: float = 0.0) -> None:
        self.value = first
        self._is_known = False

    def observe(self, value: float) -> None:
        if self._is_known:
            self.value += _RATE * (min(value, _SPIKE * self.value or value) - self.value)
        else:
            self.value, self._is_known = value, True


class Line:
    """y = a + b x with a, b >= 0, by least squares over the last few dozen samples; 0 before the first."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # weights, x, y, x x, x y
        self._slope = self._offset = 0.0

    @property
    def is_known(self) -> bool:
        return bool(self._sums[0])

    def observe(self, x: float, y: float) -> None:
        if self._sums[0] > 2:
            y = min(y, _SPIKE * float(self(np.array([x]))[0]) or y)
        self._sums = _KEPT * self._sums + np.array([1.0, x, y, x * x, x * y])
        weight, sum_x, sum_y, sum_xx, sum_xy = self._sums.tolist()
        mean_x, mean_y = sum_x / weight, sum_y / weight
        spread = sum_xx / weight - mean_x**2
        slope = (sum_xy / weight - mean_x * mean_y) / spread if spread > 1e-3 * mean_x**2 else 0.0
        self._slope = min(max(slope, 0.0), mean_y / mean_x if mean_x else 0.0)
        self._offset = mean_y - self._slope * mean_x

    def forget(self) -> None:
        """A step without a sample: what is known fades, so that a few dear samples do not stand for ever."""
        self._sums[[2, 4]] *= _FADING
        self._slope *= _FADING
        self._offset *= _FADING

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._offset + self._slope * np.asarray(x, np.float64)
        return found


class Trust:
    """What promised acceptances were worth, accepted over expected, of the last dozen drafts.

    Where nothing is drafted for long, what was known fades: a drafter that was once wrong is tried again.
    """

    _DOUBT = 1.0  # accepted tokens that a promise without evidence is worth, as promised
    _MOST = 1.25
    _AFTER_PROMISE, _AFTER_SILENCE = 0.9, 0.98

    def __init__(self) -> None:
        self._promised = self._kept = self._open = 0.0

    @property
    def share(self) -> float:
        return min(self._MOST, (self._kept + self._DOUBT) / (self._promised + self._DOUBT))

    def promise(self, expected: float) -> None:
        self._open = expected

    def keep(self, num_accepted: float) -> None:
        rate = self._AFTER_PROMISE if self._open else self._AFTER_SILENCE
        self._promised = rate * self._promised + self._open
        self._kept = rate * self._kept + num_accepted
        self._open = 0.0

    def forget(self) -> None:
        """A step without a promise."""
        self._promised *= self._AFTER_SILENCE
        self._kept *= self._AFTER_SILENCE
