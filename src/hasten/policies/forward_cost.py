"""What a pass costs, by its rows and by the context they look at, before it is paid.

The time of a pass is taken to be a curve over its rows times a factor for its surroundings: how many
sequences lie side by side, and how long their texts are, in octaves. Both are fitted to the medians of the
passes that were run, and what was run often at one place is believed more than the fit. So one plain pass
after a long prompt already tells what larger passes cost there.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ConfigError
from hasten.policies.prompt_rows import PromptPrices

_ROW_SHARE = 0.02
"""What one more row is believed to add to a pass of one row until it was measured."""
_MEMORY = 9
_KEPT_WEIGHT = 3
"""Passes that a median of an earlier run counts as: enough to go by, soon outvoted."""
_SHORTEST = 64
"""Contexts below are all alike."""
_TOWARDS_ONE = 0.01
"""Passes that say that surroundings make no difference."""
_FITTED_EVERY = 16
_SURPRISE = 1.2
"""Fitted anew after so many passes, and at once after one that far from what was known of its place."""

Place = tuple[int, int, int]
"""sequences, rows, octave of the context"""


@dataclass(slots=True)
class _Fit:
    """t = curve(rows) * factor of (sequences, octave) * correction of the place."""

    rows: NDArray[np.float64]
    curve: NDArray[np.float64]
    factors: dict[tuple[int, int], float] = field(default_factory=dict)
    corrections: dict[Place, float] = field(default_factory=dict)


class ForwardCost:
    """t(rows, context, sequences), in milliseconds."""

    def __init__(self) -> None:
        self._samples: dict[Place, deque[float]] = {}
        self._surroundings: set[tuple[int, int]] = set()
        self._fit: _Fit | None = None
        self._num_unfitted = 0
        self.most_rows = 0
        """of the passes that were run"""
        self.of_prompts: PromptPrices | None = None

    def observe(self, num_rows: int, milliseconds: float, context: float = 0, batch: int = 1) -> None:
        """A pass took that long. ``num_rows`` are those of all sequences together, padding included.

        context: tokens a sequence had in its cache, on average.
        """
        place = batch, _knot(num_rows), octave(context)
        is_new = place not in self._samples
        is_surprise = is_new or not (
            1 / _SURPRISE < milliseconds / statistics.median(self._samples[place]) < _SURPRISE
        )
        self._add(place, [milliseconds])
        self._num_unfitted += 1
        if is_surprise or self._num_unfitted >= _FITTED_EVERY:
            self._fit = None

    def _add(self, place: Place, times: Sequence[float]) -> None:
        self._samples.setdefault(place, deque(maxlen=_MEMORY)).extend(times)
        self._surroundings.add((place[0], place[2]))
        self.most_rows = max(self.most_rows, place[1])

    @property
    def is_known(self) -> bool:
        return bool(self._samples)

    def is_measured(self, context: float, batch: int = 1) -> bool:
        """Whether any pass of that many sequences was run after about that much text."""
        return (batch, octave(context)) in self._surroundings

    def __call__(
        self, num_rows: NDArray[np.integer] | NDArray[np.floating], context: float = 0, batch: int = 1
    ) -> NDArray[np.float64]:
        """float64, one a row count."""
        wanted = np.asarray(num_rows, np.float64)
        if not self._samples:
            return _prior(wanted)
        if self._fit is None:
            self._fit, self._num_unfitted = self._fitted(), 0
        fit = self._fit
        times = _along(fit.rows, fit.curve, wanted) * _factor(fit, batch, octave(context))
        if fit.corrections:
            size = octave(context)
            found = (fit.corrections.get((batch, _knot(rows), size), 1.0) for rows in wanted.tolist())
            times = times * np.fromiter(found, np.float64, len(wanted))
        return times

    def state(self) -> list[list[float]]:
        """JSON-ready: sequences, rows, octave and median of every place."""
        return [[*place, round(statistics.median(times), 4)] for place, times in self._samples.items()]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Start from what an earlier run found; passes run since then count more. Raises ConfigError."""
        samples = {}
        for entry in state:
            if len(entry) != 4 or not all(isinstance(value, int | float) for value in entry):
                raise ConfigError(f"{entry!r} is no cost of a pass")
            batch, rows, size, median = entry
            if not (batch >= 1 and rows >= 1 and size >= 0 and 0 < median < math.inf):
                raise ConfigError(f"{entry!r} is no cost of a pass")
            samples[int(batch), int(rows), int(size)] = [float(median)] * _KEPT_WEIGHT
        for place, times in samples.items():
            newer = list(self._samples.pop(place, ()))
            self._add(place, [*times, *newer])
        self._fit = None

    def _fitted(self) -> _Fit:
        """By least squares of the logarithms; what cannot be told apart is the curve's."""
        places = list(self._samples)
        medians = np.log([statistics.median(times) for times in self._samples.values()])
        weights = np.array([len(times) for times in self._samples.values()], np.float64)
        knots, knot_of = np.unique([_coarse(rows) for _, rows, _ in places], return_inverse=True)
        groups = {group: index for index, group in enumerate(sorted(self._surroundings))}
        group_of = np.array([groups[batch, size] for batch, _, size in places])
        design = np.zeros((len(places), len(knots) + len(groups)))
        design[np.arange(len(places)), knot_of] = 1
        design[np.arange(len(places)), len(knots) + group_of] = 1
        prior = np.repeat([0.0, _TOWARDS_ONE], [len(knots), len(groups)])
        normal = design.T @ (weights[:, None] * design) + np.diag(prior)
        fitted = np.linalg.solve(normal, design.T @ (weights * medians))
        left = (medians - design @ fitted) * weights / (weights + 1)
        rows = np.log([float(place[1]) for place in places])
        rows = np.bincount(knot_of, weights * rows) / np.bincount(knot_of, weights)
        return _Fit(
            np.exp(rows),
            np.exp(fitted[: len(knots)]),
            dict(zip(groups, np.exp(fitted[len(knots) :]).tolist(), strict=True)),
            dict(zip(places, np.exp(left).tolist(), strict=True)),
        )


def octave(context: float) -> int:
    """0 up to 127 tokens, 1 up to 255, and so on."""
    return int(math.log2(max(context, _SHORTEST) / _SHORTEST))


def _knot(num_rows: float) -> int:
    """Every count up to 32 is a place of its own, as kernels work in blocks of 6, 8 or 16 rows."""
    return int(num_rows) if num_rows <= 32 else 8 * math.ceil(num_rows / 8)


def _coarse(num_rows: int) -> int:
    return math.ceil(math.log2(num_rows))


def _prior(num_rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 + _ROW_SHARE * num_rows


def _along(
    rows: NDArray[np.float64], times: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Between measured row counts in proportion, outside as the prior has it."""
    inside = np.interp(wanted, rows, times)
    outside = np.clip(wanted, rows[0], rows[-1])
    found: NDArray[np.float64] = inside * _prior(wanted) / _prior(outside)
    return found


def _factor(fit: _Fit, batch: int, size: int) -> float:
    """That of the place, or of the nearest contexts of as many sequences, or of whatever is known."""
    known = fit.factors.get((batch, size))
    if known is not None:
        return known
    near = {octaves: factor for (sequences, octaves), factor in fit.factors.items() if sequences == batch}
    if not near:
        near = {octaves: factor for (_, octaves), factor in fit.factors.items()}
    sizes = sorted(near)
    return float(np.exp(np.interp(size, sizes, np.log([near[one] for one in sizes]))))
