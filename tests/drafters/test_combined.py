"""The union of several sources: one tree, best first, with scores that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adversaries import Adversary, trees
from hasten.core import Acceptance, SamplingParams, Sequence, TopCandidates
from hasten.drafters import AUTO, DRAFT, DRAFTERS, CombinedDrafter, NoDrafter, Resources, make_drafter
from hasten.drafters.base import Observation
from hasten.errors import ConfigError, StoreError
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import DraftTree


def a_sequence():
    params = SamplingParams()
    return Sequence([1, 2, 3], 3, 99, Sampler(params), StopConditions(frozenset(), 96, None))


class Source(NoDrafter):
    """Proposes one tree."""

    def __init__(self, name, tree, top_k=0):
        self.name, self.tree, self.top_k = name, tree, top_k
        self.told = []

    def begin(self, sequence, prompt_candidates):
        self.told.append(prompt_candidates)

    def propose(self, sequence, budget):
        return self.tree.head(budget)


def union(*sources):
    names = "abcdef"
    return CombinedDrafter([Source(names[i], tree) for i, tree in enumerate(sources)])


def paths(tree):
    return {tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))}


@settings(max_examples=60)
@given(sources=st.lists(trees(vocab=4), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_union_holds_every_path_of_every_source_once(sources, seed):
    rng = np.random.default_rng(seed)
    for tree in sources:
        tree.scores = rng.random(len(tree)).astype(np.float32)
    merged = union(*sources).propose(a_sequence(), 999)
    assert paths(merged) == set().union(*map(paths, sources))
    assert merged.sanitised(97, 99) is merged  # no duplicate siblings, parents first


@settings(max_examples=60)
@given(sources=st.lists(trees(vocab=4), min_size=1, max_size=4), budget=st.integers(1, 12))
def test_nodes_come_best_first_and_within_the_budget(sources, budget):
    merged = union(*sources).propose(a_sequence(), budget)
    assert len(merged) <= budget
    assert (np.diff(merged.scores) <= 0).all()
    assert (merged.parents < np.arange(len(merged))).all()
    inner = merged.parents >= 0
    assert (merged.scores[inner] <= merged.scores[merged.parents[inner]]).all()
    assert ((merged.scores > 0) & (merged.scores < 1)).all()


def test_a_node_names_all_its_sources():
    tree = union(DraftTree.chain([5, 6]), DraftTree.from_paths([[5], [7]])).propose(a_sequence(), 9)
    named = {int(tree.token_ids[node]): tree.source_names[tree.sources[node]] for node in range(len(tree))}
    assert named == {5: "a+b", 6: "a", 7: "b"}


def test_empty_sources_propose_an_empty_tree():
    assert len(union(DraftTree(), DraftTree()).propose(a_sequence(), 9)) == 0
    assert paths(union(DraftTree(), DraftTree.chain([4]), DraftTree()).propose(a_sequence(), 9)) == {(4,)}


def test_a_fresh_union_believes_its_sources():
    tree = union(DraftTree([5, 6], [-1, -1], [0.7, 0.2])).propose(a_sequence(), 9)
    assert tree.token_ids.tolist() == [5, 6]
    assert tree.scores.tolist() == pytest.approx([0.7, 0.2], abs=0.01)


def teach(drafter, sequence, rng, chances, steps=3000):
    """Each source's first token (10, 11, ...) is right with its own chance, one at most."""
    for _ in range(steps):
        tree = drafter.propose(sequence, 99)
        drawn = rng.choice([*range(10, 10 + len(chances)), 90], p=[*chances, 1 - sum(chances)])
        drafter.observe(sequence, Observation(tree, Acceptance([], [int(drawn)])))


def test_scores_become_the_true_acceptance_rates():
    """Both sources claim 0.5; one is right 60 % of the time and the other 10 %."""
    drafter = union(DraftTree([10], [-1], [0.5]), DraftTree([11], [-1], [0.5]))
    sequence = a_sequence()
    teach(drafter, sequence, np.random.default_rng(0), [0.6, 0.1])
    tree = drafter.propose(sequence, 9)
    assert tree.token_ids.tolist() == [10, 11]
    assert tree.scores.tolist() == pytest.approx([0.6, 0.1], abs=0.07)


def test_deeper_nodes_are_calibrated_given_their_parents():
    drafter, sequence = union(DraftTree.chain([10, 11], [0.9, 0.8])), a_sequence()
    rng = np.random.default_rng(1)
    for _ in range(3000):
        tree = drafter.propose(sequence, 9)
        written = [10, 11, 5] if rng.random() < 0.25 else [10, 6] if rng.random() < 1 / 3 else [7]
        drafter.observe(sequence, Observation(tree, Acceptance([], written)))
    assert drafter.propose(sequence, 9).scores.tolist() == pytest.approx([0.5, 0.25], abs=0.07)


