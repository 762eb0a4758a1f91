"""Recorded passes compute what the model computes; on the CPU a tape stands for the GPU's recordings."""

from __future__ import annotations

import gc
import inspect
import logging
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import transformers as hf

import hasten
from adversaries import ADVERSARIES, Adversary, Oracle
from conftest import ARCHITECTURES, BASE, build_model, each_alone, finest_dtype
from hasten.core import Acceptance, SamplingParams
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.draft_lm import load_draft
from hasten.models.forwards import choose as forwards, graphs
from hasten.models.forwards.choose import prepare
from hasten.models.forwards.forward import Forward
from hasten.models.forwards.graphs import MIN_SLOTS, TOKENS, CudaRecorder, GraphedForward
from hasten.models.probe import probe
from hasten.models.sessions.attention import AttentionKinds
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree
from histories import PROMPTS, a_tree, check_step, walk
from recordings import WAITS, TapeRecorder

TREE_MODELS = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree"]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SOURCES = ["suffix", "token-recycling", "lookahead", "draft-chain", "draft-sequoia", "superposed", "auto"]
TEXTS = [[5, 9, 13, 22] * 5, [40], [30, 31, 30, 31, 30, 31, 33, 30, 31]]
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.8, seed=11)


def recorded(name="llama", dtype=None):
    """(forward, its recorder)"""
    recorder = TapeRecorder()
    return GraphedForward(build_model(name, dtype or finest_dtype(name)), recorder), recorder


@pytest.fixture(scope="module")
def writer():
    """A LanguageModel whose passes are replayed, with a draft model, and its recorder."""
    forward, recorder = recorded(dtype=torch.float32)
    target, draft = CausalLM(forward.model, forward=forward), build_model()
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return LanguageModel(
        target, drafter="off", draft=load_draft(draft, target=target, target_tokenizer=None)
    ), recorder


@pytest.mark.parametrize("name", TREE_MODELS)
def test_any_history_gives_the_logits_of_plain_passes(name):
    forward, recorder = recorded(name)
    walk(forward, TreeSession(forward), np.random.default_rng(0), 6)
    assert (forward.why_not, recorder.num_replayed) == ("", 6)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_texts_outgrow_their_arena_and_holes_are_closed(name, monkeypatch):
    monkeypatch.setattr(graphs, "_ARENA_SLOTS", 1)
    monkeypatch.setattr(graphs, "MIN_SLOTS", 16)
    forward, recorder = recorded(name)
    session = TreeSession(forward, max_holes=6)
    texts = walk(forward, session, np.random.default_rng(1), 24)
    assert max(map(len, texts)) > 32
    assert recorder.num_replayed == 24
    [arena] = forward._arenas
    assert arena.capacity > 64


def test_rows_leave_a_batch_and_others_stay():
    forward, recorder = recorded()
    session = TreeSession(forward)
    texts = walk(forward, session, np.random.default_rng(2), 2)
    for rows in ([0, 2], [1]):
        session.select(rows)
        texts = [texts[row] for row in rows]
        check_step(forward, session, texts, [a_tree(np.random.default_rng(row)) for row in rows])
        session.keep([Acceptance([], [33]) for _ in rows])
        texts = [[*text, 33] for text in texts]
    assert recorder.num_replayed == 4


def test_two_sessions_at_once_do_not_share_an_arena_and_later_ones_do():
    forward, recorder = recorded()
    one, other = TreeSession(forward), TreeSession(forward)
    one.prefill([[5, 6, 7]])
    other.prefill([[8, 9, 10]])
    for text, session in ([[5, 6, 7], one], [[8, 9, 10], other], [[5, 6, 7], one]):
        check_step(forward, session, [text], [DraftTree.chain([11, 12])])
    assert len(forward._arenas) == 2
    del one, other, session
    gc.collect()
    before = recorder.num_recorded
    walk(forward, TreeSession(forward), np.random.default_rng(3), 1, prompts=[[5, 6]])
    assert recorder.num_recorded == before
    assert len(forward._arenas) == 1


def test_a_closed_session_gives_its_arena_back_at_once():
    forward, recorder = recorded()
    one, other = TreeSession(forward), TreeSession(forward)
    for session in (one, other):
        session.prefill([[5, 6, 7]])
        check_step(forward, session, [[5, 6, 7]], [DraftTree.chain([11, 12])])
        session.close()
    assert len(forward._arenas) == recorder.num_recorded == 1


def test_rows_that_join_an_empty_session_stay_in_their_arena():
    forward, _ = recorded()
    one, other = TreeSession(forward), TreeSession(forward)
    other.prefill([[5, 6, 7]])
    check_step(forward, other, [[5, 6, 7]], [DraftTree()])
    other.keep([Acceptance([], [9])])
    one.join(other)
    other.prefill([[8, 9, 10]])
    for session, text in ((other, [8, 9, 10]), (one, [5, 6, 7, 9])):
        check_step(forward, session, [text], [DraftTree.chain([11, 12])])
    assert len(forward._arenas) == 2


