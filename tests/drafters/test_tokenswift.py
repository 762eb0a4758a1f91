"""Counted n-grams against brute force, and self-drafts over part of the cache."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from proposals import check_tree, gains, paths, periodic, sequence_of

from conftest import VOCAB, build_model, drawn_as
from hasten.core import SamplingParams
from hasten.drafters.itself.tokenswift import TokenSwift
from hasten.drafters.tables.ngram_pool import CONTINUATION, NgramPool
from hasten.errors import ConfigError, StoreError
from hasten.models.causal_lm import CausalLM
from hasten.models.draft.partial_cache import PartialCache
from hasten.text.engine import LanguageModel

STREAMS = st.lists(st.integers(0, 2), max_size=120)


def brute_force(text: list[int], window: int = 0) -> dict[int, dict[tuple[int, ...], tuple[int, int]]]:
    """token -> continuation -> how often, and where last."""
    end = max(len(text) - window, 0)
    found: dict[int, dict[tuple[int, ...], tuple[int, int]]] = {}
    for at in range(end - CONTINUATION):
        ranks = found.setdefault(text[at], {})
        continuation = tuple(text[at + 1 : at + 1 + CONTINUATION])
        ranks[continuation] = (ranks.get(continuation, (0, 0))[0] + 1, at)
    return found


def learnt(text: list[int], piece: int, **options: int) -> NgramPool:
    pool = NgramPool(**options)
    for end in range(piece, len(text) + piece, piece):
        pool.learn(text[:end])
    return pool


@given(text=STREAMS, piece=st.integers(1, 9), num_best=st.integers(1, 6), window=st.integers(0, 10))
def test_the_best_continuations_are_those_of_a_counter(
    text: list[int], piece: int, num_best: int, window: int
) -> None:
    pool = learnt(text, piece, num_best=num_best, window=window)
    expected = brute_force(text, window)
    for token in range(3):
        ranks = expected.get(token, {})
        best = sorted(ranks, key=ranks.__getitem__, reverse=True)[:num_best]
        assert [continuation for _, continuation, _ in pool.best([token])] == best
        assert Counter(pool.counts(token)) == Counter({key: count for key, (count, _) in ranks.items()})
    together = sorted(
        ((rank, token, key) for token, ranks in expected.items() for key, rank in ranks.items()), reverse=True
    )
    # A token offers at most num_best, which is as many as are asked for.
    assert [(token, key) for token, key, _ in pool.best([0, 1, 2, 1])] == [
        (token, key) for _, token, key in together[:num_best]
    ]


@pytest.mark.parametrize("seed", range(10))
def test_the_best_of_long_random_streams_are_those_of_a_counter(seed: int) -> None:
    """Many equal counts, and continuations that come back after others displaced them."""
    text = np.random.default_rng(seed).integers(0, 3, 400).tolist()
    for end in range(100, 401, 60):
        pool = learnt(text[:end], 13, num_best=4)
        for token, ranks in brute_force(text[:end]).items():
            best = sorted(ranks, key=ranks.__getitem__, reverse=True)[:4]
            assert [continuation for _, continuation, _ in pool.best([token])] == best


def test_the_share_of_a_continuation_is_its_part_of_all_that_followed() -> None:
    pool = NgramPool()
    pool.learn([7, 1, 2, 3, 7, 1, 2, 3, 7, 4, 5, 6])
    found = {continuation: share for _, continuation, share in pool.best([7])}
    assert found == {(1, 2, 3): 2 / 4, (4, 5, 6): 1 / 4}


@pytest.mark.parametrize("window", [0, 3, 20])
def test_a_window_hides_the_latest_tokens_and_none_hides_nothing(window: int) -> None:
    prompt = list(range(12))
    pool = NgramPool(window=window)
    pool.learn(prompt)
    assert len(pool) == max(0, 12 - CONTINUATION - window)
    pool.learn([*prompt, *range(50, 50 + window)])
    assert len(pool) == max(0, 12 - CONTINUATION)


@given(text=st.lists(st.integers(0, 9), max_size=200), size=st.integers(2, 20))
def test_a_pool_stays_within_its_bound_and_keeps_the_most_frequent(text: list[int], size: int) -> None:
    often = [20, 21, 22, 23] * 30
    pool = learnt([*often, *text], 7, max_ngrams=max(size, 8))
    assert len(pool) <= max(size, 8)
    assert len(pool) == sum(len(pool.counts(token)) for token in range(30))
    assert pool.best([20])[0][1] == (21, 22, 23)
    for token in range(30):
        counts = pool.counts(token)
        best = [counts[continuation] for _, continuation, _ in pool.best([token])]
        assert best == sorted(counts.values(), reverse=True)[:20]


@pytest.mark.parametrize("options", [{"num_best": 0}, {"window": -1}, {"max_ngrams": 1}])
def test_a_pool_refuses_what_cannot_work(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        NgramPool(**options)


def test_a_text_written_before_is_drafted_again_without_a_target() -> None:
    drafter = TokenSwift(None)
    sequence = sequence_of([*range(8), *range(8), 0])
    drafter.begin(sequence, None)
    assert gains(drafter, sequence, periodic(8), 8, 10) == [4] * 10
    drafter.attach(object(), [sequence])  # type: ignore[arg-type]
    assert drafter.why_no_self_draft == "no target was given"


def test_shared_beginnings_are_one_node_and_as_likely_as_all_that_share_them() -> None:
    drafter = TokenSwift(None)
    text = [7, 1, 2, 3, 7, 1, 2, 4, 7, 1, 5, 6, 9, 9, 7]
    sequence = sequence_of(text)
    drafter.begin(sequence, None)
    tree = drafter.propose(sequence, 20)
    check_tree(tree, 20)
    expected = [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 5), (1, 5, 6)]
    assert paths(tree) == set(expected)
    assert len(tree) == len(expected)
    scores = {tuple(tree.token_ids[tree.path_to(node)].tolist()): tree.scores[node] for node in range(6)}
    assert scores == pytest.approx(
        {(1,): 3 / 4, (1, 2): 2 / 4, (1, 2, 3): 1 / 4, (1, 2, 4): 1 / 4, (1, 5): 1 / 4, (1, 5, 6): 1 / 4}
    )
    for budget in range(7):
        check_tree(drafter.propose(sequence, budget), budget)


LONG: dict[str, Any] = {"max_position_embeddings": 1024}
PROMPTS = [np.random.default_rng(row).integers(2, VOCAB, 20 + 9 * row).tolist() for row in range(4)]
GREEDY = SamplingParams(max_new_tokens=300, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=300, ignore_eos=True, temperature=0.8, seed=3)
ENDING = SamplingParams(max_new_tokens=300, stop_token_ids=[7], temperature=0.8, seed=4)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED, "ending": ENDING}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(CausalLM(build_model("llama", torch.float64, **LONG)), drafter="off")


@pytest.fixture(scope="module")
def plain(lm: LanguageModel) -> Any:
    known: dict[str, Any] = {}
    return lambda name: known.setdefault(name, lm.generate(PROMPTS, PARAMS[name], drafter="off"))


def swift(lm: LanguageModel, **options: Any) -> TokenSwift:
    return TokenSwift(lm.target, **{"budget": 48, "num_sink": 4, **options})


def ids(outputs: list[Any]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.fixture
def selections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that partial caches were selected from."""
    made: list[int] = []
    original = PartialCache.__init__

    def count(self: PartialCache, forward: Any, full: Any, *rest: Any, **options: Any) -> None:
        made.append(len(full.positions))
        original(self, forward, full, *rest, **options)

    monkeypatch.setattr(PartialCache, "__init__", count)
    return made


