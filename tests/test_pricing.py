"""What passes cost is measured once, kept, and never needed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from hasten import files
from hasten.core import SamplingParams
from hasten.models.sessions.tree_session import TreeSession
from hasten.policies import ForwardCost
from hasten.text import pricing
from hasten.text.pricing import Prices, measure, still_hold

PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)


@pytest.fixture
def kept_in(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hasten" / "prices"


@pytest.fixture
def measured(monkeypatch):
    """How often passes were timed."""
    calls = []
    monkeypatch.setattr(
        pricing, "measure", lambda target, cost: calls.append(target) or measure(target, cost)
    )
    monkeypatch.setattr(pricing, "still_hold", lambda target, cost: True)
    return calls


def test_passes_are_timed_when_something_is_first_drafted_and_never_again(models, kept_in, measured):
    lm = models()
    lm.generate([5, 6, 7], PARAMS, drafter="off")
    lm.generate([5, 6, 7], PARAMS, drafter="suffix", num_draft_tokens=3)
    assert not measured
    for _ in range(2):
        lm.generate([5, 6, 7], PARAMS, drafter="suffix")
    assert len(measured) == 1
    [path] = kept_in.iterdir()
    assert Prices(lm.target).cost.state() == json.loads(path.read_text())["passes"]
    assert len(measured) == 1


def test_what_later_passes_took_is_kept_now_and_then(models, kept_in, monkeypatch):
    prices = Prices(models().target)
    [path] = kept_in.iterdir()
    before = path.read_text()
    for _ in range(9):
        prices.cost.observe(5, 1234.0, 3000)
    prices.keep()
    assert path.read_text() == before
    monkeypatch.setattr(pricing, "_KEPT_EVERY", 0.0)
    prices.keep()
    assert [1, 5, 5, 1234.0] in json.loads(path.read_text())["passes"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 1}', '{"version": 0, "passes": [[1, 1, 0, 5.0]]}',
             '{"version": 1, "passes": [[1, 1, 0, -5.0]]}', '{"version": 1, "passes": 7}', "\udcff"]
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_measured_anew(models, kept_in, measured, text):
    target = models().target
    Prices(target)
    [path] = kept_in.iterdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert Prices(target).cost.is_known
    assert len(measured) == 2
    assert json.loads(path.read_text())["passes"]


def test_models_and_ways_to_run_them_have_files_of_their_own(models, kept_in):
    for name in ("llama", "gemma3", "llama"):
        Prices(models(name).target)
    assert len(list(kept_in.iterdir())) == 2


def test_where_nothing_can_be_written_texts_are_the_same(models, kept_in, measured):
    kept_in.parent.mkdir(parents=True)
    kept_in.write_text("a file where the folder should be")
    lm = models()
    plain = lm.generate([5, 6, 7], PARAMS, drafter="off").token_ids
    assert lm.generate([5, 6, 7], PARAMS, drafter="suffix").token_ids == plain
    assert len(measured) == 1
    assert kept_in.read_text() == "a file where the folder should be"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_leaves_nothing_behind(models, kept_in, monkeypatch):
    write = files._write
    monkeypatch.setattr(files, "_write", lambda path, text: write("/dev/full", text))
    assert Prices(models().target).cost.is_known
    assert list(kept_in.iterdir()) == []


def test_relative_cache_folders_are_ignored_as_the_standard_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pricing._directory() == tmp_path / ".cache" / "hasten" / "prices"


def test_timing_ends_when_its_time_is_up(models, monkeypatch):
    clock = iter(np.arange(0, 10**6, 0.3))
    monkeypatch.setattr(pricing.time, "perf_counter", lambda: float(next(clock)))
    cost = ForwardCost()
    measure(models().target, cost, seconds=1.0)
    assert {rows for _, rows, _ in cost._samples} == {1, 2}


def test_short_contexts_are_not_exceeded(models):
    target = models().target
    target.forward.text_config.max_position_embeddings, before = 24, target.max_length
    try:
        cost = ForwardCost()
        measure(target, cost)
        assert {rows for _, rows, _ in cost._samples} == {1, 2, 4, 8}
    finally:
        target.forward.text_config.max_position_embeddings = before


@pytest.mark.parametrize("limit", [16, 72, 128])
def test_no_timed_pass_leaves_the_context(models, limit):
    """Every pass keeps its root, so that later ones begin further on."""
    target = models().target
    longest = []
    session = TreeSession(target.forward)

    class Watched(type(target)):
        max_length = limit

        def open(self, sequences=()):
            return session

    fit = session.fit

    def watched(tree):
        longest.append(session.num_cached_tokens[0] + 1 + len(tree))
        return fit(tree)

    session.fit = watched
    bounded = Watched(target.forward.model, mode="tree")
    measure(bounded, ForwardCost())
    assert max(longest) <= limit
    longest.clear()
    bounded.measure_cost(repeats=2)
    assert len(longest) > 3
    assert max(longest) <= limit


def test_prices_that_a_busy_machine_measured_are_not_kept(models):
    target, cost = models().target, ForwardCost()
    measure(target, cost)
    for factor in (0.01, 100.0):
        other = ForwardCost()
        for rows in (1, 2, 8):
            milliseconds = factor * float(cost(np.array([rows]), 64)[0])
            other.observe(rows, milliseconds, 64)
        assert not still_hold(target, other)
