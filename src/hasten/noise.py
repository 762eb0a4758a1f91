"""Keyed noise: the Gumbel noise of a token is a function of (seed, sample, position, token) alone.

Philox4x32-10 (Random123, Salmon et al., SC 2011) makes four words of 32 bits of a key and a counter. The seed
is the key; the counter is (group of tokens, sample, position, stream). So the noise of any one token can be
computed without that of the others, in any order, by any thread, on any device. Random numbers for other
purposes come from another generator (``sampling.keyed_generator``).

Token t is word t // 16 % 4 of the counter t // 64 * 16 + t % 16: sixteen neighbours are one vector.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

import hasten.compile_cache  # noqa: F401 - before what is compiled

BLOCK = 64
"""Tokens whose bits are computed together."""
_LANES = BLOCK // 4
_U32, _U64 = np.uint32, np.uint64
_MULTIPLIERS = _U64(0xD2511F53), _U64(0xCD9E8D57)
_WEYL = _U32(0x9E3779B9), _U32(0xBB67AE85)
_ROUNDS = 10

_compiled = numba.njit(nogil=True, error_model="numpy", cache=True)


class NoiseKey(NamedTuple):
    """Whose noise: of one position of one sample. Texts are drawn with that of stream 0.

    Below 2**64, 2**32, 2**48 and 2**16.
    """

    seed: int
    sample: int
    position: int
    stream: int = 0

    def words(self) -> NDArray[np.uint32]:
        """uint32 [5]: the key, then all of the counter but its first word."""
        low = 2**32 - 1
        seed, sample, position, stream = self
        return np.array([seed & low, seed >> 32, sample, position & low, position >> 32 | stream << 16], _U32)


@_compiled
def fill_bits(words, first_token, bits):
    """Write the bits of tokens ``first_token`` on into ``bits``; both counts are multiples of BLOCK."""
    for start in range(0, len(bits), BLOCK):
        counter = (first_token + start) // BLOCK * _LANES
        block = bits[start : start + BLOCK]
        for lane in range(_LANES):
            zero, one, two, three = _U32(counter + lane), words[2], words[3], words[4]
            first, second = words[0], words[1]
            for _round in range(_ROUNDS):
                left, right = _U64(zero) * _MULTIPLIERS[0], _U64(two) * _MULTIPLIERS[1]
                zero = _U32(right >> _U64(32)) ^ one ^ first
                two = _U32(left >> _U64(32)) ^ three ^ second
                one, three = _U32(right), _U32(left)
                first, second = _U32(first + _WEYL[0]), _U32(second + _WEYL[1])
            block[lane], block[_LANES + lane] = zero, one
            block[2 * _LANES + lane], block[3 * _LANES + lane] = two, three


@_compiled
def gumbel(bits):
    """The noise that 32 bits stand for, float32; never less for larger bits."""
    return np.float32(-math.log(-math.log((np.float64(bits) + 0.5) * 2.0**-32)))


def gumbel_noise(
    seed: int, sample: int, position: int, vocab_size: int, stream: int = 0
) -> NDArray[np.float32]:
    """float32 [vocab]: standard Gumbel noise of all tokens at one position."""
    bits = np.empty(-(-vocab_size // BLOCK) * BLOCK, _U32)
    fill_bits(NoiseKey(seed, sample, position, stream).words(), 0, bits)
    # As in ``gumbel``, for many at once.
    noise: NDArray[np.float64] = -np.log(-np.log((bits[:vocab_size] + 0.5) * 2.0**-32))
    return noise.astype(np.float32)


recent_gumbel_noise = functools.lru_cache(maxsize=32)(gumbel_noise)
"""For drafts, which ask for the noise of a few positions again and again."""


def gumbel_noise_of(token_ids: NDArray[np.int64], key: NoiseKey) -> NDArray[np.float32]:
    """float32 [tokens]: the noise of these tokens alone."""
    noise = np.empty(len(token_ids), np.float32)
    fill_noise_of(key.words(), np.empty(BLOCK, _U32), token_ids, noise)
    return noise


@_compiled
def fill_noise_of(words, bits, token_ids, noise):
    """``gumbel_noise_of`` for compiled loops; bits: uint32 [BLOCK], written over."""
    for place in range(len(token_ids)):
        token = token_ids[place]
        fill_bits(words, token // BLOCK * BLOCK, bits)
        noise[place] = gumbel(bits[token % BLOCK])