@pytest.mark.parametrize(("name", "budget"), [("greedy", 32), ("sampled", 64), ("ending", 32)])
def test_long_texts_are_those_of_plain_decoding_alone_and_side_by_side(
    lm: LanguageModel, plain: Any, selections: list[int], name: str, budget: int
) -> None:
    expected = plain(name)
    batch = lm.generate(PROMPTS, PARAMS[name], drafter=swift(lm, budget=budget), num_draft_tokens=16)
    assert ids(batch) == ids(expected)
    if name != "ending":
        assert len(selections) >= 4 * (300 - budget) // (budget + 8)
        assert sum(one.stats.num_accepted_tokens for one in batch) > 50
    for row in (1, 3):
        drafter = swift(lm, budget=budget)
        params = drawn_as(batch[row], PARAMS[name])
        alone = lm.generate(PROMPTS[row], params, drafter=drafter, num_draft_tokens=16)
        assert alone.token_ids == batch[row].token_ids
        # The same drafts in a batch as alone: every row is drafted from its own cache, also when others left.
        assert alone.stats.num_steps == batch[row].stats.num_steps
        assert drafter.ranking == "query"


def test_sequences_of_the_ending_texts_leave_at_different_times(plain: Any) -> None:
    assert len({len(output.token_ids) for output in plain("ending")}) > 2


@pytest.mark.parametrize("name", ["greedy", "sampled"])
@pytest.mark.parametrize("budget", [10**6, 258])
def test_a_whole_cache_is_always_right_and_a_nearly_whole_one_often(
    lm: LanguageModel, plain: Any, monkeypatch: pytest.MonkeyPatch, name: str, budget: int
) -> None:
    original = PartialCache.__init__

    def select(self: PartialCache, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{**options, "budget": budget})

    monkeypatch.setattr(PartialCache, "__init__", select)
    expected = plain(name)[0]
    text = [*expected.prompt_ids, *expected.token_ids]
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=PARAMS[name].temperature, seed=3)
    found = lm.generate(text[:260], params, drafter=swift(lm, budget=258), num_draft_tokens=40)
    assert found.token_ids == text[260:300]
    assert found.stats.mean_acceptance_length >= (3.0 if budget == 258 else 5.0)


