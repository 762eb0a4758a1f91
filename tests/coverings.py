"""Products of parameters, of which the suite runs a part in which every value meets several others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def some_of(every: int, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test over the product of some axes; all but every ``every``-th combination is slow.

    Combinations are chosen by the sum of their places along the axes, so that a value of one axis meets the
    values of another in turn, and each of them somewhere, as long as there are enough.
    """
    values = [list(axis) for axis in axes.values()]
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in values)):
        case = [axis[place] for axis, place in zip(values, places, strict=True)]
        marks = [pytest.mark.slow] if sum(places) % every else []
        cases.append(pytest.param(*case, marks=marks))
    return pytest.mark.parametrize(tuple(axes), cases)
