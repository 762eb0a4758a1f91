"""Rows that join, leave, change places and fork between passes have the logits of their texts alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adversaries import VOCAB
from conftest import ARCHITECTURES, build_model, finest_dtype
from hasten.core import SamplingParams
from hasten.models.encoder_decoder.target import Seq2SeqLM
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.graphs import GraphedForward
from hasten.models.probe import SESSIONS
from hasten.models.sessions.shared_prefix import SharedPrefixSession
from hasten.models.sessions.slot_cache import SlotLayer
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.requests import Requests
from histories import BEGINNINGS, RunningRows
from recordings import TapeRecorder
from seq2seq_models import build_seq2seq


def plain_passes(forward):
    plain = forward.plain_passes()

    def logits(text, row):
        return plain(np.asarray([text]), np.arange(len(text))[None], None, None)[0][-1]

    return logits


def batch_of(forward, open_session, tolerance=None):
    exact = forward.dtype == torch.float64 and forward.config.model_type == "llama"
    tolerance = tolerance or (1e-9 if exact else 3e-4)
    return RunningRows(lambda prompts: open_session(forward), plain_passes(forward), tolerance)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-sliding", "gemma2"])
def test_rows_of_trees(targets, name, seed):
    forward = targets(name, finest_dtype(name)).forward
    batch = batch_of(forward, lambda forward: TreeSession(forward, max_holes=4))
    batch.wander(seed)
    assert batch.num_forked
    assert batch.num_restored


@pytest.mark.parametrize("name", [name for name, (_, _, mode) in ARCHITECTURES.items() if mode != "tree"])
def test_rows_of_chains(targets, name):
    forward = targets(name, finest_dtype(name)).forward
    batch_of(forward, SESSIONS[ARCHITECTURES[name][2]], 1e-4).wander(2)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compiled_rows(name):
    forward = prepare(build_model(name), "compiled").forward
    batch_of(forward, TreeSession, 1e-30).wander(3)  # the same bits


def test_recorded_rows_stay_in_their_arena():
    model = build_model("llama", torch.float64)
    forward = GraphedForward(model, TapeRecorder())
    batch = batch_of(forward, TreeSession)
    batch.wander(4)
    assert not forward.why_not


def test_rows_that_shared_a_prefix(targets):
    forward = targets("llama", torch.float64).forward
    batch = batch_of(
        forward, lambda forward: SharedPrefixSession(forward, lambda: True, min_prefix=1, min_saved=1)
    )
    for seed in range(4):
        batch.session, batch.texts = batch.open_session([]), []
        batch.wander(seed)


@pytest.mark.parametrize("name", ["t5", "t5gemma"])
def test_rows_that_read_other_sources(name):
    target = Seq2SeqLM(build_seq2seq(name))
    target.forward.text_config.pad_token_id = VOCAB  # a plain pass of t5gemma does not look at written ones
    requests = Requests(target, None)
    sources = {prompt[0]: [3 + prompt[0], 4, *range(5, 5 + len(prompt))] for prompt in BEGINNINGS}

    def open_session(prompts):
        if not prompts:
            return target.open()
        read = [sources[prompt[0]] for prompt in prompts]
        return target.open([job.sequence for job in requests.jobs(read, SamplingParams(), None)])

    def plain(text, row):
        bound = target.forward.bind([sources[text[0]]])
        return bound(np.asarray([text]), np.arange(len(text))[None], None, None)[0][-1]

    RunningRows(open_session, plain, 1e-3).wander(5)


def test_this_must_fail_rows_that_see_the_slots_of_wider_ones(targets, monkeypatch):
    join = TreeSession.join

    def careless(session, other):
        join(session, other)
        session._table.visible[:] = True

    monkeypatch.setattr(TreeSession, "join", careless)
    with pytest.raises(AssertionError):
        batch_of(targets("llama", torch.float64).forward, TreeSession).wander(0)


def test_rows_join_in_the_memory_that_is_there():
    """Only the rows that come are copied; a row that leaves makes room for another one."""
    layer, other = SlotLayer(), SlotLayer()
    for each, rows in ((layer, 4), (other, 1)):
        each.allocate(rows, 2, 8, 8, dtype=torch.float32, device="cpu")
        each.update(torch.randn(rows, 2, 3, 8), torch.randn(rows, 2, 3, 8))
    layer.join(other, 4, 1)
    place = layer.key_buffer.data_ptr()
    kept = layer.keys.clone()
    layer.select(torch.tensor([0, 1, 4]))
    torch.testing.assert_close(layer.keys, kept[[0, 1, 4]])
    layer.join(other, 3, 1)
    layer.join(other, 4, 1)
    assert layer.key_buffer.data_ptr() == place
    torch.testing.assert_close(layer.keys[:3], kept[[0, 1, 4]])
    assert all(torch.equal(row, other.keys[0]) for row in layer.keys[3:])
