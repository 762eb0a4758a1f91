"""Without llama.cpp: what to do about it."""

from __future__ import annotations

import sys

import pytest

from hasten.errors import MissingExtra
from hasten.models.llamacpp.interface import bindings


def test_the_error_says_what_compiling_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(
        MissingExtra, match=r"hasten\[llamacpp\].*a C\+\+ compiler and CMake.*LLAMA_CPP_LIB_PATH"
    ):
        bindings.__wrapped__()
