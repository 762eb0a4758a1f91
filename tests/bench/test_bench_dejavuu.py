"""The peer dejavuu writes transformers' text on the model it is given, or says how to install it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from hasten.bench.baselines import BASELINES
from hasten.bench.methods import TransformersMethod
from hasten.bench.models import load_stock
from hasten.bench.peers import dejavuu
from hasten.bench.programs import given
from hasten.core import SamplingParams
from hasten.errors import MissingExtra


@pytest.fixture(scope="module")
def stock() -> Any:
    return load_stock("demo", dtype="float32", device="cpu", shape=None)


@pytest.mark.parametrize("name", ["dejavuu", "dejavuu-token-recycling", "dejavuu-pld-chain"])
def test_it_writes_the_text_of_transformers(stock: Any, name: str) -> None:
    pytest.importorskip("dejavuu")
    method = BASELINES[name].make(name, given(stock, None))
    prompt = stock[1]("User: I want to book a table.\nAssistant:")["input_ids"]
    params = SamplingParams(max_new_tokens=24)
    found = method.answer([prompt], params)
    expected = TransformersMethod("hf", *stock).answer([prompt], params)
    assert found.token_ids == expected.token_ids
    assert found.num_passes <= expected.num_passes
    assert found.prefill_seconds is not None
    assert found.milliseconds is not None
    assert sum(found.milliseconds.values()) / 1000 + found.prefill_seconds == pytest.approx(found.seconds)
    sampled = SamplingParams(max_new_tokens=12, temperature=0.8, seed=3)
    first, second = (method.answer([prompt], sampled).token_ids for _ in range(2))
    assert first == second


def test_what_it_learnt_is_forgotten_at_a_start(stock: Any) -> None:
    pytest.importorskip("dejavuu")
    method = BASELINES["dejavuu-suffix-decoding"].make("dejavuu", given(stock, None))
    prompt, params = torch.arange(5, 40).tolist(), SamplingParams(max_new_tokens=24)
    passes = []
    for _ in range(2):
        method.start([prompt], params)
        passes += [method.answer([prompt], params).num_passes for _ in range(2)]
    assert passes[:2] == passes[2:]
    assert passes[1] < passes[0]


def test_without_the_package_it_says_how_to_get_it(stock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dejavuu", None)
    dejavuu._library.cache_clear()
    with pytest.raises(MissingExtra, match="pip install --ignore-requires-python"):
        BASELINES["dejavuu"].make("dejavuu", given(stock, None))