def test_sizes_are_recorded_once():
    forward, recorder = recorded()
    for count in (0, 2, 5, 7, 0, 3):
        session = TreeSession(forward)
        session.prefill([[5, 6, 7, 8]])
        check_step(forward, session, [[5, 6, 7, 8]], [DraftTree.chain(list(range(10, 10 + count)))])
    assert (recorder.num_recorded, recorder.num_replayed) == (2, 6)


def test_logits_outlive_the_next_pass():
    forward, _ = recorded()
    session = TreeSession(forward)
    session.prefill([[5, 6, 7]])
    [first] = session.forward([DraftTree.chain([4])])
    session.keep([Acceptance([], [8])])
    before = first.clone()
    session.forward([DraftTree.chain([9])])
    assert torch.equal(first, before)


def test_long_passes_and_empty_caches_run_the_modules():
    forward, recorder = recorded()
    session = TreeSession(forward)
    session.prefill([[5, 6, 7]])
    assert recorder.num_recorded == 0
    wide = DraftTree(list(range(90)) + list(range(50)), [-1] * 90 + [0] * 50)
    assert len(wide) + 1 > TOKENS[-1]
    check_step(forward, session, [[5, 6, 7]], [wide])
    assert recorder.num_recorded == 0
    session.keep([Acceptance([3], [3, 9])])
    check_step(forward, session, [[5, 6, 7, 3, 9]], [DraftTree.chain([4])])
    assert recorder.num_replayed == 1


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", [*SOURCES, *ADVERSARIES])
def test_drafts_change_no_token(writer, drafter, params):
    (lm, recorder), before = writer, writer[1].num_replayed
    plain = LanguageModel(CausalLM(build_model()), drafter="off")
    expected = [one.token_ids for one in each_alone(plain, TEXTS, params)]
    drafting = Adversary(ADVERSARIES[drafter]) if drafter in ADVERSARIES else drafter
    for batch_size in (1, 3):
        found = lm.generate(TEXTS, params, drafter=drafting, num_draft_tokens=24, batch_size=batch_size)
        assert [output.token_ids for output in found] == expected
        assert sum(output.stats.num_draft_tokens for output in found) > 0
    assert recorder.num_replayed > before
    assert lm.target.forward.why_not == ""


def test_a_long_text_is_that_of_the_modules(writer):
    lm, params = writer[0], replace(SAMPLED, max_new_tokens=230)
    expected = LanguageModel(CausalLM(build_model()), drafter="off").generate([5, 6], params).token_ids
    found = lm.generate([5, 6], params, drafter=Oracle([5, 6, *expected], depth=4, error_rate=0.3))
    assert found.token_ids == expected
    assert found.stats.mean_acceptance_length > 2
    assert max(size.slots for arena in lm.target.forward._arenas for size in arena.recordings) > MIN_SLOTS


def test_this_must_fail_a_replay_over_old_inputs(monkeypatch):
    """The tape sees what a graph would see: inputs that are not filled are those of the last pass."""
    forward, _ = recorded()
    session = TreeSession(forward)
    session.prefill([[5, 6, 7]])
    check_step(forward, session, [[5, 6, 7]], [DraftTree.chain([4])])
    session.keep([Acceptance([], [8])])
    monkeypatch.setattr(graphs, "_fill", lambda place, values: None)
    with pytest.raises(AssertionError):
        check_step(forward, session, [[5, 6, 7, 8]], [DraftTree.chain([4])])


class WaitingLlama(hf.LlamaForCausalLM):
    """Decides on the host what to do."""

    def forward(self, input_ids, position_ids=None, logits_to_keep=0, **options):
        output = super().forward(
            input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **options
        )
        scale = 2.0 if float(output.logits[0, 0, 0]) > 1e9 else 1.0
        output.logits = output.logits * scale
        return output


def waiting():
    model = build_model()
    model.__class__ = WaitingLlama
    return model


def test_a_model_that_waits_for_the_gpu_goes_on_as_it_is(caplog):
    forward = GraphedForward(waiting().double(), TapeRecorder())
    with caplog.at_level(logging.WARNING, logger="hasten"):
        walk(forward, TreeSession(forward), np.random.default_rng(0), 3)
    assert WAITS in forward.why_not
    assert len([record for record in caplog.records if "not recorded" in record.message]) == 1
    assert forward._arenas == []


@pytest.fixture
def on_gpu(monkeypatch):
    """Pretend that this machine records passes."""
    monkeypatch.setattr(forwards, "recorder_for", lambda device: TapeRecorder())