def test_a_cache_is_selected_anew_when_a_budget_was_written_behind_it(
    lm: LanguageModel, selections: list[int]
) -> None:
    lm.generate(PROMPTS[0], GREEDY, drafter=swift(lm, num_sink=8), num_draft_tokens=6)
    assert selections[0] >= 48
    steps = np.diff(selections)
    assert len(steps) > 3
    assert ((steps > 40) & (steps <= 40 + 5)).all()


def test_a_text_within_the_budget_is_not_self_drafted(lm: LanguageModel, selections: list[int]) -> None:
    drafter = swift(lm, budget=20 + 300)
    lm.generate(PROMPTS[0], GREEDY, drafter=drafter, num_draft_tokens=6)
    assert not selections
    assert drafter.ranking is None
    assert drafter.why_no_self_draft == ""


def test_samples_of_one_prompt_share_it_and_draft_as_alone(lm: LanguageModel, selections: list[int]) -> None:
    prompt = np.random.default_rng(9).integers(2, VOCAB, 300).tolist()
    params = SamplingParams(max_new_tokens=60, ignore_eos=True, temperature=0.8, seed=3, n=3)
    apart = LanguageModel(CausalLM(lm.target.forward.model, shared_prefix="off"), drafter="off")
    expected = apart.generate([prompt], params, drafter="off")
    found = [one.generate([prompt], params, drafter=swift(one), num_draft_tokens=8) for one in (lm, apart)]
    assert ids(found[0]) == ids(found[1]) == ids(expected)
    assert [one.stats.num_steps for one in found[0]] == [one.stats.num_steps for one in found[1]]
    assert len(selections) >= 6


def test_two_texts_may_be_written_at_the_same_time(lm: LanguageModel, plain: Any) -> None:
    drafter = swift(lm)
    streams = [lm.stream(prompt, GREEDY, drafter=drafter, num_draft_tokens=6) for prompt in PROMPTS[:2]]
    written: list[list[int]] = [[], []]
    for pieces in zip(*streams, strict=True):
        for of_one, piece in zip(written, pieces, strict=True):
            of_one.append(piece.token_id)
    assert written == ids(plain("greedy")[:2])
    assert not drafter._texts


def test_self_drafted_trees_hold_the_chain_and_its_alternatives(lm: LanguageModel) -> None:
    """Widths 1, 3, 3, 3, and no n-grams, as none are old enough."""
    trees: list[Any] = []

    class Watched(TokenSwift):
        def propose(self, sequence: Any, budget: int) -> Any:
            trees.append(super().propose(sequence, budget))
            return trees[-1]

    prompt = list(range(2, 90))
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    drafter = Watched(lm.target, budget=40, num_sink=4, penalty_window=999)
    lm.generate(prompt, params, drafter=drafter, num_draft_tokens=64)
    check_tree(trees[0], 64)
    assert np.bincount(trees[0].depths())[1:].tolist() == [1, 3, 9, 27]


def test_n_grams_follow_the_likely_next_tokens_too(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = swift(lm)
    sequence = sequence_of([4, 5, 6, 7, 9, 8, 3, 2, 30])
    drafter.begin(sequence, None)
    monkeypatch.setattr(drafter, "_self_draft", lambda *arguments: [[(4, 0.6), (9, 0.2), (50, 0.1)]])
    tree = drafter.propose(sequence, 20)
    check_tree(tree, 20)
    # 9 is not among the width of the first position, but something followed it; nothing did after 50.
    assert paths(tree) == {(4, 5, 6, 7)[:size] for size in range(1, 5)} | {
        (9, 8, 3, 2)[:size] for size in range(1, 5)
    }
    scores = {tuple(tree.token_ids[tree.path_to(node)].tolist()): tree.scores[node] for node in range(8)}
    assert [scores[4,], scores[4, 5], scores[9,], scores[9, 8, 3]] == pytest.approx([0.6, 0.3, 0.2, 0.1])


def test_a_model_with_windows_drafts_n_grams_only_and_says_why(models: Any, selections: list[int]) -> None:
    lm = models("gemma3")
    drafter = swift(lm, budget=10)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    found = lm.generate(PROMPTS[0], params, drafter=drafter, num_draft_tokens=6)
    assert found.token_ids == lm.generate(PROMPTS[0], params, drafter="off").token_ids
    assert "window" in drafter.why_no_self_draft
    assert not selections


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0},
        {"num_sink": 0},
        {"num_ngrams": 0},
        {"budget": 16},
        {"widths": ()},
        {"widths": (1, 0)},
        {"widths": (11,)},
        {"penalty_window": -1},
    ],
)
def test_it_refuses_what_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        TokenSwift(None, **options)


def test_nothing_outlives_a_sequence() -> None:
    drafter = TokenSwift(None)
    sequence = sequence_of([1, 2, 3, 4, 1])
    drafter.begin(sequence, None)
    drafter.end(sequence)
    assert not drafter._texts
    assert drafter.state() == {}
    with pytest.raises(StoreError, match="tokenswift"):
        drafter.restore({"table": np.zeros(3)})
