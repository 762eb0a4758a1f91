"""`residual` where chance has no say: the greedy path, what processors see, stops, streams, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from forks import sequence_of
from hypothesis import given, settings, strategies as st

from adversaries import trees
from hasten.core import SamplingParams
from hasten.errors import ConfigError, ModelError
from hasten.sampling import Sampler, keyed_generator
from hasten.stopping import StopConditions
from hasten.tree import DraftTree
from hasten.verify import confident, follow, residual

SAMPLED = SamplingParams(temperature=1.0)


def next_logits(text, vocab_size=5):
    return torch.from_numpy(np.random.default_rng([len(text), *text]).normal(0, 1, vocab_size)).float()


def tree_logits(tree, text):
    rows = [[*text, *tree.token_ids[tree.path_to(node)].tolist()] for node in range(-1, len(tree))]
    return torch.stack([next_logits(row) for row in rows])


@pytest.mark.parametrize("stop", [(), (4,)])
@settings(max_examples=60)
@given(
    drafts=st.lists(trees(vocab=5), min_size=1, max_size=4), with_laws=st.booleans(), seed=st.integers(0, 9)
)
def test_greedy_is_follow(stop, drafts, with_laws, seed):
    rng = np.random.default_rng(seed)
    texts = []
    for rule in (follow, residual):
        stops = StopConditions(frozenset(stop), 12, None)
        sequence, cycle = sequence_of(Sampler(SamplingParams()), [1, 2], stops), itertools.cycle(drafts)
        steps = []
        while sequence.finish_reason is None:
            tree = next(cycle).sanitised(5, 11)
            if with_laws and len(tree):
                tree.draft_probs = rng.dirichlet(np.ones(5), len(tree)).astype(np.float32)
            acceptance = rule(tree, tree_logits(tree, sequence.token_ids), sequence)
            sequence.token_ids += acceptance.token_ids
            sequence.finish_reason = acceptance.finish_reason
            steps.append(acceptance)
        texts.append(steps)
    assert texts[0] == texts[1]


def test_processors_see_each_written_position_once_with_its_own_prefix():
    seen = []

    def spy(input_ids, scores):
        seen.append(input_ids[0].tolist())
        scores[:, 3] = -torch.inf
        return scores

    params = SamplingParams(temperature=1.0, logits_processors=[spy])
    for verify in (residual, confident(0.0)):
        for seed in range(20):
            seen.clear()
            sampler = Sampler(params, seed)
            sampler.processors = [spy]
            sequence = sequence_of(sampler, [1, 2])
            tree = DraftTree([0, 1, 2, 0, 1, 2, 0], [-1, -1, -1, 0, 0, 1, 3])
            acceptance = verify(tree, tree_logits(tree, [1, 2]), sequence)
            whole = [1, 2, *acceptance.token_ids]
            assert seen == [whole[: 2 + at] for at in range(len(acceptance.token_ids))]
            assert 3 not in acceptance.token_ids
            assert sequence.token_ids == [1, 2]


def test_a_row_of_nan_is_an_error_where_it_is_written_and_only_there():
    tree = DraftTree.chain([0])
    logits = tree_logits(tree, [1])
    logits[0] = -100.0
    logits[0, 4] = 0.0
    logits[1] = torch.nan
    assert residual(tree, logits, sequence_of(Sampler(SAMPLED), [1])).token_ids == [4]
    with pytest.raises(ModelError, match="position 1"):
        residual(tree, logits[[1, 1]], sequence_of(Sampler(SAMPLED), [1]))


def test_a_sampler_without_laws_is_refused():
    class Plain:
        def draws(self, logits): ...

        def guess(self, logits, position): ...

    with pytest.raises(ConfigError, match="Plain does not"):
        residual(DraftTree(), torch.zeros(1, 5), sequence_of(Plain()))


def test_streams_of_a_position_share_no_numbers():
    streams = [(3, 1, 7, 0), (3, 1, 7, 1), (3, 1, 7, 2), (3, 1, 8, 0), (3, 1, 8, 1), (3, 2, 7, 1)]
    raw = [set(keyed_generator(*key).bit_generator.random_raw(4000).tolist()) for key in streams]
    for first, second in itertools.combinations(raw, 2):
        assert not first & second
    sampler = Sampler(SAMPLED, seed=3, sample=1)
    assert sampler.generator(7, 1).random() == keyed_generator(3, 1, 7, 1).random()
