"""Who waits for code to be compiled is told what for, once, and how long it took."""

from __future__ import annotations

import logging

import numba

from hasten.models.forwards.compiled.messages import announced


def test_what_is_compiled_is_said_once_with_its_time(caplog):
    @numba.njit
    def inner(x):
        return x + 1

    @numba.njit
    def outer(x):
        return inner(x) * 2

    with caplog.at_level(logging.WARNING, logger="hasten"), announced("the forward pass in bfloat16"):
        assert outer(1) == 4
        assert outer(1.5) == 5
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("compiling the forward pass in bfloat16 for this CPU, once")
    assert said[1].startswith("compiled the forward pass in bfloat16 in ")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hasten"), announced("the forward pass in bfloat16"):
        assert outer(2) == 6
    assert not caplog.records
