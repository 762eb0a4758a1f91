"""Masks by layer kind, tested on positions, not on cache slots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasten.models.sessions.attention import AttentionKinds, additive_mask


def test_full_attention_passes_the_tree_mask_through():
    visible = np.random.default_rng(0).random((2, 3, 5)) < 0.5
    positions = np.zeros((2, 3), np.int64), np.zeros((2, 5), np.int64)
    found = AttentionKinds({"full_attention": None}).visible(visible, *positions)
    assert np.array_equal(found["full_attention"], visible)


def test_a_window_counts_positions_and_not_slots():
    key_positions = np.array([[0, 1, 5, 5, 2, 3]])  # slots 2 and 3 were drafted early and lie far ahead
    kinds = AttentionKinds({"sliding_attention": 3})
    found = kinds.visible(np.ones((1, 1, 6), np.bool_), np.array([[4]]), key_positions)
    assert found["sliding_attention"].tolist() == [[[False, False, True, True, True, True]]]


def test_a_chunk_starts_at_a_multiple_of_its_size():
    key_positions = np.arange(8)[None]
    kinds = AttentionKinds({"chunked_attention": 3})
    found = kinds.visible(np.ones((1, 2, 8), np.bool_), np.array([[5, 6]]), key_positions)
    assert found["chunked_attention"][0].astype(int).tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_mixed_models_get_one_mask_a_layer_kind():
    kinds = AttentionKinds.of(
        SimpleNamespace(
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=2
        )
    )
    found = kinds.visible(np.ones((1, 1, 3), np.bool_), np.array([[2]]), np.arange(3)[None])
    assert {kind: mask.astype(int).tolist() for kind, mask in found.items()} == {
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
