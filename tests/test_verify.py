"""`follow` takes the path of plain decoding through any tree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from adversaries import trees
from hasten.core import SamplingParams, Sequence
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import ROOT, DraftTree
from hasten.verify import follow

VOCAB = 5  # small, so that random trees are often right


def next_logits(token_ids):
    """A language model: the logits after a text depend on all of it."""
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash(tuple(token_ids)) % 2**31))


def tree_logits(tree, token_ids):
    rows = [token_ids, *([*token_ids, *tree.token_ids[tree.path_to(i)].tolist()] for i in range(len(tree)))]
    return torch.stack([next_logits(row) for row in rows])


def sequence_of(params, max_new_tokens=20, stop_token_ids=()):
    return Sequence(
        token_ids=[1, 2],
        prompt_length=2,
        max_length=2 + max_new_tokens,
        sampler=Sampler(params, seed=3),
        stop_rule=StopConditions(frozenset(stop_token_ids), max_new_tokens, None),
    )


def write(sequence, draft):
    """Decode with the trees of ``draft()`` to the end; returns the steps."""
    steps = []
    while sequence.finish_reason is None:
        tree = draft().sanitised(VOCAB, sequence.num_remaining - 1)
        acceptance = follow(tree, tree_logits(tree, sequence.token_ids), sequence)
        sequence.token_ids += acceptance.token_ids
        sequence.finish_reason = acceptance.finish_reason
        steps.append((tree, acceptance))
    return steps


class Stateful:
    """Its verdict depends on how often it was called and on the last token."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores[:, (self.calls + int(input_ids[0, -1])) % VOCAB] -= 2
        return scores


PARAMS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=1.0),
    "truncated": SamplingParams(temperature=1.3, top_k=3, top_p=0.9),
    "stateful processor": SamplingParams(logits_processors=[Stateful()]),
    "sampled, stateful processor": SamplingParams(temperature=0.9, logits_processors=[Stateful()]),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@given(drafts=st.lists(trees(vocab=VOCAB), min_size=1), stop=st.sampled_from([(), (4,)]))
def test_any_trees_leave_the_text_as_it_is(params, drafts, stop):
    plain = sequence_of(params, stop_token_ids=stop)
    write(plain, DraftTree)
    drafted = sequence_of(params, stop_token_ids=stop)
    cycle = iter(drafts * 25)
    steps = write(drafted, lambda: next(cycle))
    assert (drafted.token_ids, drafted.finish_reason) == (plain.token_ids, plain.finish_reason)
    for tree, acceptance in steps:
        assert acceptance.token_ids[:-1] == tree.token_ids[acceptance.path].tolist()
        for parent, node in zip([ROOT, *acceptance.path], acceptance.path, strict=False):
            assert tree.parents[node] == parent


def test_a_right_tree_is_accepted_to_its_leaf():
    plain = sequence_of(PARAMS["greedy"])
    write(plain, DraftTree)
    right = plain.new_token_ids
    tree = DraftTree.from_paths([[(right[0] + 1) % VOCAB], right[:4]])
    sequence = sequence_of(PARAMS["greedy"])
    acceptance = follow(tree, tree_logits(tree, sequence.token_ids), sequence)
    assert acceptance.path == [1, 2, 3, 4]
    assert acceptance.token_ids == right[:5]


def test_nothing_is_drawn_after_the_stop():
    plain = sequence_of(PARAMS["greedy"])
    write(plain, DraftTree)
    right = plain.new_token_ids
    seen = []

    def spy(input_ids, scores):
        seen.append(input_ids.shape[1])
        return scores

    params = SamplingParams(logits_processors=[spy])
    sequence = sequence_of(params, stop_token_ids=[right[0]])
    tree = DraftTree.chain(right[:6])
    acceptance = follow(tree, tree_logits(tree, sequence.token_ids), sequence)
    assert (acceptance.path, acceptance.token_ids, acceptance.finish_reason) == ([], right[:1], "stop")
    assert seen == [2]


def test_the_length_limit_cuts_an_accepted_run():
    plain = sequence_of(PARAMS["greedy"])
    write(plain, DraftTree)
    sequence = sequence_of(PARAMS["greedy"], max_new_tokens=3)
    tree = DraftTree.chain(plain.new_token_ids[:6])
    acceptance = follow(tree, tree_logits(tree, sequence.token_ids), sequence)
    assert (acceptance.token_ids, acceptance.finish_reason) == (plain.new_token_ids[:3], "length")
    assert acceptance.path == [0, 1]


def test_follow_does_not_commit():
    sequence = sequence_of(PARAMS["greedy"])
    follow(DraftTree(), tree_logits(DraftTree(), sequence.token_ids), sequence)
    assert sequence.token_ids == [1, 2]