def test_agreement_of_sources_is_worth_what_it_proves_to_be():
    """Alone each is right one time in five; where both agree, they are right."""
    together = DraftTree([10], [-1], [0.3])
    apart = DraftTree([11], [-1], [0.3])
    drafter, sequence = union(together, together), a_sequence()
    rng = np.random.default_rng(2)
    for _ in range(1500):
        for tree, right in ((together, 10), (apart, 11 if rng.random() < 0.2 else 90)):
            drafter.drafters[1].tree = tree
            proposed = drafter.propose(sequence, 9)
            drafter.observe(sequence, Observation(proposed, Acceptance([], [right])))
    drafter.drafters[1].tree = together
    agreed = drafter.propose(sequence, 9).scores[0]
    drafter.drafters[1].tree = apart
    alone = drafter.propose(sequence, 9)
    assert agreed > 0.85
    assert alone.scores[alone.token_ids.tolist().index(11)] == pytest.approx(0.2, abs=0.1)


def a_world_of_copies(drafter, length, rng, turns, lasts):
    """Tokens promised and kept where a copy goes on for ``lasts(rng)`` of the ``length`` tokens drafted."""
    sequence, promised, kept = a_sequence(), 0.0, 0
    for _ in range(turns):
        tree = drafter.propose(sequence, length)
        num_right = min(lasts(rng), len(tree))
        promised += float(tree.scores.sum())
        kept += num_right
        written = [*tree.token_ids[:num_right].tolist(), 90]
        drafter.observe(sequence, Observation(tree, Acceptance([], written)))
    return promised, kept


def a_copy(length, chance):
    return DraftTree.chain(list(range(10, 10 + length)), list(np.cumprod([chance] * length)))


def test_long_copies_that_are_always_right_are_believed_after_ten_steps():
    """A source claims .8 a token, so .005 of its 24th, and is always right."""
    drafter, rng = union(a_copy(24, 0.8), a_copy(3, 0.5)), np.random.default_rng(5)
    a_world_of_copies(drafter, 24, rng, 10, lambda rng: 24)
    promised, kept = a_world_of_copies(drafter, 24, rng, 10, lambda rng: 24)
    assert promised == pytest.approx(kept, rel=0.05)


def test_long_copies_that_are_never_right_are_not_believed():
    drafter, rng = union(a_copy(24, 0.98), a_copy(3, 0.5)), np.random.default_rng(6)
    a_world_of_copies(drafter, 24, rng, 30, lambda rng: 0)
    promised, _ = a_world_of_copies(drafter, 24, rng, 10, lambda rng: 0)
    assert promised / 10 < 0.5


def test_one_overconfident_source_does_not_outshout_the_others():
    """One source claims 0.98 and is right half the time, another claims 0.5 of the same tokens, rightly."""
    drafter = union(DraftTree([10], [-1], [0.98]), DraftTree([10], [-1], [0.5]))
    sequence, rng = a_sequence(), np.random.default_rng(3)
    for _ in range(60):
        tree = drafter.propose(sequence, 9)
        written = 10 if rng.random() < 0.5 else 90
        drafter.observe(sequence, Observation(tree, Acceptance([], [written])))
    assert drafter.propose(sequence, 9).scores[0] == pytest.approx(0.5, abs=0.1)


def test_what_chosen_nodes_promise_in_sum_is_kept_in_sum():
    """Twelve tokens, equally likely by what is known of them; chosen are those whose luck was best so far."""
    rng = np.random.default_rng(4)
    drafter = union(*(DraftTree([10 + i, 20 + i, 30 + i], [-1, -1, -1], [0.1, 0.08, 0.06]) for i in range(4)))
    sequence, promised, kept = a_sequence(), 0.0, 0
    for turn in range(3000):
        tree = drafter.propose(sequence, 3)
        written = int(rng.choice([*range(10, 14), *range(20, 24), *range(30, 34), 90], p=[0.05] * 12 + [0.4]))
        if turn >= 300:
            promised += float(tree.scores.sum())
            kept += int(written in tree.token_ids)
        drafter.observe(sequence, Observation(tree, Acceptance([], [written])))
    assert promised == pytest.approx(kept, rel=0.05)


def test_calibration_follows_a_text_that_changes():
    drafter, sequence = union(DraftTree([10], [-1], [0.5])), a_sequence()
    teach(drafter, sequence, np.random.default_rng(0), [0.95], 1000)
    high = drafter.propose(sequence, 9).scores[0]
    teach(drafter, sequence, np.random.default_rng(0), [0.05], 1000)
    assert high > 0.85
    assert drafter.propose(sequence, 9).scores[0] < 0.2


