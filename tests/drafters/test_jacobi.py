"""The window: which rows guess it anew, what it is worth, and the laws it carries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from fake_target import FakeTarget, by_position, one_hot, write
from proposals import check_tree

from hasten.core import Acceptance, SamplingParams, Sequence
from hasten.drafters.base import Observation
from hasten.drafters.itself.jacobi import NEW_TOKEN_TRUST, TRUSTS, Jacobi
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError, StoreError
from hasten.sampling import Sampler, keyed_generator
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS
from judges import wanting

VOCAB = 31
GREEDY = SamplingParams(max_new_tokens=40)
SAMPLED = SamplingParams(max_new_tokens=40, temperature=0.9)


def after_last(next_token):
    """A deterministic target that looks at the last token only."""
    return FakeTarget(lambda text: one_hot(next_token(text[-1]), VOCAB))


def sequence_of(token_ids, params=GREEDY, guarantee="exact", seed=3):
    sampler = Sampler(params, seed)
    proposals = "distinct" if guarantee == "distribution" else "coupled"
    return Sequence(
        list(token_ids), len(token_ids), 10**6, sampler, None, judge=wanting(proposals, guarantee)
    )


def observe(drafter, sequence, tree, *, written, path, logits):
    sequence.token_ids += written
    drafter.observe(sequence, Observation(tree, Acceptance(path, written), None, logits))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("verify", ["follow", "residual"])
def test_where_the_past_does_not_matter_every_second_pass_writes_the_whole_window(params, verify):
    """Every guess of a pass is right then; the pass that writes the window leaves nothing to guess from."""
    target = FakeTarget(by_position(VOCAB))
    _, gains = write(target, Jacobi(window=8), [1, 2, 3], params, verify=verify)
    assert gains == [1, 9, 1, 9, 1, 9, 1, 9]


def test_a_window_of_w_is_written_within_w_passes_and_sooner_where_chains_meet():
    plain, _ = write(
        after_last(lambda token: (token + 1) % VOCAB), NoDrafter(), [5], GREEDY, num_draft_tokens=0
    )
    text, gains = write(after_last(lambda token: (token + 1) % VOCAB), Jacobi(window=6), [5], GREEDY)
    assert text == plain
    assert min(gains) >= 1
    _, gains = write(after_last(lambda token: token // 2), Jacobi(window=6), [30], GREEDY)
    assert max(gains[:7]) == 7


@pytest.mark.parametrize("window", [1, 2, 16])
@pytest.mark.parametrize("start", ["random", "repeat"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_any_window_writes_the_plain_text(models, window, start, temperature):
    lm = models()
    params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=5, ignore_eos=True)
    plain = lm.generate([5, 9, 13, 22, 5], params, drafter="off")
    for size in (1, 5, 16):
        drafter = Jacobi(window=window, start=start)
        found = lm.generate([5, 9, 13, 22, 5], params, drafter=drafter, num_draft_tokens=size)
        assert found.token_ids == plain.token_ids
        assert found.stats.num_draft_tokens > 0


def test_a_window_of_one_gains_at_most_two():
    _, gains = write(FakeTarget(by_position(VOCAB)), Jacobi(window=1), [1, 2, 3], GREEDY)
    assert set(gains) == {1, 2}


def rows_of(count, first=0):
    """Row i says the token first + i."""
    return torch.stack([one_hot(first + row, VOCAB) for row in range(count)])


def test_guesses_come_from_the_rows_of_the_own_path_among_other_branches():
    """Root, a stranger, w0, another stranger below it, w1: the window's rows are 0, 2 and 4."""
    sequence = sequence_of([7, 7, 7])
    drafter = Jacobi(window=5, start="repeat")
    drafter.begin(sequence, None)
    assert drafter.propose(sequence, 9).token_ids.tolist() == [7] * 5
    tree = DraftTree([3, 7, 4, 7], [-1, -1, 1, 1])
    observe(drafter, sequence, tree, written=[20], path=[], logits=rows_of(5, first=10))
    # Index 0 was written; index 1 is told by w0's row, index 2 by w1's; then what was there, then new ones.
    assert drafter.propose(sequence, 9).token_ids.tolist() == [12, 14, 7, 7, 20]
    assert drafter.propose(sequence, 2).token_ids.tolist() == [12, 14]


def test_the_window_moves_on_by_what_was_written_even_beyond_itself():
    sequence = sequence_of([7, 8])
    drafter = Jacobi(window=4, start="repeat")
    drafter.begin(sequence, None)
    tree = DraftTree.chain([8, 8, 8, 8])
    observe(drafter, sequence, tree, written=[8, 8, 21], path=[0, 1], logits=rows_of(5, first=10))
    assert drafter.propose(sequence, 9).token_ids.tolist() == [13, 14, 21, 21]
    observe(drafter, sequence, DraftTree(), written=[1] * 9, path=[], logits=rows_of(1))
    assert drafter.propose(sequence, 9).token_ids.tolist() == [1] * 4


