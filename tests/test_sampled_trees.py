"""Trees that were sampled: nothing cuts, sorts or prunes them by what was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from adversaries import VOCAB
from hasten.core import SamplingParams, Sequence
from hasten.drafters import CombinedDrafter
from hasten.drafters.base import Forgetful
from hasten.models.sessions.chain_session import best_chain
from hasten.policies import CostPolicy, FixedPolicy
from hasten.sampling import Sampler
from hasten.tree import ROOT, DraftTree
from judges import wanting

LAW = np.full(VOCAB, 1 / VOCAB, np.float32)


def sampled(token_ids, parents, scores, draws=None):
    laws = np.tile(LAW, (len(token_ids), 1))
    drawn = None if draws is None else np.array(draws)
    return DraftTree(token_ids, parents, scores, draft_probs=laws, draws=drawn)


class Gives(Forgetful):
    """Always the same tree."""

    top_k = 0

    def __init__(self, name, tree):
        self.name = name
        self.tree = tree

    def begin(self, sequence, prompt_candidates): ...

    def propose(self, sequence, budget):
        return self.tree.head(budget)

    def observe(self, sequence, observation): ...

    def end(self, sequence): ...


def sequence_of(proposals="distinct"):
    sampler = Sampler(SamplingParams(temperature=1.0), 0)
    return Sequence([5, 6], 2, 100, sampler, None, judge=wanting(proposals))


def test_a_tree_is_followed_by_a_chain():
    tree = sampled([10, 11, 12], [ROOT, 0, 0], [0.5, 0.4, 0.1], draws=[0, 1, 1, 2])
    longer = tree.followed_by(DraftTree.chain([11, 20, 21], [0.9, 0.5, 0.25]), 0)
    assert longer.token_ids.tolist() == [10, 11, 12, 20, 21]
    assert longer.parents.tolist() == [ROOT, 0, 0, 1, 3]
    assert longer.scores.tolist() == pytest.approx([0.5, 0.4, 0.1, 0.25, 0.125])
    assert longer.draws.tolist() == [0, 1, 1, 2, 3, 4]
    assert longer.draft_probs[:3] == pytest.approx(np.tile(LAW, (3, 1)))
    assert longer.draft_probs[3:].argmax(axis=1).tolist() == [20, 21]
    assert longer.draft_probs[3:].sum(axis=1).tolist() == [1, 1]
    assert DraftTree().followed_by(DraftTree.chain([7, 8]), ROOT).token_ids.tolist() == [7, 8]


def test_the_likeliest_path_follows_the_scores_and_the_first_of_equals():
    tree = DraftTree([1, 2, 3, 4, 5], [ROOT, ROOT, 1, 1, 2], [0.3, 0.6, 0.2, 0.2, 0.1])
    assert tree.likeliest_path() == [1, 2, 4]
    assert DraftTree().likeliest_path() == []


def test_draws_are_told_in_their_order_and_as_often_as_they_were_made():
    tree = sampled([1, 2, 3], [ROOT, ROOT, 0], [0.5, 0.2, 0.1], draws=[1, 0, 1, 2, 2])
    assert tree.drawn_below(ROOT) == [1, 0, 1]
    assert tree.drawn_below(0) == [2, 2]
    assert DraftTree([1, 2], [ROOT, ROOT]).drawn_below(ROOT) == [0, 1]
    assert tree.select([0, 2], [ROOT, 0]).draws.tolist() == [0, 1, 1]


def test_a_model_that_takes_chains_gets_the_tokens_drawn_first():
    tree = sampled([1, 2, 3, 4], [ROOT, ROOT, 0, 0], [0.1, 0.9, 0.05, 0.09], draws=[0, 0, 1, 2, 3])
    chain = best_chain(tree)
    assert chain.token_ids.tolist() == [1, 3]
    assert chain.draws is None
    assert len(chain.draft_probs) == 2
    chosen = DraftTree(tree.token_ids, tree.parents, tree.scores)
    assert best_chain(chosen).token_ids.tolist() == [2]


@pytest.mark.parametrize("policy", [CostPolicy(), FixedPolicy(3)])
def test_no_policy_cuts_a_sampled_tree_of_its_budget(policy):
    if isinstance(policy, CostPolicy):
        policy.observe(1, 10.0, 0.1, [0])
        policy.choose([DraftTree()])
    size = min(policy.budget(), 3)
    tree = sampled([1, 2, 3][:size], [ROOT, 0, 1][:size], [0.9, 1e-6, 1e-9][:size])
    for _ in range(30):
        [chosen] = policy.choose([tree])
        assert chosen is tree
        policy.observe(1 + len(tree), 10.0 + len(tree), 0.1, [0])


def test_the_cost_policy_sizes_sampled_trees_by_what_earlier_ones_were_worth():
    def budget_after(scores):
        policy = CostPolicy()
        policy.choose([DraftTree()])
        policy.observe(1, 10.0, 0.1, [0])
        for _ in range(40):
            count = policy.budget([16])
            tree = sampled(list(range(count)), list(range(-1, count - 1)), scores[:count])
            policy.choose([tree])
            policy.observe(1 + count, 10.0 + 0.1 * count, 0.1, [round(float(scores[:count].sum()))])
        return policy.budget([16])

    good = np.linspace(0.99, 0.9, 64).astype(np.float32)
    assert budget_after(good) > 40
    assert budget_after(np.where(np.arange(64) < 4, good, 1e-4).astype(np.float32)) < 20


def test_a_union_keeps_a_sampled_tree_whole_and_in_order():
    tree = sampled([1, 2, 3], [ROOT, ROOT, 0], [1e-4, 0.9, 1e-5], draws=[0, 1, 0, 2])
    copied = DraftTree.chain([1, 3, 30, 31], [0.99, 0.98, 0.97, 0.96])
    union = CombinedDrafter([Gives("draft", tree), Gives("copy", copied)])
    found = union.propose(sequence_of(), 9)
    assert found.token_ids[:3].tolist() == [1, 2, 3]
    assert found.parents.tolist() == [ROOT, ROOT, 0, 2, 3]
    assert found.token_ids[3:].tolist() == [30, 31]
    assert found.draws.tolist() == [0, 1, 0, 2, 3, 4]
    assert found.draft_probs[3:].argmax(axis=1).tolist() == [30, 31]
    assert found.draft_probs[:3] == pytest.approx(tree.draft_probs)


def test_others_have_a_third_of_the_nodes_beside_a_sampled_tree():
    tree = sampled(list(range(12)), [ROOT] * 12, np.full(12, 0.01))
    copied = DraftTree.chain(list(range(50, 62)))
    union = CombinedDrafter([Gives("draft", tree), Gives("copy", copied)])
    found = union.propose(sequence_of(), 9)
    assert found.token_ids.tolist() == [*range(6), 50, 51, 52]


def test_a_tree_that_was_not_sampled_is_sorted_best_first():
    tree = DraftTree([1, 2], [ROOT, ROOT], [0.1, 0.9])
    found = CombinedDrafter([Gives("draft", tree)]).propose(sequence_of("coupled"), 9)
    assert found.token_ids.tolist() == [2, 1]
    assert found.draft_probs is None
