"""Packed prefill: no token is lost, no bin overflows, and the cache is that of every prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import DynamicCache

from conftest import ARCHITECTURES, VOCAB, finest_dtype
from hasten.core import Acceptance
from hasten.models.sessions import tree_session
from hasten.models.sessions.prepacking import PackedRow, group_rows, pack_rows
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree

TREE_MODELS = [name for name, (_, _, mode) in ARCHITECTURES.items() if mode == "tree"]
SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=20)
LOOSE = ("gemma2", "gemma3_text", "llama4_text", "mixtral", "deepseek_v3")


def a_prompt(length, seed=0):
    return np.random.default_rng([length, seed]).integers(0, VOCAB, length).tolist()


@given(sizes=SIZES, capacity=st.integers(1, 40))
def test_every_prompt_lies_whole_in_one_row_and_no_row_overflows(sizes, capacity):
    rows = pack_rows(sizes, capacity)
    placed = sorted(prompt for row in rows for prompt in row.prompts)
    assert placed == [prompt for prompt, size in enumerate(sizes) if size]
    for row in rows:
        assert row.size <= capacity or len(row.prompts) == 1
        taken = [slot for _, slots in row.places() for slot in range(slots.start, slots.stop)]
        assert taken == list(range(row.size))
        assert [sizes[prompt] for prompt in row.prompts] == row.sizes
    assert sorted((row.size for row in rows), reverse=True) == [row.size for row in rows]


@given(sizes=SIZES)
def test_a_row_that_could_still_take_a_prompt_is_not_left_alone(sizes):
    """Best fit opens a row only where none has room, so no two rows could be one."""
    capacity = max(1, *sizes)
    rows = pack_rows(sizes, capacity)
    assert len(rows) <= 2 * sum(sizes) / capacity + 1
    assert all(one.size + other.size > capacity for one in rows for other in rows if one is not other)


@given(sizes=SIZES, max_tokens=st.integers(1, 100), chunk=st.integers(1, 30))
def test_rows_side_by_side_are_hardly_padded(sizes, max_tokens, chunk):
    rows = pack_rows(sizes, 12)
    groups = group_rows(rows, max_tokens, chunk)
    assert [row for group in groups for row in group] == rows
    for group in groups:
        longest = group[0].size
        assert len(group) == 1 or len(group) * min(longest, chunk) <= max_tokens
        assert sum(row.size for row in group) >= 7 / 8 * len(group) * longest


def test_a_row_restarts_positions_and_hides_its_prompts_from_each_other():
    row = PackedRow()
    for prompt, size in ((4, 3), (2, 1), (0, 2)):
        row.append(prompt, size)
    assert row.positions().tolist() == [0, 1, 2, 0, 0, 1]
    assert row.visible(0, 6).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def prefilled(forward, prompts, prefill="packed", top_k=0):
    session = TreeSession(forward, prefill=prefill)
    return session, session.prefill(prompts, top_k)


@torch.inference_mode()
def alone(forward, prompt):
    """Keys and values of a plain causal pass of transformers over one prompt, windows and all."""
    cache = DynamicCache()
    positions = torch.arange(len(prompt) - 1)[None]
    forward.model(torch.tensor([prompt[:-1]]), position_ids=positions, past_key_values=cache, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def check_cache(forward, session, prompts, tolerance):
    """Each row holds its prompt on the left and nothing else that can be seen."""
    layers = [pair for pair in session.states() if pair is not None]
    for row, prompt in enumerate(prompts):
        size = len(prompt) - 1
        assert session._lengths[row] == size
        assert np.flatnonzero(session._table.visible[row]).tolist() == list(range(size))
        assert session._table.positions[row, :size].tolist() == list(range(size))
        if size:
            for pair, expected in zip(layers, alone(forward, prompt), strict=True):
                for states, one in zip(pair, expected, strict=True):
                    torch.testing.assert_close(states[row, :, :size], one, rtol=0, atol=tolerance)


@pytest.fixture
def small_pieces(monkeypatch):
    """Rows of 12 tokens, chunks of 16: long prompts in several chunks, several groups, all in tiny texts."""
    monkeypatch.setattr(tree_session, "PREFILL_CHUNK", 16)
    monkeypatch.setattr(tree_session, "ROW_CAPACITY", 12)


LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=9)


@settings(max_examples=60)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_packed_keys_and_values_are_those_of_each_prompt_alone(targets, lengths, seed):
    """Lengths come twice now and then: with the same seed that is the same prompt."""
    forward = targets("llama", torch.float64).forward
    prompts = [a_prompt(length, seed) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_session, "PREFILL_CHUNK", 16)
        patch.setattr(tree_session, "ROW_CAPACITY", 12)
        packed, of_packed = prefilled(forward, prompts, top_k=3)
        padded, of_padded = prefilled(forward, prompts, "padded", top_k=3)
    check_cache(forward, packed, prompts, 1e-10)
    check_cache(forward, padded, prompts, 1e-10)
    for one, other in zip(of_packed, of_padded, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert np.array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.probs, other.probs, atol=1e-6)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", TREE_MODELS)
def test_packed_and_padded_prefill_agree_on_every_architecture(targets, name):
    forward = targets(name, finest_dtype(name)).forward
    prompts = [a_prompt(length) for length in (1, 24, 5, 7, 1, 5, 12, 3)]
    packed, _ = prefilled(forward, prompts)
    padded, _ = prefilled(forward, prompts, "padded")
    is_loose = forward.config.model_type in LOOSE
    for of_packed, of_padded in zip(packed.states(), padded.states(), strict=True):
        for one, other in zip(of_packed, of_padded, strict=True):
            seen = torch.from_numpy(packed._table.visible)[:, None, :, None].expand_as(one)
            torch.testing.assert_close(one[seen], other[seen], rtol=0, atol=2e-4 if is_loose else 1e-10)
    trees = [DraftTree([3, 4, 5], [-1, -1, 0])] * len(prompts)
    for _ in range(2):
        for one, other in zip(packed.forward(trees), padded.forward(trees), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-4 if is_loose else 1e-9)
        for session in (packed, padded):
            session.keep([Acceptance([1], [4, 9])] * len(prompts))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "lengths", [[4, 1, 3], [1], [1, 1, 1], [1, 9], [2], [30], [30, 1, 30, 17], [5, 6], [13, 13]]
)
def test_short_long_equal_and_single_prompts(targets, lengths):
    """4, 1, 3: in the published code the prompt of one token takes the place of the one before it."""
    forward = targets("llama", torch.float64).forward
    prompts = [a_prompt(length, seed) for seed, length in enumerate(lengths)]
    session, _ = prefilled(forward, prompts)
    check_cache(forward, session, prompts, 1e-10)
    expected, _ = prefilled(forward, prompts, "padded")
    for one, other in zip(
        session.forward([DraftTree()] * len(prompts)),
        expected.forward([DraftTree()] * len(prompts)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def passes(forward, prompts, monkeypatch, prefill="packed"):
    """Shapes [rows, tokens] of the passes of one prefill."""
    shapes = []
    run = TreeSession._run

    def spy(session, blocks, logits_to_keep):
        shapes.append((len(blocks), max(len(block.token_ids) for block in blocks)))
        return run(session, blocks, logits_to_keep)

    monkeypatch.setattr(TreeSession, "_run", spy)
    prefilled(forward, prompts, prefill)
    monkeypatch.setattr(TreeSession, "_run", run)
    return shapes


@pytest.mark.usefixtures("small_pieces")
def test_prompts_of_very_different_length_cost_hardly_more_than_their_tokens(targets, monkeypatch):
    forward = targets().forward
    prompts = [a_prompt(length, seed) for seed, length in enumerate([41, 3, 3, 3, 5, 2, 7, 4, 3, 6, 2])]
    tokens = sum(len(prompt) - 1 for prompt in prompts)
    packed = sum(rows * width for rows, width in passes(forward, prompts, monkeypatch))
    padded = sum(rows * width for rows, width in passes(forward, prompts, monkeypatch, "padded"))
    assert tokens <= packed <= 8 / 7 * tokens
    assert padded == 40 * len(prompts)


@pytest.mark.usefixtures("small_pieces")
def test_one_prompt_is_cached_in_the_same_passes_as_ever(targets, monkeypatch):
    forward = targets().forward
    assert passes(forward, [a_prompt(40)], monkeypatch) == [(1, 16), (1, 16), (1, 7)]
    assert passes(forward, [a_prompt(9)], monkeypatch) == [(1, 8)]
    assert passes(forward, [a_prompt(1)], monkeypatch) == []


def test_equal_prompts_are_computed_once(targets, monkeypatch):
    forward = targets().forward
    prompts = [a_prompt(30)] * 5
    assert passes(forward, prompts, monkeypatch) == [(1, 29)]
    session, _ = prefilled(forward, prompts)
    rows = session.forward([DraftTree.chain([5])] * 5)
    assert all(torch.equal(rows[0], row) for row in rows)


@pytest.mark.usefixtures("small_pieces")
def test_a_session_can_be_prefilled_again(targets):
    forward = targets("llama", torch.float64).forward
    session = TreeSession(forward)
    for lengths in ([4, 20, 3], [1, 1], [7], [3, 5, 9, 2]):
        prompts = [a_prompt(length, 5) for length in lengths]
        session.prefill(prompts)
        check_cache(forward, session, prompts, 1e-10)
        session.forward([DraftTree.chain([4])] * len(prompts))
        session.keep([Acceptance([0], [4, 5])] * len(prompts))


@pytest.mark.usefixtures("small_pieces")
def test_this_must_fail_prompts_of_one_row_that_see_each_other(targets, monkeypatch):
    forward = targets("llama", torch.float64).forward
    prompts = [a_prompt(length, seed) for seed, length in enumerate([4, 5, 3, 11])]
    monkeypatch.setattr(
        PackedRow,
        "visible",
        lambda row, start, stop: np.tril(np.ones((stop - start, stop - start), np.bool_)),
    )
    session, _ = prefilled(forward, prompts)
    with pytest.raises(AssertionError):
        check_cache(forward, session, prompts, 1e-10)