def test_nodes_that_were_not_verified_are_judged_too():
    drafter = union(DraftTree([10], [-1], [0.6]), DraftTree([11], [-1], [0.5]))
    sequence = a_sequence()
    for _ in range(200):
        tree = drafter.propose(sequence, 1)
        assert len(tree) == 1
        drafter.observe(sequence, Observation(tree, Acceptance([], [11])))
        if tree.token_ids[0] == 11:
            break
    assert tree.token_ids.tolist() == [11]


def test_scores_of_hostile_sources_stay_probabilities():
    hostile = DraftTree([4, 5, 6, 7], [-1, 0, 1, -1], [np.nan, -3.0, np.inf, 0.0])
    tree = union(hostile, DraftTree.chain([4, 9], [0.5, 0.4])).propose(a_sequence(), 99)
    assert paths(tree) == paths(hostile) | {(4,), (4, 9)}
    assert ((tree.scores >= 0) & (tree.scores < 1)).all()


def test_only_drafters_that_asked_see_candidates():
    wants, does_not = Source("a", DraftTree(), top_k=4), Source("b", DraftTree())
    drafter = CombinedDrafter([wants, does_not])
    candidates = TopCandidates(np.zeros((2, 4), np.int64), np.zeros((2, 4), np.float32))
    drafter.begin(a_sequence(), candidates)
    assert drafter.top_k == 4
    assert (wants.told, does_not.told) == ([candidates], [None])


def test_a_finished_sequence_leaves_nothing_behind():
    drafter, sequence = union(DraftTree.chain([5])), a_sequence()
    drafter.begin(sequence, None)
    drafter.propose(sequence, 9)
    drafter.end(sequence)
    assert not drafter._pools


def test_what_was_learnt_can_be_saved_and_restored():
    first = union(DraftTree([10], [-1], [0.5]), DraftTree([11], [-1], [0.5]))
    teach(first, a_sequence(), np.random.default_rng(0), [0.7, 0.1], 500)
    second = union(DraftTree([10], [-1], [0.5]), DraftTree([11], [-1], [0.5]))
    second.restore({key: value.copy() for key, value in first.state().items()})
    one, other = (drafter.propose(a_sequence(), 9) for drafter in (first, second))
    assert np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize("key", ["calibration/by_source", "calibration/by_set", "calibration/by_depth"])
@pytest.mark.parametrize("wrong", [-1e6, 1e300, np.nan, np.inf])
def test_a_calibration_that_cannot_be_is_refused(key, wrong):
    drafter = union(DraftTree())
    state = {name: value.copy() for name, value in drafter.state().items()}
    state[key][..., 0] = wrong
    with pytest.raises(StoreError, match=key):
        drafter.restore(state)


def test_more_accepted_than_seen_is_refused():
    drafter = union(DraftTree())
    state = {name: value.copy() for name, value in drafter.state().items()}
    state["calibration/by_source"][..., 0] = 2
    with pytest.raises(StoreError, match="by_source"):
        drafter.restore(state)


def test_a_state_of_other_drafters_is_refused():
    with pytest.raises(StoreError, match="does not fit"):
        union(DraftTree()).restore(union(DraftTree(), DraftTree()).state())
    with pytest.raises(StoreError, match="belongs to none"):
        union(DraftTree()).restore({**union(DraftTree()).state(), "z/table": np.zeros(3)})


@pytest.mark.parametrize("count", [0, 7])
def test_none_and_too_many_cannot_be_combined(count):
    with pytest.raises(ConfigError, match=f"{count} drafters"):
        CombinedDrafter([Adversary(None)] * count)


def test_names_become_drafters():
    assert make_drafter("off", Resources(97)).name == "off"
    assert [one.name for one in make_drafter("auto", Resources(97)).drafters] == list(AUTO)
    assert [one.name for one in make_drafter("suffix+aded", Resources(97)).drafters] == ["suffix", "aded"]
    for name in set(DRAFTERS) - {"rest", "superposed"}:
        if not name.startswith(DRAFT):
            assert make_drafter(name, Resources(97)).name == name


def test_drafters_with_a_draft_model_come_first(drafts):
    given = Resources(97, draft=drafts())
    assert [one.name for one in make_drafter("suffix+draft", given).drafters] == ["draft", "suffix"]
    assert [one.name for one in make_drafter("auto", given).drafters] == ["draft", *AUTO]
    for name in DRAFTERS:
        if name.startswith(DRAFT):
            assert make_drafter(name, given).name == name
            with pytest.raises(ConfigError, match="need a draft model"):
                make_drafter(name, Resources(97))
