"""The radix tree over token ids: whatever was kept, what is found is the longest known beginning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hasten.models.sessions.prefix_cache import MIN_TOKENS, PrefixCache
from hasten.models.sessions.session import RowCache

BYTES = 2 * 2 * 4 * 4  # of a token, keys and values
HEAD = list(range(1000, 1000 + MIN_TOKENS))


def row_cache(token_ids, start=0):
    """Keys that tell token and position, so that a wrong piece is seen."""
    own = torch.tensor(token_ids[start:], dtype=torch.float32)
    places = torch.arange(start, len(token_ids), dtype=torch.float32)
    keys = torch.stack((own, places, own, places), 1)[None].repeat(2, 1, 1)
    return RowCache([(keys, -keys), None], np.arange(start, len(token_ids)))


def keep(cache, token_ids):
    asked = []

    def cached(start):
        asked.append(start)
        return row_cache(token_ids, start)

    cache.add(token_ids, cached)
    return asked


def check(found, token_ids):
    count = len(found.positions)
    expected = row_cache(token_ids[:count])
    for one, other in zip(found.layers[0], expected.layers[0], strict=True):
        assert torch.equal(one, other)
    assert found.layers[1] is None
    assert np.array_equal(found.positions, expected.positions)
    return count


def num_same(one, other):
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


texts = st.lists(st.integers(0, 2), max_size=12).map(lambda tail: [*HEAD, *tail])


@settings(max_examples=200)
@given(kept=st.lists(texts, max_size=12), asked=texts)
def test_the_longest_known_beginning_is_found(kept, asked):
    cache = PrefixCache(10**9)
    for token_ids in kept:
        keep(cache, token_ids)
    longest = max((num_same(one, asked) for one in kept), default=0)
    found = cache.find(asked)
    assert (0 if found is None else check(found, asked)) == (longest if longest >= MIN_TOKENS else 0)
    distinct = {tuple(one[:end]) for one in kept for end in range(1, len(one) + 1)}
    assert cache.num_bytes == BYTES * len(distinct)


@settings(max_examples=100)
@given(kept=st.lists(texts, max_size=20), room=st.integers(0, 60))
def test_memory_is_bounded_and_counted_and_what_is_left_is_right(kept, room):
    cache = PrefixCache(room * BYTES)
    for token_ids in kept:
        keep(cache, token_ids)
        assert cache.num_bytes <= cache.max_bytes
        assert cache.num_bytes == sum(edge.num_bytes for edge in edges(cache._root))
        found = cache.find(token_ids)
        if found is not None:
            check(found, token_ids)


def edges(edge):
    yield edge
    for below in edge.below.values():
        yield from edges(below)


def test_only_what_is_new_is_asked_for():
    cache = PrefixCache(10**9)
    assert keep(cache, [*HEAD, 1, 2, 3]) == [0]
    assert keep(cache, [*HEAD, 1, 2, 3, 4, 5]) == [MIN_TOKENS + 3]
    assert keep(cache, [*HEAD, 1, 9]) == [MIN_TOKENS + 1]
    assert keep(cache, [*HEAD, 1, 2]) == []


def test_what_was_not_used_for_longest_goes_first():
    cache = PrefixCache(BYTES * (MIN_TOKENS + 4))
    keep(cache, [*HEAD, 1, 1])
    keep(cache, [*HEAD, 2, 2])
    cache.find([*HEAD, 1, 1])
    keep(cache, [*HEAD, 3, 3])
    assert len(cache.find([*HEAD, 1, 1]).positions) == MIN_TOKENS + 2
    assert len(cache.find([*HEAD, 2, 2]).positions) == MIN_TOKENS
    assert len(cache.find([*HEAD, 3, 3]).positions) == MIN_TOKENS + 2


def test_short_beginnings_are_read_anew_and_nothing_stays_after_clear():
    cache = PrefixCache(10**9)
    keep(cache, [*HEAD, 1])
    assert cache.find([*HEAD[:-1], 5]) is None
    assert cache.find([]) is None
    cache.clear()
    assert cache.find([*HEAD, 1]) is None
    assert cache.num_bytes == 0


def test_a_text_larger_than_the_memory_is_not_kept():
    cache = PrefixCache(BYTES * MIN_TOKENS)
    keep(cache, HEAD)
    keep(cache, list(range(MIN_TOKENS + 1)))
    assert cache.find(HEAD) is not None


def test_this_must_fail_keys_of_another_place():
    with pytest.raises(AssertionError):
        check(row_cache([*HEAD, 7])._replace(positions=np.arange(len(HEAD) + 1)), [*HEAD, 8])
