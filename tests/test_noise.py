"""Keyed noise against Philox written from its paper, and against the law it must have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hasten.noise import NoiseKey, gumbel_noise, gumbel_noise_of

VOCAB = 20_000


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 as in Salmon et al. (SC 2011), in whole numbers."""
    key, words = list(key), list(counter)
    for _ in range(10):
        left, right = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            (right >> 32) ^ words[1] ^ key[0],
            right % 2**32,
            (left >> 32) ^ words[3] ^ key[1],
            left % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return words


def test_the_reference_gives_the_published_answers():
    """Known answers of Random123."""
    assert philox((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    assert philox((ones, ones), (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**32 - 1),
    position=st.integers(0, 2**40),
    stream=st.integers(0, 2**16 - 1),
)
def test_noise_is_that_of_the_reference(seed, sample, position, stream):
    noise = gumbel_noise(seed, sample, position, 1000, stream)
    key = seed % 2**32, seed >> 32
    for token in (0, 15, 16, 63, 64, 700, 999):
        counter = token // 64 * 16 + token % 16, sample, position % 2**32, position >> 32 | stream << 16
        bits = philox(key, counter)[token // 16 % 4]
        assert noise[token] == np.float32(-np.log(-np.log((bits + 0.5) * 2.0**-32)))
    tokens = np.array([999, 0, 64, 1, 500])
    assert np.array_equal(gumbel_noise_of(tokens, NoiseKey(seed, sample, position, stream)), noise[tokens])


@pytest.mark.parametrize("vocab_size", [1, 15, 64, 65, 1000])
def test_noise_of_a_token_does_not_depend_on_the_vocabulary(vocab_size):
    assert np.array_equal(gumbel_noise(1, 2, 3, vocab_size), gumbel_noise(1, 2, 3, VOCAB)[:vocab_size])


def uniforms(*key: int) -> np.ndarray:
    """What the noise is made of, in (0, 1)."""
    return np.exp(-np.exp(-gumbel_noise(*key, VOCAB).astype(np.float64)))


def test_noise_has_the_law_of_gumbel():
    """Kolmogorov-Smirnov: the largest distance of the empirical law from the true one, at the 0.1 % level."""
    found = np.sort(np.concatenate([uniforms(seed, 0, 5) for seed in range(10)]))
    distance = np.abs(found - (np.arange(len(found)) + 0.5) / len(found)).max()
    assert distance < 1.95 / np.sqrt(len(found))


def test_words_of_noise_fill_squares_evenly():
    """Chi-square of pairs that must be independent: neighbouring tokens, positions, samples and seeds."""
    base = uniforms(7, 1, 9)
    pairs = [
        (base[:-1], base[1:]),
        (base[:-16], base[16:]),
        *(
            (base, uniforms(*key))
            for key in ((7, 1, 10), (7, 2, 9), (8, 1, 9), (7 + 2**32, 1, 9), (7, 1, 9 + 2**32))
        ),
    ]
    for one, other in pairs:
        counts, _, _ = np.histogram2d(one, other, bins=10, range=[[0, 1], [0, 1]])
        expected = len(one) / 100
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 99 + 4.5 * np.sqrt(2 * 99)


def test_noise_is_finite_whatever_its_bits():
    from hasten.noise import gumbel

    lowest, highest = gumbel(np.uint32(0)), gumbel(np.uint32(2**32 - 1))
    assert lowest == pytest.approx(-3.137, abs=0.01)
    assert highest == pytest.approx(22.87, abs=0.01)