def test_recorded_passes_are_asked_for_by_name(on_gpu):
    prepared = prepare(build_model(), "graphs")
    assert (prepared.name, prepared.reason) == ("graphs", "as asked")
    assert isinstance(prepared.forward, GraphedForward)
    assert probe(prepared.forward).mode == "tree"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (waiting, WAITS),
        (lambda: build_model("bloom-alibi"), "not those of plain passes"),
        (lambda: hf.T5ForConditionalGeneration(hf.T5Config(d_model=8, num_layers=1)), "reads a source"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_reason(make, reason, on_gpu):
    with pytest.raises(ConfigError, match=rf"forward='graphs' cannot run this model: .*{reason}"):
        prepare(make().eval(), "graphs")
    prepared = prepare(make().eval(), "auto")
    assert (prepared.name, prepared.forward) == ("stock", None)
    assert reason in prepared.reason


def test_a_model_object_is_recorded_on_request(on_gpu):
    model = build_model()
    lm = hasten.load(model, forward="graphs")
    assert isinstance(lm.target.forward, GraphedForward)
    assert type(hasten.load(model).target.forward) is Forward
    with pytest.raises(ConfigError, match=r"forward='packed'.*name or folder"):
        hasten.load(model, forward="packed")


def test_a_cpu_records_nothing():
    with pytest.raises(ConfigError, match=r"forward='graphs'.*it is on cpu.*forward='auto'"):
        prepare(build_model(), "graphs")


@pytest.mark.parametrize(("stock", "replayed", "expected"), [(2.0, 1.0, "graphs"), (1.0, 0.99, "stock")])
def test_auto_takes_what_was_measured_to_be_fastest(stock, replayed, expected, on_gpu, monkeypatch):
    monkeypatch.setattr(forwards, "_milliseconds", lambda model, forward: replayed if forward else stock)
    prepared = prepare(build_model(), "auto")
    assert prepared.name == expected
    assert (prepared.forward is not None) == (expected == "graphs")
    assert f"stock {stock:.1f}, graphs {replayed:.1f}" in prepared.reason


@pytest.mark.parametrize("name", TREE_MODELS)
def test_what_is_recorded_reads_nothing_of_the_host(name):
    """On the meta device, which has no values: a tensor of the CPU or a look at a value is an error."""
    forward = GraphedForward(build_model(name, torch.bfloat16), lambda run: (lambda: None, run()))
    forward.model.to("meta")  # afterwards: a model without weights is refused
    forward.device = torch.device("meta")
    cache, text = graphs.SlotCache(), torch.zeros(2, 5, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        forward.model(
            text,
            past_key_values=cache,
            position_ids=text,
            attention_mask=torch.zeros(2, 1, 5, 5, dtype=torch.bfloat16, device="meta"),
        )
        size = graphs._Size(2, 8, 8, 256)
        arena = graphs._Arena(cache, 2, 512)
        recording = forward._new_recording(arena, size, AttentionKinds.of(forward.text_config))
    assert forward.why_not == ""
    assert recording.logits.shape == (2, 8, BASE["vocab_size"])


def test_cuda_graphs_are_warmed_up_and_share_their_memory(monkeypatch):
    """Of CUDA only the calls are here; that they exist with these arguments is asked of PyTorch."""
    cuda, calls = MagicMock(), []
    inspect.signature(torch.cuda.graph).bind(None, pool=None, capture_error_mode="thread_local")
    assert {"replay", "pool"} <= set(dir(torch.cuda.CUDAGraph))
    cuda.graph.side_effect = lambda graph, **options: calls.append(options) or nullcontext()
    monkeypatch.setattr(torch, "cuda", cuda)
    record, runs = CudaRecorder(torch.device("cuda:1")), []
    for _ in range(2):
        replay, result = record(lambda: runs.append(0) or len(runs))
        assert replay is cuda.CUDAGraph().replay
    assert (len(runs), result) == (6, 6)
    pool = cuda.CUDAGraph().pool()
    assert [one["pool"] for one in calls] == [None, pool]
    cuda.device.assert_called_with(torch.device("cuda:1"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TREE_MODELS)
def test_a_gpu_replays_what_the_modules_compute(name):
    model = build_model(name, finest_dtype(name)).cuda()
    forward = GraphedForward(model, CudaRecorder(torch.device("cuda")))
    walk(forward, TreeSession(forward), np.random.default_rng(0), 8)
    assert forward.why_not == ""
    plain, lm = (LanguageModel(CausalLM(model, forward=one), drafter="off") for one in (None, forward))
    for params in (GREEDY, SAMPLED):
        expected = [one.token_ids for one in each_alone(plain, PROMPTS, params)]
        found = lm.generate(PROMPTS, params, drafter="token-recycling+suffix", num_draft_tokens=12)
        assert [output.token_ids for output in found] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_pass_does_not_wait():
    forward = GraphedForward(build_model().cuda(), CudaRecorder(torch.device("cuda")))
    session = TreeSession(forward)
    session.prefill([[5, 6, 7]])
    tree = DraftTree.chain([4, 5])
    session.forward([tree])  # records
    session.keep([Acceptance([], [8])])
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.forward([tree])
    finally:
        torch.cuda.set_sync_debug_mode("default")
