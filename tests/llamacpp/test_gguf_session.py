"""Sessions on llama.cpp: whatever was accepted and rejected before, logits are those of transformers."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adversaries import VOCAB, trees
from conftest import build_model
from hasten.core import Acceptance
from hasten.errors import ConfigError, ModelError
from hasten.logits import GREEDY
from hasten.models.llamacpp.interface import PASS_TOKENS, LlamaContext
from hasten.models.llamacpp.session import GgufSession, with_at_most
from hasten.models.llamacpp.target import GgufLM
from hasten.models.sessions.session import find
from hasten.tree import ROOT, DraftTree
from histories import RunningRows

pytest.importorskip("llama_cpp")

NOISE = 2e-4
"""of float32 logits of size 10, in other kernels"""
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [7, 8, 9, 22]]


@pytest.fixture(scope="module")
def target(gguf_file):
    return GgufLM(gguf_file("llama"))


@pytest.fixture(scope="module")
def plain():
    """plain(text) -> transformers' logits after it, in float64."""
    model = build_model("llama").double()
    known = {}

    @torch.inference_mode()
    def get(text):
        if tuple(text) not in known:
            known[tuple(text)] = model(torch.tensor([text])).logits[0, -1].float()
        return known[tuple(text)]

    return get


def check_step(plain, session, texts, rows):
    for text, tree, found in zip(texts, rows, session.forward(rows), strict=True):
        assert found.shape == (len(tree) + 1, VOCAB)
        for node in range(ROOT, len(tree)):
            path = [*text, *tree.token_ids[tree.path_to(node)].tolist()]
            torch.testing.assert_close(found[node + 1], plain(path), rtol=0, atol=NOISE)


def keep(session, texts, rows, choose):
    """``choose(tree)`` says which node is the last accepted one."""
    acceptances = []
    for text, tree in zip(texts, rows, strict=True):
        path = tree.path_to(choose(tree))
        acceptances.append(Acceptance(path, [*tree.token_ids[path].tolist(), (text[-1] + 3) % VOCAB]))
        text.extend(acceptances[-1].token_ids)
    session.keep(acceptances)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(gguf_file, name):
    session = GgufLM(gguf_file(name)).open()
    text = np.random.default_rng(0).integers(0, VOCAB, 60).tolist()
    session.prefill([text])
    model = build_model(name).double()
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0, -1].float()
    torch.testing.assert_close(session.forward([DraftTree()])[0][0], expected, rtol=0, atol=NOISE)


def test_llama_3_rotations_are_those_of_transformers(tmp_path):
    from hasten.models.llamacpp.export import export_gguf

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 1000.0,
    }
    model = build_model("llama", rope_parameters=scaling)
    export_gguf(model, None, tmp_path / "m.gguf")
    session = GgufLM(tmp_path / "m.gguf").open()
    text = np.random.default_rng(0).integers(0, VOCAB, 100).tolist()
    session.prefill([text])
    with torch.inference_mode():
        expected = model.double()(torch.tensor([text])).logits[0, -1].float()
    torch.testing.assert_close(session.forward([DraftTree()])[0][0], expected, rtol=0, atol=NOISE)


def test_the_probe_finds_trees(target):
    assert target.probe.mode == "tree"
    assert target.probe.noise < NOISE
    assert not target.probe.rejected


