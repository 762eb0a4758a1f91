"""The suffix automaton against brute force, and the drafts that grow from its matches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from proposals import check_tree, gains, paths, periodic, sequence_of

from hasten.drafters.lookup.suffix import SuffixDrafter
from hasten.drafters.lookup.suffix_automaton import (
    COUNT,
    FIRST_END,
    LAST_END,
    LENGTH,
    LINK,
    NUM_EDGES,
    NUM_STATES,
    ROOT,
    TARGET,
    SuffixAutomaton,
    find_edge,
)
from hasten.errors import ConfigError, StoreError
from hasten.tree import DraftTree

DOCUMENTS = strategies.lists(
    strategies.lists(strategies.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=4
)


def automaton_of(documents: list[list[int]], piece: int = 100) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for document in documents:
        automaton.start_document()
        for at in range(0, len(document), piece):
            automaton.append(np.array(document[at : at + piece], np.int64))
    return automaton


def ends_of(documents: list[list[int]], tokens: tuple[int, ...]) -> list[int]:
    """Positions, over all documents, where an occurrence ends."""
    ends, before = [], 0
    for document in documents:
        for at in range(len(document) - len(tokens) + 1):
            if tuple(document[at : at + len(tokens)]) == tokens:
                ends.append(before + at + len(tokens) - 1)
        before += len(document)
    return ends


def longest_match(documents: list[list[int]], text: list[int]) -> int:
    lengths = range(len(text) + 1)
    return max(length for length in lengths if not length or ends_of(documents, tuple(text[-length:])))


def state_of(automaton: SuffixAutomaton, tokens: tuple[int, ...]) -> int | None:
    state = ROOT
    for token in tokens:
        edge = find_edge(automaton.edges, automaton.slots, state, token)
        if edge < 0:
            return None
        state = int(automaton.edges[edge, TARGET])
    return state


@settings(max_examples=150, deadline=None)
@given(documents=DOCUMENTS, piece=strategies.integers(1, 5))
def test_counts_and_ends_equal_brute_force(documents: list[list[int]], piece: int) -> None:
    automaton = automaton_of(documents, piece)
    states = automaton.states
    substrings = {
        tuple(document[start:end])
        for document in documents
        for start in range(len(document))
        for end in range(start + 1, len(document) + 1)
    }
    for tokens in substrings:
        state = state_of(automaton, tokens)
        assert state is not None
        ends = ends_of(documents, tokens)
        assert states[state, COUNT] == len(ends)
        assert (states[state, FIRST_END], states[state, LAST_END]) == (ends[0], ends[-1])
        assert states[states[state, LINK], LENGTH] < len(tokens) <= states[state, LENGTH]
    for tokens in {(*tokens, token) for tokens in substrings for token in range(3)} - substrings:
        assert state_of(automaton, tokens) is None
    total = sum(map(len, documents))
    assert automaton.counters[NUM_STATES] <= 2 * total + 1
    assert automaton.counters[NUM_EDGES] <= 3 * total


@settings(max_examples=100, deadline=None)
@given(
    documents=DOCUMENTS,
    text=strategies.lists(strategies.integers(0, 2), min_size=1, max_size=20),
    cut=strategies.integers(0, 20),
)
def test_the_match_equals_a_naive_scan(documents: list[list[int]], text: list[int], cut: int) -> None:
    automaton = automaton_of(documents)
    state, length = automaton.match(np.array(text[:cut], np.int64))
    state, length = automaton.match(np.array(text[cut:], np.int64), state, length)
    assert length == longest_match(documents, text)
    if length:
        assert state == state_of(automaton, tuple(text[-length:]))


@settings(max_examples=100, deadline=None)
@given(text=strategies.lists(strategies.integers(0, 2), min_size=1, max_size=30))
def test_the_repeated_suffix_equals_a_naive_scan(text: list[int]) -> None:
    state, length = automaton_of([text], piece=3).repeated_suffix()
    repeated = [n for n in range(1, len(text)) if len(ends_of([text], tuple(text[-n:]))) > 1]
    assert length == max(repeated, default=0)
    assert automaton_of([text]).states[state, LENGTH] == length


def test_counts_survive_repetitive_text_and_growth() -> None:
    """Long chains of suffix links are recounted at once instead of being walked for every token."""
    automaton = automaton_of([[7] * 900, [7] * 10, [1, 2] * 300], piece=4)
    for length in (1, 2, 10, 899, 900):
        state = state_of(automaton, (7,) * length)
        assert state is not None
        assert automaton.states[state, COUNT] == 901 - length + max(11 - length, 0)
        assert automaton.states[state, LAST_END] == (909 if length <= 10 else 899)
    state = state_of(automaton, (1, 2) * 100)
    assert automaton.states[state, COUNT] == 201


def test_a_recount_equals_brute_force() -> None:
    documents = [[0, 1, 2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 2], [7] * 300]
    automaton = automaton_of(documents, piece=100)
    states = automaton.states
    first = documents[0]
    substrings = {tuple(first[start:end]) for start in range(13) for end in range(start + 1, 14)}
    for tokens in substrings | {(7,) * length for length in (1, 2, 150, 299, 300)}:
        state = state_of(automaton, tokens)
        assert state is not None
        ends = ends_of(documents, tokens)
        assert (states[state, COUNT], states[state, LAST_END]) == (len(ends), ends[-1])


def drafted(text: list[int], budget: int = 32, **options: float) -> DraftTree:
    drafter = SuffixDrafter(**options)  # type: ignore[arg-type]
    sequence = sequence_of(text)
    drafter.begin(sequence, None)
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    return tree


def after(drafter: SuffixDrafter, text: list[int], budget: int = 32) -> DraftTree:
    sequence = sequence_of(text)
    drafter.begin(sequence, None)
    tree = drafter.propose(sequence, budget)
    check_tree(tree, budget)
    sequence.prompt_length = len(text)  # nothing was written, so nothing is kept
    drafter.end(sequence)
    return tree


def answer(drafter: SuffixDrafter, prompt: list[int], response: list[int]) -> None:
    sequence = sequence_of(prompt + response, prompt_length=len(prompt))
    drafter.begin(sequence, None)
    drafter.end(sequence)


def test_fresh_text_does_not_match_itself() -> None:
    assert len(drafted(list(range(50)))) == 0
    assert len(drafted([1])) == 0


@settings(max_examples=60, deadline=None)
@given(
    text=strategies.lists(strategies.integers(0, 3), min_size=1, max_size=60),
    budget=strategies.integers(0, 40),
)
def test_trees_keep_their_invariants(text: list[int], budget: int) -> None:
    drafter = SuffixDrafter()
    answer(drafter, [9], text[::-1])
    answer(drafter, [9], text)
    after(drafter, text, budget)


def test_the_continuation_of_the_longest_match_comes_first() -> None:
    text = [1, 2, 3, 4, 50, 51, 9, 3, 4, 60, 61, 8, 1, 2, 3, 4]
    tree = drafted(text)
    assert tree.token_ids[0] == 50
    assert {(50,), (50, 51), (60,)} <= paths(tree)
    assert drafted(text, budget=1).token_ids.tolist() == [50]


def test_scores_follow_the_counts() -> None:
    text = [1, 2, 30, 1, 2, 30, 1, 2, 30, 1, 2, 40, 1, 2]
    tree = drafted(text, budget=64)
    scores = {path: float(score) for path, score in zip(map(tuple, _paths(tree)), tree.scores, strict=True)}
    assert scores[(30,)] == pytest.approx(3 * scores[(40,)])


def _paths(tree: DraftTree) -> list[list[int]]:
    return [[int(tree.token_ids[at]) for at in tree.path_to(node)] for node in range(len(tree))]


def test_the_latest_occurrence_wins_ties() -> None:
    assert drafted([1, 2, 50, 1, 2, 60, 1, 2], budget=1).token_ids.tolist() == [60]
    assert drafted([1, 2, 60, 1, 2, 50, 1, 2], budget=1).token_ids.tolist() == [50]


def test_the_conditional_score_tells_the_match_length() -> None:
    bins = []
    for length in (1, 2, 3, 4, 7, 8, 20):
        match = list(range(100, 100 + length))
        tree = drafted([5, *match, 50, 6, *match])
        assert tree.token_ids[0] == 50
        bins.append(int(np.floor(-2 * np.log2(tree.scores[0]))))
    assert bins == [4, 3, 2, 1, 1, 0, 0]


def test_depth_is_bounded_by_the_match() -> None:
    text = [*range(100, 140), 1, 100, 101, 102]
    assert drafted(text, factor=1.0, offset=0.0).depths().max() == 3
    assert drafted(text, factor=2.0, offset=2.0).depths().max() == 8
    assert drafted(text, budget=5, factor=4.0, offset=1.0).depths().max() == 5


@pytest.mark.parametrize("period", [1, 2, 5])
def test_a_repeating_target_is_drafted_beyond_the_end_of_the_text(period: int) -> None:
    drafter = SuffixDrafter()
    sequence = sequence_of([0])
    drafter.begin(sequence, None)
    gained = gains(drafter, sequence, periodic(period), budget=16, num_steps=2 * period + 8)
    assert gained[-1] == 17


def test_responses_are_kept_and_prompts_are_not() -> None:
    drafter = SuffixDrafter()
    answer(drafter, [1, 2, 3, 4], [11, 12, 13, 14])
    assert _paths(after(drafter, [99, 11, 12])) == [[13], [13, 14]]
    assert len(after(drafter, [99, 1, 2])) == 0
    assert len(after(drafter, [99, 4])) == 0
    with_prompts = SuffixDrafter(store_prompts=True)
    answer(with_prompts, [1, 2, 3, 4], [11, 12, 13, 14])
    assert after(with_prompts, [99, 3, 4]).token_ids[0] == 11


def test_a_match_never_runs_across_responses() -> None:
    drafter = SuffixDrafter()
    answer(drafter, [0], [11, 12])
    answer(drafter, [0], [13, 14])
    assert len(after(drafter, [99, 11, 12])) == 0


def test_both_stores_share_one_tree_and_this_text_wins_ties() -> None:
    drafter = SuffixDrafter()
    answer(drafter, [0], [1, 2, 60, 61])
    text = [1, 2, 50, 51, 9, 1, 2]
    tree = after(drafter, text)
    assert tree.token_ids[:2].tolist() == [50, 60]
    assert tree.scores[0] == tree.scores[1]
    assert {(50, 51), (60, 61)} <= paths(tree)
    answer(drafter, [0], [7, 8, 1, 2, 50, 70, 3])
    assert {(50, 51), (50, 70)} <= paths(after(drafter, text))


def test_the_store_keeps_the_newest_documents_within_its_bound() -> None:
    drafter = SuffixDrafter(max_tokens=100)
    for document in range(30):
        answer(drafter, [0], [1000 * document + i for i in range(10)])
        assert len(drafter.state()["token_ids"]) <= 100
    assert after(drafter, [29_003]).token_ids[0] == 29_004
    assert len(after(drafter, [3])) == 0
    answer(drafter, [0], list(range(5000, 5300)))
    assert drafter.state()["token_ids"].tolist() == list(range(5200, 5300))


def test_a_finished_sequence_is_forgotten() -> None:
    drafter = SuffixDrafter(max_tokens=0)
    sequence = sequence_of([1, 2, 3], prompt_length=1)
    drafter.end(sequence)
    drafter.begin(sequence, None)
    drafter.end(sequence)
    drafter.end(sequence)
    assert drafter.state()["token_ids"].tolist() == []
    with pytest.raises(KeyError):
        drafter.propose(sequence, 4)


def test_a_saved_store_drafts_the_same() -> None:
    drafter = SuffixDrafter()
    random = np.random.default_rng(0)
    for _ in range(5):
        answer(drafter, [0], random.integers(0, 5, 40).tolist())
    text = random.integers(0, 5, 12).tolist()
    other = SuffixDrafter()
    other.restore(drafter.state())
    expected, found = after(drafter, text), after(other, text)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    for key, value in drafter.state().items():
        np.testing.assert_array_equal(other.state()[key], value)
    empty = SuffixDrafter()
    empty.restore(SuffixDrafter().state())
    assert len(empty.state()["token_ids"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": np.zeros(1)}, "needs token_ids and offsets"),
        ({"token_ids": np.zeros(4, np.int64)}, "token_ids must be int32"),
        ({"token_ids": np.zeros((2, 2), np.int32)}, "token_ids must be int32 and flat"),
        ({"token_ids": np.array([1, -1, 2, 3], np.int32)}, "between 0 and"),
        ({"offsets": np.array([0, 3])}, "rise from 0 to 4"),
        ({"offsets": np.array([1, 4])}, "rise from 0 to 4"),
        ({"offsets": np.array([0, 3, 2, 4])}, "rise from 0 to 4"),
        ({"offsets": np.zeros(0, np.int64)}, "rise from 0 to 4"),
    ],
)
def test_a_damaged_store_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    state = {"token_ids": np.array([1, 2, 3, 4], np.int32), "offsets": np.array([0, 2, 4])}
    SuffixDrafter().restore(state)
    with pytest.raises(StoreError, match=message):
        SuffixDrafter().restore(state | change)
    with pytest.raises(StoreError, match="found \\['offsets'\\]"):
        SuffixDrafter().restore({"offsets": state["offsets"]})


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="draft nothing"):
        SuffixDrafter(factor=0.0, offset=0.5)
    with pytest.raises(ConfigError, match="max_tokens=-1"):
        SuffixDrafter(max_tokens=-1)
