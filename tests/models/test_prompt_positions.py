"""Candidates of some positions of a prompt are those that all positions would have had there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiled_models import compiled
from conftest import build_model
from hasten.models.causal_lm import CausalLM
from hasten.models.forwards.forward import Forward
from hasten.models.llamacpp.target import GgufLM
from hasten.models.sessions.shared_prefix import SharedPrefixSession
from hasten.models.sessions.tree_session import TreeSession

COMMON = [11, 12, 13, 14, 15, 16]
PROMPTS = [
    [5],
    [*COMMON, 7, 8, 9, 10, 11],
    [20, 21, 22],
    [*COMMON, 7, 8, 9, 10, 11],
    [*COMMON, 30],
    [40, 41, 42, 43],
]
POSITIONS = [np.array(one, np.int64) for one in ([], [0, 3, 9], [1], [0, 3, 9], [5], [])]


def check(open_session, prompts=PROMPTS, positions=POSITIONS):
    every = open_session().prefill(prompts, top_k=3)
    found = open_session().prefill(prompts, top_k=3, positions=positions)
    for all_of_one, some, wanted in zip(every, found, positions, strict=True):
        if not len(wanted):
            assert some is None
            continue
        assert some.positions.tolist() == wanted.tolist()
        assert np.array_equal(some.token_ids, all_of_one.token_ids[wanted])
        np.testing.assert_allclose(some.probs, all_of_one.probs[wanted], atol=1e-5)
    nothing = [np.empty(0, np.int64)] * len(prompts)
    assert not any(open_session().prefill(prompts, top_k=3, positions=nothing))


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("prefill", ["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_in_packed_and_padded_rows(targets, monkeypatch, name, prefill, chunk):
    monkeypatch.setattr("hasten.models.sessions.tree_session.PREFILL_CHUNK", chunk)
    forward = targets(name, torch.float64).forward
    check(lambda: TreeSession(forward, prefill=prefill))
    for one in range(1, 5):
        check(lambda one=one: TreeSession(forward), PROMPTS[one : one + 1], POSITIONS[one : one + 1])


@pytest.mark.parametrize("name", ["bloom-alibi", "lfm2-hybrid", "rwkv", "mamba-recurrent"])
def test_in_chains(targets, monkeypatch, name):
    monkeypatch.setattr("hasten.models.sessions.chain_session.PREFILL_CHUNK", 4)
    check(targets(name).open)


def test_over_a_shared_prefix(targets):
    forward = targets("llama", torch.float64).forward
    rows = [1, 3, 4]
    check(
        lambda: SharedPrefixSession(forward, lambda: True, min_prefix=1, min_saved=1),
        [PROMPTS[row] for row in rows],
        [np.array(one, np.int64) for one in ([0, 3, 9], [0, 3, 9], [0, 3])],
    )


def test_in_one_compiled_pass():
    forward = compiled("llama")
    check(lambda: TreeSession(forward))


def test_of_a_model_that_always_gives_all_logits():
    class Stubborn(Forward):
        def __init__(self, model):
            super().__init__(model)
            self._takes_logits_to_keep = False

    forward = Stubborn(build_model("llama").double().eval())
    check(lambda: TreeSession(forward))


def test_no_logits_are_computed_that_nobody_asked_for(targets, monkeypatch):
    forward = targets("llama").forward
    kept = []
    run = Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda *call: kept.append(call[-1]) or run(*call))
    TreeSession(forward).prefill(PROMPTS[1:2], 3, POSITIONS[1:2])
    TreeSession(forward).prefill(PROMPTS[:1] * 2 + PROMPTS[5:], 3, [POSITIONS[0]] * 3)
    assert kept[0].tolist() == [0, 3, 9]
    assert kept[1:] == [1]


def test_on_llama_cpp(gguf_file, monkeypatch):
    pytest.importorskip("llama_cpp")
    target = GgufLM(gguf_file("llama"))
    check(target.open)
    monkeypatch.setattr("hasten.models.llamacpp.session._CANDIDATE_LOGITS", 1)  # several pieces
    check(target.open)


def test_of_an_encoder_decoder_model():
    from hasten.models.encoder_decoder.target import Seq2SeqLM
    from seq2seq_models import build_seq2seq

    target = Seq2SeqLM(build_seq2seq("bart"))
    check(target.open, [PROMPTS[1]], [POSITIONS[1]])
    assert isinstance(target, CausalLM)