@settings(max_examples=20)
@given(data=st.data())
def test_any_history_of_trees_leaves_the_logits_of_a_fresh_prefill(target, plain, data):
    session = target.open()
    texts = [list(prompt) for prompt in PROMPTS]
    session.prefill(PROMPTS)
    for _ in range(4):
        rows = [session.fit(data.draw(trees()).sanitised(VOCAB, 99)) for _ in texts]
        check_step(plain, session, texts, rows)
        keep(session, texts, rows, lambda tree: data.draw(st.integers(ROOT, len(tree) - 1)))
        if len(texts) > 1 and data.draw(st.booleans()):
            kept = [row for row in range(len(texts)) if row != data.draw(st.integers(0, len(texts) - 1))]
            session.select(kept or [0])
            texts = [texts[row] for row in kept or [0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_join_leave_and_fork(target, plain, seed):
    RunningRows(lambda prompts: target.open(), lambda text, row: plain(text), NOISE).wander(seed)
    assert target._free


def test_rows_join_where_others_left_and_fork_where_they_are(target, plain, monkeypatch):
    """Nobody else's text is copied, and no context made, as long as there is room."""
    session = target.open()
    session.prefill(PROMPTS)
    others = [target.open() for _ in range(3)]
    for other, text in zip(others, ([30, 31, 32], [40, 41], [50]), strict=True):
        other.prefill([text])
    context, saved = session._context, []
    monkeypatch.setattr(target, "open_context", None)
    original = LlamaContext.saved
    monkeypatch.setattr(LlamaContext, "saved", lambda self, one: saved.append(one) or original(self, one))
    session.select([2, 0])
    session.join(others[0])
    session.select([2, 0])
    session.join(others[1])
    session.select([1, 2, 1])
    texts = [list(PROMPTS[2]), [40, 41], list(PROMPTS[2])]
    assert session._context is context
    assert len(saved) == 2
    for _ in range(3):
        trees = [DraftTree([3, 4, 5], [ROOT, ROOT, 0]), DraftTree(), DraftTree([6, 7], [ROOT, ROOT])]
        check_step(plain, session, texts, trees)
        keep(session, texts, trees, lambda tree: len(tree) - 1)
    monkeypatch.undo()
    for text in ([60], [61, 62], [63]):  # more than there is room for
        other = target.open()
        other.prefill([text])
        session.join(other)
        texts.append(list(text))
    assert session._context is not context
    check_step(plain, session, texts, [DraftTree([3, 4], [ROOT, ROOT])] * 6)


def test_many_rejected_nodes_leave_no_trace_and_no_place_taken(target, plain):
    """More nodes than the cache has room for, if any of them stayed."""
    session = target.open()
    texts = [list(PROMPTS[1])]
    session.prefill(texts)
    for _ in range(60):
        wide = DraftTree(np.arange(60), [ROOT] * 60)
        session.forward([wide])
        keep(session, texts, [wide], lambda tree: ROOT if len(texts[0]) % 2 else 7)
    check_step(plain, session, texts, [DraftTree([3, 4, 5], [ROOT, 0, ROOT])])


def test_a_row_that_is_dropped_gives_its_places_back(target, plain):
    import llama_cpp

    session = target.open()
    session.prefill(PROMPTS)
    tree = DraftTree([3, 4, 5], [ROOT, ROOT, 0])
    session.forward([tree] * 3)
    keep(session, [list(prompt) for prompt in PROMPTS], [tree] * 3, lambda tree: 2)
    bases = [row.base for row in session._rows]
    session.select([1])
    memory = session._context._memory
    last = [llama_cpp.llama_memory_seq_pos_max(memory, base) for base in bases]
    assert last == [-1, len(PROMPTS[1]) + 1, -1]


def test_a_tree_with_many_leaves_is_computed_whole(target, plain):
    session = target.open()
    session.prefill([[9, 8]])
    tree = DraftTree([*range(60), 4, 5], [ROOT] * 60 + [3, 60])
    assert session.fit(tree) is tree
    check_step(plain, session, [[9, 8]], [tree])


def test_a_tree_is_cut_to_the_leaves_there_are_sequences_for(target, plain):
    session = target.open()
    prompts = [[9, 8 + row] for row in range(16)]
    session.prefill(prompts)
    tree = DraftTree([*range(40), 4, 5], [ROOT] * 40 + [3, 39])
    cut = session.fit(tree)
    assert cut.token_ids.tolist() == [*range(16), 4]  # a deeper leaf takes the place of the one above
    check_step(plain, session, prompts, [cut] * 16)


@given(tree=trees(max_nodes=20), max_leaves=st.integers(1, 5))
def test_cutting_leaves_keeps_every_node_there_is_room_for(tree, max_leaves):
    cut = with_at_most(max_leaves, tree)
    leaves = len(cut) - len({*cut.parents.tolist()} - {ROOT})
    assert leaves <= max_leaves
    assert (cut.parents < np.arange(len(cut))).all()
    if len(cut) < len(tree):
        assert leaves == max_leaves
    else:
        assert cut is tree


def test_a_sampled_tree_that_is_too_large_becomes_the_path_of_first_draws(target):
    session = target.open()
    session.prefill([[9, 8 + row] for row in range(16)])
    count = 20
    laws = np.full((count, VOCAB), 1 / VOCAB, np.float32)
    scores = np.linspace(0.1, 0.9, count)  # the last child is the best
    small = DraftTree(np.arange(10), [ROOT] * 10, draft_probs=laws[:10])
    large = DraftTree([*range(19), 5], [ROOT] * 19 + [0], scores, draft_probs=laws)
    assert session.fit(small) is small
    assert session.fit(large).token_ids.tolist() == [0, 5]


@pytest.mark.parametrize("mode", ["chain", "off"])
def test_lesser_modes_verify_less(gguf_file, plain, mode):
    session = GgufLM(gguf_file("llama"), mode=mode).open()
    texts = [list(prompt) for prompt in PROMPTS]
    session.prefill(PROMPTS)
    fitted = session.fit(DraftTree([4, 5, 6, 7], [ROOT, ROOT, 1, ROOT], [0.2, 0.9, 0.8, 0.1]))
    assert fitted.token_ids.tolist() == ([5, 6] if mode == "chain" else [])
    for _ in range(3):
        check_step(plain, session, texts, [fitted] * 3)
        keep(session, texts, [fitted] * 3, lambda tree: min(0, len(tree) - 1))


def test_candidates_of_a_prompt_are_those_of_every_position(target, plain, monkeypatch):
    monkeypatch.setattr("hasten.models.llamacpp.session._CANDIDATE_LOGITS", 3 * VOCAB)  # several pieces
    found = target.open().prefill(PROMPTS, top_k=2)
    assert found[0] is None
    for prompt, candidates in zip(PROMPTS[1:], found[1:], strict=True):
        assert candidates.token_ids.shape == (len(prompt) - 1, 2)
        for position in range(len(prompt) - 1):
            law = torch.softmax(plain(prompt[: position + 1]), -1)
            best = law.topk(2)
            assert candidates.token_ids[position].tolist() == best.indices.tolist()
            np.testing.assert_allclose(candidates.probs[position], best.values.numpy(), atol=1e-4)


def test_what_all_prompts_begin_with_is_cached_once(target, monkeypatch):
    from hasten.models.llamacpp import interface as llama_interface

    counts = []
    run = llama_interface.LlamaContext.run

    def counting(self, token_ids, *others):
        counts.append(len(token_ids))
        return run(self, token_ids, *others)

    monkeypatch.setattr(llama_interface.LlamaContext, "run", counting)
    prefix = list(range(30))
    target.open().prefill([[*prefix, 40, 41], [*prefix, 50], [*prefix, 60, 61, 62]])
    assert sum(counts) == 30 + 1 + 0 + 2


def test_prompts_longer_than_a_pass_are_cached_in_pieces(target, plain):
    prompts = np.random.default_rng(1).integers(0, VOCAB, (6, 120)).tolist()
    assert sum(map(len, prompts)) > PASS_TOKENS
    session = target.open()
    session.prefill(prompts)
    check_step(plain, session, prompts, [DraftTree([3], [ROOT])] * 6)


def test_a_cache_is_used_again_when_its_session_is_gone(target):
    gc.collect()
    first = target.open()
    first.prefill([[1, 2, 3]])
    context = first._context
    second = target.open()
    second.prefill([[1, 2, 3]])
    assert second._context is not context
    del first
    third = target.open()
    third.prefill([[4, 5]])
    assert third._context is context


def test_two_sessions_do_not_see_each_other(target, plain):
    sessions, texts = [target.open(), target.open()], [[5, 6, 7], [8, 9]]
    for session, text in zip(sessions, texts, strict=True):
        session.prefill([text])
    for session, text in zip(sessions, texts, strict=True):
        check_step(plain, session, [text], [DraftTree([3, 4], [ROOT, ROOT])])


def test_a_full_cache_is_an_error_with_a_remedy(target):
    session = GgufSession(target.open_context, [4])  # a text that shall end with its next token
    session.prefill([[1, 2, 3]])

    def write_on():
        for _ in range(100):  # a larger context of another session may serve this one
            session.forward([DraftTree.chain([3] * 60)])
            session.keep([Acceptance(list(range(60)), [3] * 61)])

    with pytest.raises(ModelError, match=r"cache of \d+ tokens is full; write fewer texts"):
        write_on()


def test_too_many_texts_at_once_are_refused(target):
    with pytest.raises(ConfigError, match=r"batch of 300 .* lower batch_size"):
        target.open().prefill([[1, 2]] * 300)


def test_the_threads_are_those_of_torch(target):
    session = target.open()
    session.prefill([[1, 2, 3]])
    torch.set_num_threads(2)
    try:
        assert session.forward([DraftTree()])[0].shape == (1, VOCAB)
        assert session._context._num_threads == 2
    finally:
        torch.set_num_threads(1)


def test_hidden_states_are_refused_by_name(target):
    session = target.open()
    session.prefill([[5, 6, 7]])
    with pytest.raises(ConfigError, match="GgufSession gives no hidden states"):
        find(session, [DraftTree()], [GREEDY], 0, [1])
