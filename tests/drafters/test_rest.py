"""What followed in a corpus, counted and ranked as a tree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from proposals import drafted, paths, scores

from adversaries import VOCAB
from hasten.core import SamplingParams
from hasten.drafters import Resources, make_drafter
from hasten.drafters.corpus.corpus_index import CorpusIndex, open_index, write_index
from hasten.drafters.corpus.rest import NUM_PREFIXES, Rest
from hasten.drafters.lookup.copying import match_reliability
from hasten.errors import ConfigError, StoreError
from hasten.text.engine import LanguageModel

NAME = f"token-ids-{VOCAB}"
DOCUMENTS = strategies.lists(
    strategies.lists(strategies.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=6
)


@pytest.fixture
def made(tmp_path_factory):
    def make(documents: list[list[int]]) -> CorpusIndex:
        path = tmp_path_factory.mktemp("index") / "store"
        write_index(path, [np.array(document) for document in documents], NAME)
        return open_index(path, NAME)

    return make


def brute_force(documents: list[list[int]], text: list[int]) -> tuple[int, Counter[tuple[int, ...]]]:
    """The longest match, and how often each prefix of at most ten tokens followed it; () for any."""
    for length in range(min(16, len(text)), 1, -1):
        counts: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            for at in range(len(document) - length):
                if document[at : at + length] == text[-length:]:
                    following = document[at + length : at + length + 10]
                    counts.update(tuple(following[:end]) for end in range(len(following) + 1))
        if counts:
            return length, counts
    return 0, Counter()


@settings(max_examples=100)
@given(
    documents=DOCUMENTS,
    text=strategies.lists(strategies.integers(0, 2), min_size=1, max_size=20),
    budget=strategies.integers(0, 80),
)
def test_the_most_frequent_prefixes_are_drafted(tmp_path_factory, documents, text, budget):
    path = tmp_path_factory.mktemp("index") / "store"
    write_index(path, [np.array(document) for document in documents], NAME)
    drafter = Rest(open_index(path, NAME))
    match, counts = brute_force(documents, text)
    whole = scores(drafted(drafter, text))
    assert set(whole) <= set(counts)
    assert len(whole) == min(NUM_PREFIXES, max(len(counts) - 1, 0))
    left_out = [count for prefix, count in counts.items() if prefix and prefix not in whole]
    assert min((counts[prefix] for prefix in whole), default=0) >= max(left_out, default=0)
    for prefix, score in whole.items():
        above = whole.get(prefix[:-1], 1.0)
        ratio = counts[prefix] / counts[prefix[:-1]]
        assert score == pytest.approx(above * ratio * match_reliability(match + len(prefix) - 1), rel=1e-4)
    cut = drafted(drafter, text, budget)
    assert list(scores(cut).items()) == list(whole.items())[:budget]
    assert cut.scores.tolist() == sorted(cut.scores.tolist(), reverse=True)


def test_the_longest_match_is_followed(made):
    drafter = Rest(made([[7, 1, 2, 3, 50, 51], [8, 2, 3, 60], [9, 2, 3, 60]]))
    assert paths(drafted(drafter, [1, 2, 3])) == {(50,), (50, 51)}
    assert paths(drafted(drafter, [2, 3])) == {(50,), (50, 51), (60,)}
    assert drafted(drafter, [2, 3]).token_ids[0] == 60
    assert len(drafted(drafter, [3])) == 0
    assert len(drafted(drafter, [40, 41])) == 0
    assert paths(drafted(Rest(made([[3, 60]]), min_match=1), [3])) == {(60,)}


def test_the_match_and_the_depth_are_bounded(made):
    document = list(range(60))
    tree = drafted(Rest(made([document, [99, *range(24, 40), 70]])), list(range(40)))
    assert paths(tree) >= {(40,), (70,)}  # 16 tokens match in both
    assert tree.depths().max() == 10
    assert drafted(Rest(made([document]), num_tokens=3), [4, 5]).depths().max() == 3


def test_frequent_matches_are_sampled(made):
    documents = [[1, 2, token] for token in range(3, 53) for _ in range(4)]
    tree = drafted(Rest(made(documents), max_occurrences=25), [1, 2])
    assert tree.token_ids.tolist() == list(range(3, 53, 2))


def test_only_the_most_frequent_prefixes_are_kept(made):
    documents = [
        [1, 2, token, token + 200] for token in range(3, 153) for _ in range(3 if token > 140 else 1)
    ]
    tree = drafted(Rest(made(documents)), [1, 2], budget=200)
    often = {(token,) for token in range(141, 153)}
    assert len(tree) == NUM_PREFIXES
    assert often | {(*path, path[0] + 200) for path in often} <= paths(tree)
    assert {(token,) for token in range(3, 43)} == {path for path in paths(tree) if path[0] <= 140}


def test_nothing_is_learnt_or_saved(made):
    drafter = Rest(made([[1, 2, 3]]))
    assert drafter.state() == {}
    drafter.restore({})
    with pytest.raises(StoreError, match="rest keeps nothing"):
        drafter.restore({"a": np.zeros(1)})


@pytest.mark.parametrize(
    "options",
    [
        {"min_match": 0},
        {"min_match": 5, "max_match": 4},
        {"num_tokens": 0},
        {"max_occurrences": 0},
        {"max_match": 30},
    ],
)
def test_options_that_cannot_work_are_refused(made, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Rest(made([[1, 2, 3]]), **options)


def test_a_missing_index_is_an_error_with_the_remedy():
    with pytest.raises(ConfigError, match=r"hasten index FILES -o STORE.*--index STORE"):
        make_drafter("rest", Resources(VOCAB))


@pytest.mark.parametrize("drafter", ["rest", "rasd"])
def test_an_answer_that_is_in_the_index_is_accepted_nearly_whole(targets, tmp_path: Path, drafter):
    plain = LanguageModel(targets(), drafter="off")
    params = SamplingParams(max_new_tokens=44, ignore_eos=True, temperature=0.9, seed=3)
    prompt = [5, 9, 13, 22]
    answer = plain.generate(prompt, params).token_ids
    noise = np.random.default_rng(0).integers(0, VOCAB, 5000)
    write_index(tmp_path / "store", [noise, np.array([*prompt, *answer])], NAME)
    indexed = LanguageModel(targets(), drafter=drafter, index=tmp_path / "store")
    output = indexed.generate(prompt, params, num_draft_tokens=20)
    assert output.token_ids == answer
    assert output.stats.num_steps <= 6