def test_a_guess_that_stays_the_same_is_trusted_more():
    sequence = sequence_of([7])
    drafter = Jacobi(window=4)
    drafter.begin(sequence, None)
    trusts = []
    for _ in range(4):
        tree = drafter.propose(sequence, 9)
        check_tree(tree, 9)
        trusts.append(tree.scores[0])
        observe(drafter, sequence, tree, written=[30], path=[], logits=torch.stack([one_hot(9, VOCAB)] * 5))
    assert trusts == pytest.approx([NEW_TOKEN_TRUST, *TRUSTS])


def test_beginnings_are_drawn_from_the_text_and_keyed_by_the_seed():
    def begun(seed):
        drafter, sequence = Jacobi(seed=seed), sequence_of(range(20))
        drafter.begin(sequence, None)
        return drafter.propose(sequence, 99).token_ids.tolist()

    assert begun(1) == begun(1)
    assert begun(1) != begun(2)
    assert set(begun(1)) <= set(range(20))
    assert len(set(begun(1))) > 4


def weighed(seed=3, params=SAMPLED):
    """A window after one pass, for a rule that weighs laws."""
    sequence = sequence_of([7], params, "distribution", seed)
    drafter = Jacobi(window=4)
    drafter.begin(sequence, None)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1))
    tree = drafter.propose(sequence, 3)
    observe(drafter, sequence, tree, written=[4], path=[], logits=logits[:4])
    return sequence, drafter, logits


def test_a_window_for_rules_that_weigh_laws_carries_them():
    sequence, drafter, logits = weighed()
    tree = drafter.propose(sequence, 9)
    for node, row in ((0, 1), (1, 2), (2, 3)):
        expected = torch.softmax(logits[row] / 0.9, -1)
        assert tree.draft_probs[node] == pytest.approx(expected.numpy(), abs=1e-6)
    assert tree.draft_probs[3].tolist() == np.eye(VOCAB)[tree.token_ids[3]].tolist()
    assert drafter.propose(sequence, 2).draft_probs.shape == (2, VOCAB)


def test_guesses_that_are_weighed_are_drawn_anew_every_pass_and_scored_without_being_looked_at():
    drawn, scores = set(), set()
    for seed in range(6):
        sequence, drafter, logits = weighed(seed)
        for _ in range(3):
            tree = drafter.propose(sequence, 3)
            drawn.add(tuple(tree.token_ids[:2].tolist()))
            observe(drafter, sequence, tree, written=[4], path=[], logits=logits[:4])
        scores.add(tuple(drafter.propose(sequence, 9).scores.tolist()))
    assert len(drawn) > 12
    assert len(scores) == 1


def test_no_random_numbers_are_used_twice_nor_those_of_the_rule(monkeypatch):
    """A place is drawn anew in every pass: with the same noise, its history would tell of it."""
    keys = []

    def generator(self, position, stream):
        keys.append((position, stream))
        return keyed_generator(self.seed, self.sample, position, stream)

    monkeypatch.setattr(Sampler, "generator", generator)
    target = FakeTarget(lambda text: 2 * by_position(VOCAB)([0] * (1 + text[-1])))
    write(target, Jacobi(window=6), [1, 2], SAMPLED, verify="residual")
    assert len(keys) > 100
    assert len(set(keys)) == len(keys)
    assert max(Counter(position for position, _ in keys).values()) > 4


def test_guesses_are_drawn_from_their_laws():
    counts = np.zeros(VOCAB)
    for seed in range(4000):
        sequence, drafter, logits = weighed(seed)
        counts[drafter.propose(sequence, 1).token_ids[0]] += 1
    expected = 4000 * torch.softmax(logits[1].double() / 0.9, -1).numpy()
    assert ((counts - expected) ** 2 / expected).sum() < VOCAB + 5 * np.sqrt(2 * VOCAB)


def test_rows_without_a_law_leave_the_window_as_it_was():
    sequence, drafter, _ = weighed()
    tree = drafter.propose(sequence, 9)
    observe(drafter, sequence, tree, written=[4], path=[], logits=torch.full((5, VOCAB), torch.nan))
    following = drafter.propose(sequence, 9)
    assert following.token_ids[:3].tolist() == tree.token_ids[1:].tolist()
    assert np.isfinite(following.draft_probs).all()


def test_a_greedy_window_is_the_same_under_either_rule():
    for seed in range(3):
        target = FakeTarget(lambda text, seed=seed: by_position(VOCAB, seed)([0] * text[-1]))
        follow = write(target, Jacobi(window=6), [1, 2], GREEDY)
        assert write(target, Jacobi(window=6), [1, 2], GREEDY, verify=VERIFIERS["residual"]) == follow


def test_it_refuses_what_cannot_work_and_forgets_sequences():
    with pytest.raises(ConfigError, match="window=0"):
        Jacobi(window=0)
    with pytest.raises(ConfigError, match="start='best'"):
        Jacobi(start="best")
    with pytest.raises(StoreError, match="jacobi"):
        Jacobi().restore({"x": np.zeros(1)})
    sequence, drafter, _ = weighed()
    drafter.end(sequence)
    drafter.end(sequence)
    assert drafter.state() == {}
    assert not drafter._windows
