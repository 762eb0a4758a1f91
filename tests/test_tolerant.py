"""`tolerant` keeps near misses of the target, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from adversaries import VOCAB, Adversary, random_tree, trees
from hasten.core import SamplingParams, Sequence
from hasten.errors import ConfigError, ModelError
from hasten.sampling import Sampler
from hasten.stopping import StopConditions
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier, follow, tolerant

LOGITS = torch.tensor([4.0, 3.5, 3.0, 1.0, -torch.inf])


def sequence_of(params=None, stops=()):
    return Sequence(
        token_ids=[2, 3],
        prompt_length=2,
        max_length=30,
        sampler=Sampler(params or SamplingParams(), seed=3),
        stop_rule=StopConditions(frozenset(stops), 20, None),
    )


def kept(drafted, beta, tau):
    """The tokens gained from these children of the root, and from the row below them."""
    tree = DraftTree(drafted, [-1] * len(drafted))
    acceptance = tolerant(beta, tau)(tree, LOGITS.repeat(len(drafted) + 1, 1), sequence_of())
    assert tree.token_ids[acceptance.path].tolist() == acceptance.token_ids[:-1]
    return acceptance.token_ids


def test_a_draft_among_the_best_and_close_to_the_best_is_kept():
    assert kept([1], beta=2, tau=0.5) == [1, 0]
    assert kept([1], beta=2, tau=0.4) == [0]
    assert kept([2], beta=3, tau=1.0) == [2, 0]
    assert kept([2], beta=2, tau=9.0) == [0]
    assert kept([4], beta=5, tau=99.0) == [0]


def test_the_targets_own_token_comes_first_and_then_the_best_child():
    assert kept([1, 2, 0], beta=5, tau=9.0) == [0, 0]
    assert kept([3, 2, 1], beta=5, tau=9.0) == [1, 0]
    assert kept([], beta=5, tau=9.0) == [0]


def test_a_tie_with_the_target_is_no_better_than_second():
    tree = DraftTree([1], [-1])
    rows = torch.tensor([[1.0, 1.0, 0.0]]).repeat(2, 1)
    assert tolerant(1, 0.0)(tree, rows, sequence_of()).token_ids == [0]
    assert tolerant(2, 0.0)(tree, rows, sequence_of()).token_ids == [1, 0]


def test_nothing_is_kept_after_a_stop():
    tree = DraftTree.chain([1, 1, 1])
    found = tolerant(2, 1.0)(tree, LOGITS.repeat(4, 1), sequence_of(stops=[1]))
    assert (found.token_ids, found.finish_reason, found.path) == ([1], "stop", [])


@given(
    tree=trees(vocab=5),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.8]),
    beta_tau=st.sampled_from([(1, 0.0), (1, 99.0), (5, 0.0)]),
)
def test_without_tolerance_it_is_follow(tree, seed, temperature, beta_tau):
    tree = tree.sanitised(5, 20)
    logits = torch.randn(len(tree) + 1, 5, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(temperature=temperature)
    expected = follow(tree, logits, sequence_of(params))
    assert tolerant(*beta_tau)(tree, logits, sequence_of(params)) == expected


@given(tree=trees(vocab=5), seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 0.8]))
def test_every_kept_token_is_within_the_bounds(tree, seed, temperature):
    tree = tree.sanitised(5, 20)
    logits = torch.randn(len(tree) + 1, 5, generator=torch.Generator().manual_seed(seed))
    sequence = sequence_of(SamplingParams(temperature=temperature))
    found = tolerant(2, 0.7)(tree, logits, sequence)
    text = list(sequence.token_ids)
    for row, token in zip([0, *(node + 1 for node in found.path)], found.token_ids, strict=True):
        scores = sequence.sampler.scores(logits[row], text)
        best = torch.topk(scores, 2)
        assert token in best.indices
        assert float(best.values[0] - scores[token]) <= 0.7
        text.append(token)


def test_forbidden_tokens_are_not_near():
    def forbid(input_ids, scores):
        scores[:, 1] = -torch.inf
        return scores

    sequence = sequence_of(SamplingParams(logits_processors=[forbid]))
    assert tolerant(5, 99.0)(DraftTree([1], [-1]), LOGITS.repeat(2, 1), sequence).token_ids == [0]


def test_it_is_chosen_by_name_and_says_what_it_promises(models):
    lm = models()
    prompt, params = [5, 9, 13, 22], SamplingParams(max_new_tokens=24, ignore_eos=True)
    expected = lm.generate(prompt, params)
    drafter = Adversary(random_tree)
    exact = Verifier("tolerant", tolerant(1, 0.0), "approximate")
    found = lm.generate(prompt, params, drafter=drafter, num_draft_tokens=12, verify=exact)
    assert (found.token_ids, found.guarantee) == (expected.token_ids, "approximate")
    loose = Verifier("tolerant", tolerant(VOCAB, 1e9), "approximate")
    loosely = lm.generate(prompt, params, drafter=drafter, num_draft_tokens=12, verify=loose)
    assert loosely.token_ids != expected.token_ids
    assert loosely.stats.num_steps < len(expected.token_ids)
    assert VERIFIERS["tolerant"].guarantee == "approximate"
    assert lm.generate(prompt, params, drafter="auto", verify="tolerant").guarantee == "approximate"


def test_what_cannot_work_is_named():
    with pytest.raises(ConfigError, match="beta=0"):
        tolerant(beta=0)
    for tau in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="tau="):
            tolerant(tau=tau)
    sequence = sequence_of()
    with pytest.raises(ModelError, match=r"position 2 is nan.*float32"):
        tolerant()(DraftTree([1], [-1]), torch.full((2, 5), torch.nan), sequence)
    sequence.sampler = object()
    with pytest.raises(ConfigError, match="verify='tolerant' needs a sampler"):
        tolerant()(DraftTree([1], [-1]), LOGITS.repeat(2, 1), sequence)
