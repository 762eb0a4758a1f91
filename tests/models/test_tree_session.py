"""Tree sessions: whatever was accepted and rejected before, logits are those of a fresh prefill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adversaries import VOCAB, trees
from conftest import ARCHITECTURES, finest_dtype
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree
from histories import PROMPTS, a_tree, assert_equal, check_step, plain_logits, walk

TREE_MODELS = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree"]


def forward_of(targets, name="llama"):
    return targets(name, finest_dtype(name)).forward


@pytest.mark.parametrize("name", TREE_MODELS)
def test_any_history_gives_the_logits_of_a_fresh_prefill(targets, name):
    forward = forward_of(targets, name)
    walk(forward, TreeSession(forward, max_holes=8), np.random.default_rng(1), 8)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), max_holes=st.sampled_from([0, 3, 1000]))
def test_any_random_history_holds_on_a_sliding_model(targets, seed, max_holes):
    forward = forward_of(targets, "gemma3")
    walk(forward, TreeSession(forward, max_holes=max_holes), np.random.default_rng(seed), 4, PROMPTS[:2])


@settings(max_examples=25)
@given(tree=trees())
def test_any_tree_is_verified_right(targets, tree):
    forward = forward_of(targets)
    session = TreeSession(forward)
    session.prefill(PROMPTS[:2])
    check_step(forward, session, PROMPTS[:2], [tree.sanitised(VOCAB, 99), DraftTree()])


def test_a_tree_of_200_nodes_is_verified_right(targets):
    forward, rng = forward_of(targets), np.random.default_rng(0)
    tree = DraftTree(rng.integers(0, VOCAB, 200), [int(rng.integers(-1, node)) for node in range(200)])
    session = TreeSession(forward)
    session.prefill(PROMPTS[1:2])
    check_step(forward, session, PROMPTS[1:2], [tree.sanitised(VOCAB, 99)])


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma2", "llama4-chunked"])
def test_windows_hold_in_texts_far_longer_than_the_window(targets, name):
    forward, rng = forward_of(targets, name), np.random.default_rng(2)
    prompt = rng.integers(0, VOCAB, 60).tolist()
    walk(forward, TreeSession(forward, max_holes=20), rng, 10, [prompt, prompt[:7]])


def holes_of(session):
    return ~session._table.visible


def with_holes(forward, max_holes=1000):
    session = TreeSession(forward, max_holes=max_holes)
    texts = walk(forward, session, np.random.default_rng(3), 6)
    assert holes_of(session).sum() > 20
    return session, texts


@torch.inference_mode()
def test_holes_are_invisible(targets):
    forward = forward_of(targets)
    session, texts = with_holes(forward)
    holes = torch.from_numpy(holes_of(session))
    for layer in session._cache.used_layers:
        for states in (layer.keys, layer.values):
            states[holes[:, None, :, None].expand_as(states)] = 1e4
    check_step(forward, session, texts, [DraftTree.chain([3, 4])] * 3)


@torch.inference_mode()
def test_this_must_fail_a_visible_slot_is_not_invisible(targets):
    """The test above can fail: the same garbage in a visible slot changes the logits."""
    forward = forward_of(targets)
    session, texts = with_holes(forward)
    slot = int(np.flatnonzero(session._table.visible[1])[3])
    for layer in session._cache.used_layers:
        layer.values[1, :, slot] = 1e4
    with pytest.raises(AssertionError):
        check_step(forward, session, texts, [DraftTree()] * 3)


def test_compaction_closes_the_holes_and_changes_no_logit(targets):
    forward = forward_of(targets)
    loose, _ = with_holes(forward)
    tight = TreeSession(forward, max_holes=0)
    walk(forward, tight, np.random.default_rng(3), 6)
    assert tight._table.visible.shape[1] - max(tight._lengths) <= max(tight._lengths) // 8
    assert loose._table.visible.shape[1] > tight._table.visible.shape[1]
    assert [layer.keys.shape[2] for layer in tight._cache.used_layers] == [tight._table.visible.shape[1]] * 2
    rows = [a_tree(np.random.default_rng(9))] * 3
    for one, other in zip(loose.forward(rows), tight.forward(rows), strict=True):
        assert_equal(forward, one, other)


@pytest.mark.parametrize("rows", [[0, 2], [1], [2]])
def test_retained_rows_go_on_as_before(targets, rows):
    forward = forward_of(targets)
    session, texts = with_holes(forward)
    session.select(rows)
    check_step(forward, session, [texts[row] for row in rows], [DraftTree.chain([3, 4])] * len(rows))


def test_prefill_gives_the_candidates_of_every_prompt_position(targets):
    forward = forward_of(targets)
    found = TreeSession(forward).prefill(PROMPTS, top_k=4)
    assert found[0] is None  # a prompt of one token has no position before its last
    for prompt, candidates in zip(PROMPTS[1:], found[1:], strict=True):
        assert candidates.token_ids.shape == (len(prompt) - 1, 4)
        for end in range(1, len(prompt)):
            best = plain_logits(forward, prompt[:end]).topk(4).indices.tolist()
            assert candidates.token_ids[end - 1].tolist() == best


def test_a_prompt_is_cached_in_pieces(targets, monkeypatch):
    monkeypatch.setattr("hasten.models.sessions.tree_session.PREFILL_CHUNK", 4)
    forward = forward_of(targets, "gemma3")
    session = TreeSession(forward)
    candidates = session.prefill(PROMPTS, top_k=2)
    assert candidates[1].token_ids.shape == (8, 2)
    check_step(forward, session, PROMPTS, [DraftTree.chain([1])] * 3)


def test_this_must_fail_visible_siblings(targets, monkeypatch):
    forward = forward_of(targets)
    monkeypatch.setattr(
        DraftTree, "attention_mask", lambda tree: np.tril(np.ones((len(tree) + 1,) * 2, np.bool_))
    )
    session = TreeSession(forward)
    session.prefill(PROMPTS[1:2])
    with pytest.raises(AssertionError):
        check_step(forward, session, PROMPTS[1:2], [DraftTree([3, 4], [-1, -1])])


def test_this_must_fail_depth_is_not_the_index(targets, monkeypatch):
    forward = forward_of(targets)
    monkeypatch.setattr(DraftTree, "depths", lambda tree: np.arange(1, len(tree) + 1))
    session = TreeSession(forward)
    session.prefill(PROMPTS[1:2])
    with pytest.raises(AssertionError):
        check_step(forward, session, PROMPTS[1:2], [DraftTree([3, 4], [-1, -1])])
