"""Draft trees: their masks, depths and prefixes, and what a hostile drafter can put into one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adversaries import VOCAB, Adversary, trees
from hasten.core import SamplingParams, Sequence
from hasten.drafters.combined import CombinedDrafter
from hasten.errors import ConfigError
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import ROOT, DraftTree

SEQUENCE = Sequence([4], 1, 99, Sampler(SamplingParams()), StopConditions(frozenset(), 99, None))
FORK = DraftTree.from_paths([[11, 12, 13], [11, 14], [15]])


def test_paths_with_a_common_beginning_share_nodes():
    assert FORK.token_ids.tolist() == [11, 12, 13, 14, 15]
    assert FORK.parents.tolist() == [ROOT, 0, 1, 0, ROOT]


def test_a_chain_is_a_tree_with_one_path():
    chain = DraftTree.chain([4, 5, 6], [0.9, 0.5, 0.1])
    assert chain.parents.tolist() == [-1, 0, 1]
    assert chain.depths().tolist() == [1, 2, 3]
    assert chain.path_to(2) == [0, 1, 2]


def test_child_is_found_by_parent_and_token():
    assert FORK.child(ROOT, 15) == 4
    assert FORK.child(0, 14) == 3
    assert FORK.child(0, 15) is None


def test_the_mask_of_a_fork_hides_siblings_and_cousins():
    assert FORK.attention_mask().astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_an_empty_tree_has_only_the_root():
    assert DraftTree().attention_mask().tolist() == [[True]]
    assert DraftTree().depths().tolist() == []
    assert DraftTree().sanitised(10, 0).token_ids.tolist() == []


@given(trees())
def test_a_row_sees_exactly_the_root_its_ancestors_and_itself(tree):
    mask = tree.attention_mask()
    for node in range(len(tree)):
        seen = {0, *(ancestor + 1 for ancestor in tree.path_to(node))}
        assert set(np.flatnonzero(mask[node + 1])) == seen
        assert tree.depths()[node] == len(tree.path_to(node))


@given(trees(), st.integers(0, 14))
def test_every_prefix_of_the_nodes_is_closed(tree, count):
    head = tree.head(count)
    assert len(head) == min(count, len(tree))
    assert (head.parents < np.arange(len(head))).all()
    for node in range(len(head)):
        assert head.path_to(node) == tree.path_to(node)


@given(trees(vocab=4), st.integers(0, 6))
def test_sanitising_keeps_exactly_the_paths_that_can_be_verified(tree, max_depth):
    clean = tree.sanitised(3, max_depth)
    assert paths(clean) == first_appearances(tree, 3, max_depth)
    assert len(set(zip(clean.parents.tolist(), clean.token_ids.tolist(), strict=True))) == len(clean)
    assert clean.sanitised(3, max_depth) is clean


def paths(tree):
    return [tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))]


def first_appearances(tree, vocab_size, max_depth):
    """The paths of nodes all of whose ancestors are the first child with their token."""

    def is_first(node):
        return tree.child(int(tree.parents[node]), int(tree.token_ids[node])) == node

    found = []
    for node, path in enumerate(paths(tree)):
        whole = tree.path_to(node)
        if all(map(is_first, whole)) and len(path) <= max_depth and max(path) < vocab_size:
            found.append(path)
    return found


def test_sanitising_drops_unknown_tokens_with_all_below_them():
    tree = DraftTree([-7, 10**18, 4, VOCAB, VOCAB - 1, 8], [-1, -1, 0, -1, -1, 4])
    assert paths(tree.sanitised(VOCAB, 9)) == [(VOCAB - 1,), (VOCAB - 1, 8)]


def test_sanitising_keeps_scores_and_sources_with_their_nodes():
    tree = DraftTree([5, 5, 6], [-1, -1, -1], [0.5, 0.4, 0.3], [0, 0, 1], ("a", "b"))
    clean = tree.sanitised(VOCAB, 9)
    assert clean.scores.tolist() == pytest.approx([0.5, 0.3])
    assert [clean.source_names[source] for source in clean.sources] == ["a", "b"]


@pytest.mark.parametrize("parents", [[0], [-2], [1, -1], [-1, 2, 1]])
def test_a_parent_after_its_child_is_refused(parents):
    with pytest.raises(ConfigError, match="parents"):
        DraftTree([3, 4, 5][: len(parents)], parents).sanitised(9, 9)


def test_a_parent_list_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="not a tree"):
        DraftTree([3, 4], [-1]).sanitised(9, 9)


def test_a_tree_can_be_drawn():
    assert FORK.draw().splitlines()[:3] == ["(root)", "   11  p=1.00  draft", "      12  p=1.00  draft"]


def test_the_module_draws_one_when_run():
    shown = subprocess.run(
        [sys.executable, "-m", "hasten.tree"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("(root)")


@given(trees(), st.integers(0, 12))
def test_what_is_kept_of_a_tree_keeps_its_laws(tree, count):
    probs = np.arange(3.0 * len(tree), dtype=np.float32).reshape(len(tree), 3)
    lawful = DraftTree(tree.token_ids, tree.parents, draft_probs=probs)
    assert np.array_equal(lawful.head(count).draft_probs, probs[:count])
    clean = lawful.sanitised(VOCAB, 4)
    kept = [probs.tolist().index(law) for law in clean.draft_probs.tolist()]
    assert clean.token_ids.tolist() == tree.token_ids[kept].tolist()


@given(trees(), st.integers(0, 12))
def test_a_tree_begins_what_was_appended_to_it(tree, count):
    assert tree.head(count).begins(tree)
    assert not DraftTree([*tree.token_ids, 3], [*tree.parents, -1]).begins(tree)


def scored(tree, scores, **columns):
    return DraftTree(tree.token_ids, tree.parents, scores[: len(tree)], **columns)


SCORES = st.lists(st.sampled_from([0.125, 0.25, 0.5, 0.75]), min_size=12, max_size=12)


@given(trees(vocab=3), SCORES, trees(vocab=3), SCORES)
def test_a_union_has_every_path_once_with_its_best_score_and_its_first_source(one, scores, other, others):
    names = ("a", "b")
    sources = [node % 2 for node in range(len(one))]
    one = scored(one, scores, sources=sources, source_names=names)
    other = scored(other, others, source_names=("b",))
    best, first = {}, {}
    for tree in (one, other):
        for path, score, source in zip(paths(tree), tree.scores.tolist(), tree.sources.tolist(), strict=True):
            best[path] = max(score, best.get(path, 0))
            first.setdefault(path, tree.source_names[source])
    union = DraftTree.fuse([one, other]).checked()
    assert paths(union) == list(first)
    assert union.scores.tolist() == list(best.values())
    assert [union.source_names[source] for source in union.sources.tolist()] == list(first.values())


@given(trees(), SCORES, st.integers(-2, 14))
def test_the_best_nodes_come_best_first_and_the_earlier_among_equals(tree, scores, count):
    falling = []
    for parent, score in zip(tree.parents.tolist(), scores, strict=False):
        falling.append(score if parent == ROOT else min(score, falling[parent]))
    tree = scored(tree, falling)
    best = tree.best(count).checked()
    order = sorted(range(len(tree)), key=lambda node: (-falling[node], node))[: max(count, 0)]
    assert best.scores.tolist() == [falling[node] for node in order]
    assert paths(best) == [paths(tree)[node] for node in order]


@given(trees(), st.integers(0, 14))
def test_what_is_kept_of_a_tree_keeps_its_draws(tree, count):
    drawn = DraftTree(tree.token_ids, tree.parents, draws=np.tile(np.arange(len(tree))[::-1], 2))
    head = drawn.head(count).checked()
    assert head.draws.tolist() == [node for node in drawn.draws.tolist() if node < max(count, 0)]
    assert head.drawn_below(ROOT) == [node for node in drawn.drawn_below(ROOT) if node < count]


def test_a_chain_below_a_node_is_chosen_not_drawn():
    laws = np.full((5, 20), 0.05, np.float32)
    tree = DraftTree(
        FORK.token_ids, FORK.parents, [0.5] * 5, draft_probs=laws, draws=np.array([4, 0, 1, 3, 2])
    )
    longer = tree.followed_by(DraftTree.chain([14, 15, 2], [0.75, 0.5, 0.25]), 0).checked()
    assert paths(longer) == [*paths(tree), (11, 14, 15), (11, 14, 15, 2)]
    assert longer.scores.tolist() == [*tree.scores.tolist(), 0.25, 0.125]
    assert longer.draws.tolist() == [4, 0, 1, 3, 2, 5, 6]
    assert np.array_equal(longer.draft_probs, np.concatenate([laws, np.eye(20, dtype=np.float32)[[15, 2]]]))
    assert tree.followed_by(DraftTree.chain([7], [0.75]), ROOT).scores[-1] == 0.75


def test_an_index_out_of_range_is_named_with_what_it_may_be():
    with pytest.raises(ConfigError, match=r"sources \[0, 2\] must be 0 to 1"):
        DraftTree([4, 5], [-1, 0], sources=[0, 2], source_names=("a", "b")).checked()
    with pytest.raises(ConfigError, match=r"draws \[0, 2\] must be 0 to 1"):
        DraftTree([4, 5], [-1, 0], draws=np.array([0, 2])).checked()


MALFORMED = {
    "its own parent": DraftTree([4], [0]),
    "a cycle": DraftTree([4, 5], [1, 0]),
    "a parent far off": DraftTree([4, 5], [-1, 10**6]),
    "a parent before the root": DraftTree([4], [-2]),
    "a lowest parent": DraftTree([4], [-(2**63)]),
    "parents missing": DraftTree([4, 5], [-1]),
    "parents too many": DraftTree([4], [-1, 0]),
    "scores missing": DraftTree([4, 5], [-1, 0], [1.0]),
    "scores too many": DraftTree([4], [-1], [1.0, 0.5]),
    "scores in rows": DraftTree([4], [-1], [[1.0]]),
    "tokens in rows": DraftTree([[4]], [-1]),
    "sources missing": DraftTree([4, 5], [-1, 0], None, [0]),
    "a source without a name": DraftTree([4], [-1], None, [1]),
    "a negative source": DraftTree([4], [-1], None, [-1]),
    "laws missing": DraftTree([4, 5], [-1, 0], draft_probs=np.ones((1, 9), np.float32)),
    "laws in a row": DraftTree([4], [-1], draft_probs=np.ones(1, np.float32)),
    "a draw of no node": DraftTree([4], [-1], draws=np.array([1])),
    "a negative draw": DraftTree([4], [-1], draws=np.array([-1])),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_tree_is_refused_before_anything_reads_it(name):
    with pytest.raises(ConfigError, match="not a tree: "):
        MALFORMED[name].checked()
    with pytest.raises(ConfigError, match="not a tree: "):
        MALFORMED[name].sanitised(9, 9)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_tree_inside_a_union_is_refused(models, name):
    """Its loops are compiled: what they read out of bounds would end the process."""
    good, bad = Adversary(lambda *_: DraftTree([4, 5], [-1, 0])), Adversary(lambda *_: MALFORMED[name])
    bad.name = "bad"
    for drafter in (CombinedDrafter([good, bad]), CombinedDrafter([bad, good]), bad):
        with pytest.raises(ConfigError, match="not a tree: "):
            models().generate([4, 5], drafter=drafter, num_draft_tokens=8)


@pytest.mark.parametrize("column", [[1.5], [True], ["4"], [None]])
def test_columns_are_integers(column):
    for columns in ((column, [-1]), ([4], column), ([4], [-1], None, column)):
        with pytest.raises(ConfigError, match=r"not a tree: .* must be integers"):
            DraftTree(*columns)


columns = st.lists(st.one_of(st.integers(-3, 4), st.sampled_from([10**6, -(2**63), 2**63 - 1])), max_size=4)


@given(columns, columns, st.none() | st.lists(st.floats(width=32), max_size=4), st.none() | columns)
def test_any_columns_are_a_tree_or_refused(token_ids, parents, scores, sources):
    tree = DraftTree(token_ids, parents, scores, sources)
    try:
        clean = tree.sanitised(VOCAB, 9)
    except ConfigError:
        return
    assert all(clean.path_to(node)[-1] == node for node in range(len(clean)))
    assert CombinedDrafter([Adversary(lambda *_: tree)]).propose(SEQUENCE, 9).sanitised(VOCAB, 9) is not None
