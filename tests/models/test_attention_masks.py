"""Masks by layer kind, tested on positions, not on cache slots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasten.models.sessions.attention import AttentionKinds, TreeMask, additive_mask


def shown(kinds, visible, query_positions, key_positions):
    """What each kind of layer sees, 0 and 1 [batch, queries, keys]; the queries are the last keys."""
    visible, queries = np.asarray(visible, np.bool_), np.asarray(query_positions)
    num_slots = visible.shape[2]
    positions = np.asarray(key_positions)
    positions[:, num_slots - queries.shape[1] :] = queries
    mask = TreeMask(kinds, num_slots, np.zeros((len(visible), num_slots + 3), np.bool_), positions, visible)
    found = mask.additive(torch.float32, torch.device("cpu"))
    found = found if isinstance(found, dict) else {next(iter(kinds.sizes)): found}
    return {kind: (one[:, 0] == 0).int().tolist() for kind, one in found.items()}


def test_a_token_sees_what_its_row_sees_and_what_it_sees_itself():
    rng = np.random.default_rng(0)
    visible, own = rng.random((2, 9)) < 0.5, rng.random((2, 3, 5)) < 0.5
    visible[:, 7:] = True  # of other texts
    kinds = AttentionKinds({"full_attention": None})
    mask = TreeMask(kinds, 7, visible, np.zeros((2, 9), np.int64), own)
    expected = np.tile(visible[:, None, :7], (1, 3, 1))
    expected[:, :, 2:] |= own
    found = mask.additive(torch.float64, torch.device("cpu"))
    assert np.array_equal(found[:, 0].numpy() == 0, expected)


def test_padding_is_what_does_not_see_itself():
    own = np.zeros((2, 3, 5), np.bool_)
    own[0, :, 2:] = np.tri(3)
    own[1, 0, 2] = True
    mask = TreeMask(AttentionKinds({"full_attention": None}), 5, own[:, 0], np.zeros((2, 5), np.int64), own)
    assert mask.is_token.tolist() == [[True] * 3, [True, False, False]]


def test_a_window_counts_positions_and_not_slots():
    key_positions = [[0, 1, 3, 3, 2, 4]]  # slots 2 and 3 were drafted early
    found = shown(AttentionKinds({"sliding_attention": 3}), np.ones((1, 1, 6)), [[4]], key_positions)
    assert found["sliding_attention"] == [[[0, 0, 1, 1, 1, 1]]]


def test_a_chunk_starts_at_a_multiple_of_its_size():
    seen = np.tri(8)[None, 6:]
    found = shown(AttentionKinds({"chunked_attention": 3}), seen, [[5, 6]], [[0, 1, 2, 3, 4, 4, 0, 0]])
    assert found["chunked_attention"][0] == [[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]]


def test_mixed_models_get_one_mask_a_layer_kind():
    kinds = AttentionKinds.of(
        SimpleNamespace(
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=2
        )
    )
    assert shown(kinds, np.ones((1, 1, 3)), [[2]], [[0, 1, 2]]) == {
        "full_attention": [[[1, 1, 1]]],
        "sliding_attention": [[[0, 1, 1]]],
    }


def test_a_window_without_layer_types_holds_for_every_layer():
    assert AttentionKinds.of(SimpleNamespace(sliding_window=8)).sizes == {"sliding_attention": 8}
    assert AttentionKinds.of(SimpleNamespace(sliding_window=None)).sizes == {"full_attention": None}


def test_a_layer_kind_without_a_mask_is_refused():
    with pytest.raises(KeyError, match="linear_attention"):
        AttentionKinds.of(SimpleNamespace(layer_types=["linear_attention", "full_attention"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mask_is_additive_and_finite(dtype):
    mask = additive_mask(np.array([[[True, False]]]), dtype, torch.device("cpu"))
    assert mask.dtype == dtype
    assert mask.shape == (1, 1, 1, 2)
    assert mask.flatten().tolist() == [0.0, max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)]
    assert mask.float().isfinite().all()  # many models take the softmax in float32
