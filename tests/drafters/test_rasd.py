"""Fusing trees, pruning what was retrieved, and both together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from proposals import check_tree, drafted, gains, paths, periodic, scores, sequence_of

from adversaries import VOCAB
from hasten.drafters.base import Observation
from hasten.drafters.corpus.corpus_index import open_index, write_index
from hasten.drafters.corpus.rasd import Rasd, prune
from hasten.drafters.tables.token_recycling import TokenRecycling
from hasten.errors import ConfigError, StoreError
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree

NAME = f"token-ids-{VOCAB}"


@st.composite
def scored_trees(draw: st.DrawFn) -> DraftTree:
    """Valid trees over few tokens, so that they overlap; scores never rise from parent to child."""
    all_paths = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=8))
    tree = DraftTree.from_paths(all_paths)
    for node, parent in enumerate(tree.parents.tolist()):
        tree.scores[node] = (1.0 if parent < 0 else tree.scores[parent]) * draw(
            st.sampled_from([0.25, 0.5, 1])
        )
    return tree


def num_accepted(tree: DraftTree, target: list[int]) -> int:
    node = -1
    for depth, token in enumerate(target):
        child = tree.child(node, token)
        if child is None:
            return depth
        node = child
    return len(target)


@given(first=scored_trees(), second=scored_trees(), target=st.lists(st.integers(0, 2), max_size=6))
def test_a_fused_tree_is_the_prefix_union(first, second, target):
    fused = DraftTree.fuse([first, second])
    check_tree(fused, 64)
    assert paths(fused) == paths(first) | paths(second)
    assert len(fused) == len(paths(fused))
    best = {path: max(scores(first).get(path, 0), scores(second).get(path, 0)) for path in paths(fused)}
    assert scores(fused) == best
    assert scores(DraftTree.fuse([second, first])) == best
    assert scores(DraftTree.fuse([fused, second])) == best
    assert num_accepted(fused, target) == max(num_accepted(first, target), num_accepted(second, target))


@given(tree=scored_trees())
def test_fusing_with_itself_or_nothing_changes_nothing(tree):
    for other in (DraftTree.fuse([tree, DraftTree()]), DraftTree.fuse([tree, tree]), DraftTree.fuse([tree])):
        assert other.token_ids.tolist() == tree.token_ids.tolist()
        assert other.parents.tolist() == tree.parents.tolist()
        assert other.scores.tolist() == tree.scores.tolist()
    assert len(DraftTree.fuse([])) == 0


@given(tree=scored_trees(), count=st.integers(-1, 12))
def test_the_best_nodes_come_with_their_ancestors(tree, count):
    best = tree.best(count)
    check_tree(best, count)
    assert len(best) == min(len(tree), max(count, 0))
    assert best.scores.tolist() == sorted(tree.scores.tolist(), reverse=True)[: len(best)]
    assert scores(best).items() <= scores(tree).items()
    closure = np.zeros((len(best) + 1, len(best) + 1), bool)
    closure[0, 0] = True
    for node in range(len(best)):
        closure[node + 1, [0, *(at + 1 for at in best.path_to(node))]] = True
    assert np.array_equal(best.attention_mask(), closure)


def test_nodes_keep_the_source_that_came_first():
    first = DraftTree([1, 2], [-1, 0], [0.5, 0.4], source_names=("a",))
    second = DraftTree([1, 3], [-1, 0], [0.9, 0.3], source_names=("b",))
    fused = DraftTree.fuse([first, second])
    assert [fused.source_names[source] for source in fused.sources] == ["a", "a", "b"]
    assert fused.scores.tolist() == pytest.approx([0.9, 0.4, 0.3])


RETRIEVED = DraftTree([10, 11, 20, 21, 30], [-1, 0, -1, 2, -1], [0.2, 0.1, 0.6, 0.5, 0.05])


def pruned(companion: DraftTree, num_best: int = 1, min_product: float = 0.1) -> set[tuple[int, ...]]:
    tree = prune(RETRIEVED, companion, num_best, min_product)
    check_tree(tree, 64)
    assert tree.scores.tolist() == sorted(tree.scores.tolist(), reverse=True)
    return paths(tree)


def test_branches_stay_that_the_companion_expects():
    companion = DraftTree([10, 20, 10], [-1, -1, 1], [0.8, 0.1, 0.05])
    assert pruned(companion) == {(10,), (10, 11)}
    assert pruned(companion, num_best=2) == {(10,), (10, 11), (20,), (20, 21)}
    assert pruned(companion, min_product=0.05) == {(10,), (10, 11), (20,), (20, 21)}  # 0.1 * 0.6
    assert pruned(companion, num_best=0) == {(10,), (10, 11)}  # 0.8 * 0.2
    assert pruned(companion, num_best=0, min_product=0.5) == set()
    assert pruned(DraftTree([50], [-1])) == set()


def test_a_companion_without_expectations_prunes_nothing():
    assert pruned(DraftTree(), num_best=0) == paths(RETRIEVED)


def test_a_draft_models_whole_law_judges():
    law = np.zeros((1, 40), np.float32)
    law[0, [10, 20, 30]] = 0.1, 0.3, 0.6
    assert pruned(DraftTree([30], [-1], [0.6], draft_probs=law)) == {(30,), (20,), (20, 21)}


class Fixed:
    """Always proposes one tree and counts its calls."""

    name = "fixed"
    top_k = 3

    def __init__(self, tree: DraftTree) -> None:
        self.tree = tree
        self.calls: list[str] = []

    def begin(self, sequence, prompt_candidates):
        self.calls.append("begin")

    def propose(self, sequence, budget):
        return self.tree.head(budget)

    def observe(self, sequence, observation):
        self.calls.append("observe")

    def end(self, sequence):
        self.calls.append("end")

    def state(self):
        return {"learnt": np.arange(3)}

    def restore(self, state):
        self.calls.append(f"restore {sorted(state)}")


@pytest.fixture
def index(tmp_path):
    write_index(tmp_path / "store", [np.array([1, 2, 30, 31, 32]), np.array([1, 2, 40, 41])], NAME)
    return open_index(tmp_path / "store", NAME)


def test_corpus_text_and_companion_are_fused(index):
    text = [1, 2, 50, 51, 9, 1, 2]
    nothing = Fixed(DraftTree())
    from_text = {(50,), (50, 51), (50, 51, 9), (50, 51, 9, 1), (50, 51, 9, 1, 2)}
    from_corpus = {(30,), (30, 31), (30, 31, 32), (40,), (40, 41)}
    assert paths(drafted(Rasd(None, nothing), text)) == from_text
    assert paths(drafted(Rasd(index, nothing), text)) == from_text | from_corpus
    companion = Fixed(DraftTree([30, 60], [-1, 0], [0.9, 0.8]))
    tree = drafted(Rasd(index, companion), text)
    assert paths(tree) == {(30,), (30, 60), (30, 31), (30, 31, 32)}
    assert tree.token_ids[:2].tolist() == [30, 60]
    assert paths(drafted(Rasd(index, companion), text, budget=2)) == {(30,), (30, 60)}
    assert len(drafted(Rasd(index, companion), text, budget=0)) == 0
    assert set(tree.source_names) == {"rasd"}


def test_retrieved_nodes_have_a_budget_of_their_own(index):
    drafter = Rasd(index, Fixed(DraftTree([60, 61, 62], [-1, 0, 1], [0.9, 0.9, 0.9])), max_retrieved=3)
    companion = {(60,), (60, 61), (60, 61, 62)}
    assert paths(drafted(drafter, [9, 1, 2])) == companion
    drafter = Rasd(index, Fixed(DraftTree()), max_retrieved=3)
    assert len(drafted(drafter, [1, 2, 50, 51, 9, 1, 2])) == 3  # of ten, from the corpus and the text


def test_the_companion_is_told_everything():
    companion = Fixed(DraftTree())
    drafter = Rasd(None, companion)
    assert drafter.top_k == 3
    sequence = sequence_of([1, 2])
    drafter.begin(sequence, None)
    drafter.observe(sequence, Observation(DraftTree(), None))
    drafter.end(sequence)
    drafter.restore(drafter.state())
    assert companion.calls == ["begin", "observe", "end", "restore ['learnt']"]
    with pytest.raises(StoreError, match="other"):
        drafter.restore({"other/learnt": np.zeros(1)})


def test_a_repeating_target_is_accepted():
    drafter = Rasd(None, TokenRecycling(20))
    sequence = sequence_of([0])
    drafter.begin(sequence, None)
    assert max(gains(drafter, sequence, periodic(6), budget=16, num_steps=8)) >= 6


def test_options_that_cannot_work_are_refused(targets):
    for options in ({"num_best": -1}, {"min_product": 0.0}, {"max_retrieved": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Rasd(None, TokenRecycling(9), **options)
    union = LanguageModel(targets(), drafter="auto").drafter()
    with pytest.raises(ConfigError, match="auto drafts inside the target"):
        Rasd(None, union)
