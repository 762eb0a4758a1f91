"""What Lookahead drafts from the prompt and from past outputs, against brute force and case by case."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from proposals import answer, drafted, gains, paths, periodic, scores, sequence_of
from tries import Path, counted, windows

from hasten.core import Acceptance
from hasten.drafters.base import Observation
from hasten.drafters.lookup.copying import match_reliability
from hasten.drafters.lookup.lookahead import FAN_OUTS, MIN_PROB, Lookahead
from hasten.drafters.lookup.token_trie import TokenTrie
from hasten.tree import DraftTree

TEXTS = strategies.lists(strategies.integers(0, 3), min_size=1, max_size=40)
MODES = strategies.sampled_from(sorted(FAN_OUTS))


def brute_force(
    prompt: list[int], outputs: list[list[int]], weight: float, branch_length: int
) -> dict[Path, float]:
    """The score of every path that may be drafted after two tokens, or after one where two say too little."""
    in_prompt = windows(prompt, 2 + branch_length)
    in_outputs = sum((windows(text, 2 + branch_length) for text in outputs), Counter())
    expected: dict[Path, float] = {}
    for length in range(min(2, len(prompt)), 0, -1):
        if len(expected) >= branch_length:
            break
        query = tuple(prompt[-length:])
        below: list[Path] = [()]
        while below:
            path = below.pop()
            counts = [
                {token: seen[(*query, *path, token)] for token in range(10) if (*query, *path, token) in seen}
                for seen in (in_prompt, in_outputs)
            ]
            totals = [sum(one.values()) for one in counts]
            if len(path) == branch_length:
                continue
            for token in set(counts[0]) | set(counts[1]):
                shares = [
                    one.get(token, 0) / max(total, 1) for one, total in zip(counts, totals, strict=True)
                ]
                first = weight if all(totals) else float(totals[0] > 0)
                share = first * shares[0] + (1 - first) * shares[1]
                child = (*path, token)
                above = expected[path] if path else 1.0
                expected.setdefault(child, above * share * match_reliability(length + len(path)))
                below.append(child)
    return expected


@settings(max_examples=80)
@given(
    prompt=TEXTS,
    outputs=strategies.lists(TEXTS, max_size=2),
    branch_length=strategies.integers(1, 5),
    weight=strategies.sampled_from([0.1, 0.5, 0.9]),
)
def test_a_tree_equals_brute_force(
    prompt: list[int], outputs: list[list[int]], branch_length: int, weight: float
) -> None:
    size = 5000
    drafter = Lookahead(branch_length=branch_length, decoding_length=size, prompt_weight=weight)
    for text in outputs:
        answer(drafter, [9], text)
    tree = drafted(drafter, prompt, budget=size)
    expected = brute_force(prompt, outputs, weight, branch_length)
    found = scores(tree)
    likely = {path for path, score in expected.items() if score > 2 * MIN_PROB}
    assert likely <= found.keys() <= expected.keys()
    for path in likely:
        assert found[path] == pytest.approx(expected[path], rel=1e-5)
    assert (np.diff(tree.scores) <= 0).all()


@settings(max_examples=80)
@given(
    prompt=TEXTS,
    outputs=strategies.lists(TEXTS, max_size=2),
    mode=MODES,
    budget=strategies.integers(0, 30),
    quotas=strategies.sampled_from([(0, 0), (32, 0), (0, 64), (20, 20)]),
)
def test_every_mode_keeps_the_invariants(
    prompt: list[int], outputs: list[list[int]], mode: str, budget: int, quotas: tuple[int, int]
) -> None:
    drafter = Lookahead(
        mode=mode,  # type: ignore[arg-type]
        branch_length=4,
        min_output_nodes=quotas[0],
        min_prompt_nodes=quotas[1],
    )
    for text in outputs:
        answer(drafter, [9], text)
    tree = drafted(drafter, prompt, budget)
    assert (np.diff(tree.scores) <= 0).all()
    assert tree.depths().max(initial=0) <= 4
    reached = brute_force(prompt, outputs, 0.9, 4)
    assert paths(tree) <= reached.keys()
    if mode == "hierarchical":
        likely = [path for path, score in reached.items() if score > 10 * MIN_PROB]
        assert len(tree) >= min(budget, len(likely))
    elif mode == "parallel":
        assert max(Counter(tree.parents[tree.parents >= 0].tolist()).values(), default=0) <= 1
    else:
        assert tree.parents.tolist() == list(range(-1, len(tree) - 1))


def test_what_was_put_is_found_by_its_beginning() -> None:
    drafter = Lookahead()
    answer(drafter, [1], [10, 11, 12, 13, 14, 15])
    assert drafted(drafter, [3, 10, 11]).token_ids.tolist() == [12, 13, 14, 15]
    assert drafted(drafter, [10]).token_ids.tolist() == [11, 12, 13, 14, 15]
    assert len(drafted(drafter, [3, 15])) == 0
    assert len(drafted(drafter, [77])) == 0


def test_a_branch_is_as_long_as_it_is_allowed_to_be() -> None:
    for branch_length in (1, 5, 12, 20):
        drafter = Lookahead(branch_length=branch_length)
        answer(drafter, [1], list(range(10, 60)))
        expected = list(range(12, 12 + branch_length))
        assert drafted(drafter, [3, 10, 11]).token_ids.tolist() == expected


def test_the_prompt_counts_for_its_own_sequence_only() -> None:
    drafter = Lookahead()
    sequence = sequence_of([1, 2, 3, 4, 5, 1, 2])
    drafter.begin(sequence, None)
    assert drafter.propose(sequence, 2).token_ids.tolist() == [3, 4]
    other = sequence_of([7, 1, 2])
    drafter.begin(other, None)
    assert len(drafter.propose(other, 8)) == 0
    drafter.end(sequence)
    drafter.end(sequence)
    assert len(drafter.propose(other, 8)) == 0
    assert len(drafter.state()["token_ids"]) == 0
    with pytest.raises(KeyError):
        drafter.propose(sequence, 8)


def test_an_output_is_found_while_it_is_written_and_after_its_end() -> None:
    drafter = Lookahead()
    sequence = sequence_of([1])
    drafter.begin(sequence, None)
    other = sequence_of([8, 20])
    drafter.begin(other, None)
    for token in (20, 21, 22):
        sequence.token_ids.append(token)
        drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [token])))
    assert drafter.propose(other, 8).token_ids.tolist() == [21, 22]
    drafter.end(sequence)
    assert drafter.propose(other, 8).token_ids.tolist() == [21, 22]


@settings(max_examples=40)
@given(prompt=TEXTS, response=TEXTS, step=strategies.integers(1, 20))
def test_it_does_not_matter_how_many_tokens_a_step_gains(
    prompt: list[int], response: list[int], step: int
) -> None:
    drafter = Lookahead()
    answer(drafter, prompt, response, step)
    trie = TokenTrie(14, 10**6, 100)
    trie.restore(drafter.state())
    assert counted(trie) == windows(response, 14)


@pytest.mark.parametrize("mode", sorted(FAN_OUTS))
def test_prompts_come_first_in_trees_and_outputs_in_a_single_branch(mode: str) -> None:
    drafter = Lookahead(mode=mode)  # type: ignore[arg-type]
    for _ in range(5):
        answer(drafter, [0], [1, 2, 60, 61])
    tree = drafted(drafter, [1, 2, 50, 51, 1, 2])
    assert tree.token_ids[0] == (60 if mode == "one" else 50)
    assert {(50,), (60,)} <= paths(tree) or mode == "one"


@pytest.mark.parametrize("mode", sorted(FAN_OUTS))
def test_outputs_decide_between_what_the_prompt_says_equally_often(mode: str) -> None:
    for often in (50, 60):
        drafter = Lookahead(mode=mode)  # type: ignore[arg-type]
        answer(drafter, [0], [1, 2, often, 9])
        assert drafted(drafter, [1, 2, 50, 7, 1, 2, 60, 8, 1, 2]).token_ids[0] == often


def test_modes_differ_in_their_branches() -> None:
    text = [1, 2, 3, 4, 7, 1, 2, 3, 5, 7, 1, 2, 6, 7, 1, 2]
    found = {}
    for mode in FAN_OUTS:
        found[mode] = paths(drafted(Lookahead(mode=mode, branch_length=2), text))  # type: ignore[arg-type]
    assert found["hierarchical"] == {(3,), (3, 4), (3, 5), (6,), (6, 7)}
    assert found["parallel"] == {(3,), (3, 5), (6,), (6, 7)}
    assert found["one"] == {(3,), (3, 5)}


def test_a_short_match_does_not_fork_a_branch() -> None:
    text = [5, 2, 40, 41, 6, 2, 40, 41, 7, 2, 30, 42, 1, 2, 30, 31, 1, 2]
    assert drafted(Lookahead(mode="one", branch_length=6), text).token_ids.tolist() == [30, 31, 1, 2]
    assert paths(drafted(Lookahead(mode="parallel", branch_length=6), [*text[:16], 9, 2])) >= {
        (40, 41),
        (30,),
    }


def crowded(**options: int) -> tuple[int, int]:
    """How many nodes come from the prompt and from outputs, where each could fill the tree alone."""
    drafter = Lookahead(branch_length=1, **options)
    answer(drafter, [0], [token for other in range(500, 580) for token in (1, 2, other)])
    tree = drafted(drafter, [*(token for other in range(100, 180) for token in (1, 2, other)), 1, 2])
    from_outputs = int((tree.token_ids >= 500).sum())
    return len(tree) - from_outputs, from_outputs


def test_quotas_are_what_each_trie_may_draft_unchallenged() -> None:
    assert crowded() == (32, 32)
    assert crowded(min_output_nodes=0) == (64, 0)
    assert crowded(min_output_nodes=10, min_prompt_nodes=54) == (54, 10)
    assert crowded(min_output_nodes=64) == (0, 64)
    assert crowded(decoding_length=32, min_output_nodes=8) == (24, 8)


def test_a_short_match_adds_to_a_draft_that_is_small() -> None:
    text = [5, 2, 40, 41, 6, 1, 2, 30, 31, 32, 9, 1, 2]
    assert drafted(Lookahead(branch_length=3), text).token_ids.tolist() == [30, 31, 32]
    tree = drafted(Lookahead(branch_length=6), [*text[:9], 1, 2])
    assert tree.token_ids[0] == 30
    assert {(30, 31), (40, 41)} <= paths(tree)


def test_a_repeating_target_is_drafted() -> None:
    drafter = Lookahead()
    sequence = sequence_of([0])
    drafter.begin(sequence, None)
    assert gains(drafter, sequence, periodic(5), budget=16, num_steps=20)[-1] == 13
