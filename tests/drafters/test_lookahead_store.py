"""What of Lookahead is saved and taken over again, and which options it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from proposals import answer, drafted

from hasten.drafters.lookup.lookahead import Lookahead
from hasten.errors import ConfigError, StoreError


def test_a_saved_store_drafts_the_same() -> None:
    drafter = Lookahead(max_nodes=60, max_trees=5)
    random = np.random.default_rng(0)
    for _ in range(5):
        answer(drafter, [0], random.integers(0, 7, 80).tolist())
    other = Lookahead(max_nodes=60, max_trees=5)
    other.restore(drafter.state())
    for key, value in drafter.state().items():
        np.testing.assert_array_equal(other.state()[key], value)
    for text in random.integers(0, 7, (10, 12)).tolist():
        expected, found = drafted(drafter, text), drafted(other, text)
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
    answer(other, [0], random.integers(0, 7, 80).tolist())
    empty = Lookahead()
    empty.restore(Lookahead().state())
    assert len(empty.state()["token_ids"]) == 0


def test_a_store_larger_than_the_bounds_is_cut_down_to_them() -> None:
    drafter = Lookahead()
    answer(drafter, [0], np.random.default_rng(0).integers(0, 30, 500).tolist())
    small = Lookahead(max_nodes=20, max_trees=6)
    small.restore(drafter.state())
    parents = small.state()["parents"]
    assert 0 < (parents == -1).sum() <= 6
    assert len(parents) <= 20 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": np.zeros(1)}, "needs token_ids, parents and counts"),
        ({"counts": np.ones(3, np.int64)}, "counts must be int32"),
        ({"counts": np.ones(2, np.int32)}, "as long as the others"),
        ({"token_ids": np.zeros((3, 1), np.int32)}, "token_ids must be int32, flat"),
        ({"token_ids": np.array([1, -1, 2], np.int32)}, "0 or more"),
        ({"token_ids": np.array([1, 2, 2], np.int32)}, "differ below one parent"),
        ({"parents": np.array([-1, 1, 0], np.int32)}, "before their children"),
        ({"parents": np.array([-2, 0, 0], np.int32)}, "before their children"),
        ({"counts": np.array([1, 0, 1], np.int32)}, "between 1 and"),
        ({"counts": np.array([1, 2**31 - 1, 1], np.int32)}, "between 1 and"),
    ],
)
def test_a_damaged_store_is_refused_and_changes_nothing(change: dict[str, np.ndarray], message: str) -> None:
    state = {
        "token_ids": np.array([1, 2, 3], np.int32),
        "parents": np.array([-1, 0, 0], np.int32),
        "counts": np.array([2, 1, 1], np.int32),
    }
    drafter = Lookahead()
    drafter.restore(state)
    with pytest.raises(StoreError, match=message):
        drafter.restore(state | change)
    with pytest.raises(StoreError, match="found \\['counts'\\]"):
        drafter.restore({"counts": state["counts"]})
    assert drafter.state()["token_ids"].tolist() == [1, 2, 3]
    assert sorted(drafted(drafter, [1]).token_ids.tolist()) == [2, 3]


def test_what_was_saved_does_not_change_with_what_is_learnt() -> None:
    drafter = Lookahead()
    answer(drafter, [0], [1, 2, 3])
    state = drafter.state()
    answer(drafter, [0], [1, 2, 3])
    assert state["counts"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tree"}, "mode='tree' cannot work"),
        ({"branch_length": 0}, "branch_length=0"),
        ({"decoding_length": 0}, "decoding_length=0"),
        ({"max_query_length": 0}, "max_query_length=0"),
        ({"prompt_weight": 1.0}, "prompt_weight=1.0"),
        ({"min_output_nodes": -1}, "0 or more"),
        ({"min_prompt_nodes": 40}, "at most decoding_length=64 together"),
        ({"max_nodes": 13}, "at least max_query_length \\+ branch_length = 14"),
        ({"max_prompt_nodes": 13}, "max_prompt_nodes=13"),
        ({"max_trees": 0}, "max_trees=0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lookahead(**options)  # type: ignore[arg-type]
