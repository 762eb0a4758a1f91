"""Candidates below one node, as each rule wants them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from grown import Table, distinct_pairs, misfit, text_of

from hasten.drafters.trees.siblings import is_sampled, siblings_below
from hasten.errors import ConfigError
from judges import wanting

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])
LAW = torch.softmax(LOGITS.double(), 0).numpy()


def below(proposals, logits=LOGITS, temperature=1.0, seed=0, position=1, **params):
    sequence = text_of(proposals, temperature, seed, **params)
    generator = np.random.default_rng(seed) if is_sampled(sequence) else None
    return siblings_below(sequence, logits, position, generator)


def test_chosen_candidates_come_likeliest_first_with_their_probabilities():
    siblings = below("chosen")
    first, second = siblings.take(1), siblings.take(9)
    assert [each.token_id for each in first + second] == [1, 2, 0, 3]
    assert [each.prob for each in first + second] == pytest.approx(sorted(LAW)[::-1])
    assert siblings.remaining == 0
    assert siblings.take(1) == []


def test_what_remains_is_what_was_not_taken():
    for proposals in ("chosen", "distinct"):
        siblings = below(proposals)
        taken = siblings.take(2)
        assert siblings.remaining == pytest.approx(1 - sum(LAW[each.token_id] for each in taken))


def test_many_candidates_are_ranked_as_few_are():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=500)).float()
    siblings = below("coupled", logits, temperature=0.0)
    taken = [each.token_id for count in (3, 20, 1, 200) for each in siblings.take(count)]
    assert taken == torch.argsort(-logits)[:224].tolist()


def test_coupled_candidates_begin_with_what_the_target_would_draw():
    for seed in range(30):
        sequence = text_of("coupled", 1.0, seed)
        [first] = below("coupled", seed=seed).take(1)
        assert first.token_id == sequence.sampler.guess(LOGITS, 1)
        assert first.law is None


def test_top_k_leaves_no_other_candidates():
    for proposals in ("coupled", "chosen", "distinct"):
        taken = below(proposals, top_k=2).take(4)
        assert {each.token_id for each in taken} == {1, 2}
    again = below("independent", top_k=2).take(9)
    assert len(again) == 9
    assert {each.token_id for each in again} == {1, 2}


def test_distinct_pairs_have_the_law_of_draws_without_replacement():
    pairs = Counter(
        tuple(each.token_id for each in below("distinct", seed=seed).take(2)) for seed in range(3000)
    )
    assert misfit(pairs, distinct_pairs(LAW)) < 1


def test_independent_pairs_have_the_law_of_draws_with_replacement():
    pairs = Counter(
        tuple(each.token_id for each in below("independent", seed=seed).take(2)) for seed in range(3000)
    )
    law = {(first, second): LAW[first] * LAW[second] for first in range(4) for second in range(4)}
    assert misfit(pairs, law) < 1


def test_named_tokens_carry_what_draws_would():
    drawn = below("distinct").take(3)
    named = below("distinct").named([each.token_id for each in drawn])
    for one, other in zip(drawn, named, strict=True):
        assert one.prob == other.prob
        assert np.array_equal(one.law, other.law)
    ranked = below("chosen").named([2, 0])
    assert [each.prob for each in ranked] == pytest.approx([LAW[2], LAW[0]])


@pytest.mark.parametrize("proposals", ["chosen", "distinct", "independent"])
def test_log_probs_are_those_of_the_law(proposals):
    with np.errstate(divide="ignore"):
        expected = np.log(text_of(top_k=3).sampler.law(LOGITS))
    assert below(proposals, top_k=3).log_probs() == pytest.approx(expected, abs=1e-5)


def test_a_law_is_used_up_without_dividing_by_nothing():
    """The second token has no more than a float32 can barely hold."""
    siblings = below("distinct", torch.tensor([0.0, -92.0, -103.0]))
    taken = siblings.take(3)
    assert [each.token_id for each in taken] == [0]
    assert siblings.remaining == 0
    assert all(np.isfinite(each.law).all() for each in taken)
    assert len(siblings.named([1, 2])) == 0
    assert np.isneginf(siblings.log_probs()).all()


def test_laws_sum_to_one_to_the_last_token():
    logits = Table(300, 1, spread=4.0).logits([0])
    taken = below("distinct", logits).take(300)
    assert len({each.token_id for each in taken}) == len(taken) > 250
    assert [each.law.sum() for each in taken] == pytest.approx([1] * len(taken), abs=1e-5)


class Mute:
    """A sampler that tells no laws."""

    def draws(self, logits): ...

    def guess(self, logits, position): ...

    def noisy(self, logits, position):
        return logits


def test_laws_are_asked_only_of_who_tells_them():
    sequence = text_of("distinct")
    sequence.sampler = Mute()
    with pytest.raises(ConfigError, match=r"Mute.*verify='follow'"):
        is_sampled(sequence)
    for proposals in ("coupled", "chosen"):
        sequence.judge = wanting(proposals)
        assert not is_sampled(sequence)
        assert siblings_below(sequence, LOGITS, 1, None).take(1)[0].token_id == 1
