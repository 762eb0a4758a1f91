"""What is found in logits is what their rows hold, whatever their size, ties and faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hasten.logits import Draw, Logits
from hasten.noise import NoiseKey, gumbel_noise


def expected_top(row: np.ndarray, k: int) -> np.ndarray:
    """Best first, smaller ids before larger ones among equals."""
    return np.lexsort((np.arange(len(row)), -row))[:k]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 5),
    vocab_size=st.integers(1, 700),
    k=st.integers(1, 40),
    is_coarse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_found_are_the_best_tokens_and_their_probabilities(*, seed, rows, vocab_size, k, is_coarse, dtype):
    values = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 4
    values = (values.round() if is_coarse else values).to(dtype)
    values[0, seed % vocab_size] = -torch.inf
    logits, single = Logits(values), values.float().numpy()
    best, top, candidates = logits.best(), logits.top(k), logits.candidates(k)
    probs = torch.softmax(values.double(), -1).numpy()
    for row in range(rows):
        expected = expected_top(single[row], k)
        assert np.array_equal(top.token_ids[row], expected)
        assert np.array_equal(candidates.token_ids[row], expected)
        assert np.array_equal(top.scores[row], single[row, expected])
        assert best.token_ids[row] == expected_top(values[row].double().numpy(), 1)[0]
        if np.isfinite(single[row].max()):
            assert np.allclose(candidates.probs[row], probs[row, expected], rtol=3e-6, atol=1e-30)
    assert candidates.probs.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    vocab_size=st.integers(1, 900),
    temperature=st.floats(0.1, 3),
    width=st.floats(0, 30),
)
def test_drawn_is_the_largest_score_with_noise(seed, vocab_size, temperature, width):
    """Whole groups of tokens are left out where not even the luckiest could win."""
    values = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(seed)) * width
    positions = np.array([4, 5, 4, 6, 5, 4])
    asked = Logits(values)
    asked.ask(Draw(positions, temperature, seed, 2))
    for row, position in enumerate(positions):
        noise = gumbel_noise(seed, 2, int(position), vocab_size)
        scores = values[row].numpy() / np.float32(temperature) + noise
        for logits in (asked, Logits(values)):
            token_id, score = logits.drawn(row, NoiseKey(seed, 2, int(position)), temperature)
            assert (token_id, score) == (scores.argmax(), scores.max())


@pytest.mark.parametrize("place", [0, 191, 192, 500])
@pytest.mark.parametrize("value", [np.float32(np.nan), -np.float32(np.nan)])
def test_a_nan_is_seen_wherever_it_is(place, value):
    values = torch.zeros(3, 501)
    values[1, place] = float(value)
    logits = Logits(values)
    assert np.isnan(logits.best().scores).tolist() == [False, True, False]
    assert np.isnan(logits.top(4).scores).any(axis=1).tolist() == [False, True, False]
    assert np.isnan(logits.candidates(4).probs).any(axis=1).tolist() == [False, True, False]
    assert ((logits.candidates(4).token_ids >= 0) & (logits.candidates(4).token_ids < 501)).all()
    drawn = [np.isnan(logits.drawn(row, NoiseKey(0, 0, 0), 1.0)[1]) for row in range(3)]
    assert drawn == [False, True, False]


def test_zeros_of_either_sign_are_equal():
    values = torch.full((1, 300), -0.0)
    values[0, 250] = 0.0
    assert Logits(values).best().token_ids[0] == 0
    assert Logits(values).top(3).token_ids[0].tolist() == [0, 1, 2]


def test_rows_are_the_tensors_own():
    values = torch.randn(3, 50)
    logits = Logits(values)
    assert Logits.of(logits) is logits
    assert len(logits) == 3
    assert torch.equal(logits[1], values[1])
    assert torch.equal(Logits.of(values)[[0, 2]], values[[0, 2]])
