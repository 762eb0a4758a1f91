"""Mask tokens: what their rows see, which tokens they predict, and LUD's unverified mode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_target import FakeTarget, by_position, one_hot, write
from hypothesis import given, settings, strategies as st
from proposals import check_tree

from adversaries import trees
from hasten.core import Acceptance, SamplingParams, Sequence
from hasten.drafters import DRAFTERS, CombinedDrafter, Resources, make_drafter
from hasten.drafters.base import FusedDrafter, Observation
from hasten.drafters.itself.mask_tokens import MaskTokens, default_mask_token, last_accepted_chances
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError, StoreError
from hasten.sampling import Sampler
from hasten.tree import ROOT, DraftTree
from hasten.verify import Verifier, confident
from judges import wanting

VOCAB = 31
MASK = 30
GREEDY = SamplingParams(max_new_tokens=41)
SAMPLED = SamplingParams(max_new_tokens=41, temperature=0.9)
LUD = {"num_groups": 1, "width": 1}


def sequence_of(token_ids, guarantee="exact", room=10**6):
    max_length = len(token_ids) + room
    sampler = Sampler(GREEDY)
    return Sequence(
        list(token_ids), len(token_ids), max_length, sampler, None, judge=wanting(guarantee=guarantee)
    )


def space(**options):
    return MaskTokens(mask_token_id=MASK, **options)


def unverified(beta, max_repeats=99):
    return Verifier("confident", confident(beta, max_repeats), "approximate")


def ranked(tree):
    """The tree with scores that fit it: each node's siblings share their parent's."""
    scores = np.zeros(len(tree), np.float32)
    for node, parent in enumerate(tree.parents.tolist()):
        share = 1 + np.count_nonzero(tree.parents == parent)
        scores[node] = (1.0 if parent == ROOT else scores[parent]) / share
    return DraftTree(tree.token_ids, tree.parents, scores)


@settings(max_examples=60)
@given(drawn=trees(max_nodes=14, vocab=20), k=st.integers(1, 5), num_groups=st.integers(1, 9))
def test_a_mask_sees_its_node_with_ancestors_and_the_masks_before_it(drawn, k, num_groups):
    tree = ranked(drawn.sanitised(VOCAB, 99))
    sequence = sequence_of([1, 2])
    drafter = space(num_masks=k, num_groups=num_groups)
    drafter.begin(sequence, None)
    larger = drafter.extend(sequence, tree)
    groups = drafter._texts[sequence].groups
    assert tree.begins(larger)
    assert len(groups) == min(num_groups, len(tree) + 1)
    assert len(larger) == len(tree) + k * len(groups)
    assert (larger.token_ids[len(tree) :] == MASK).all()
    mask = larger.attention_mask()
    assert not mask[: len(tree) + 1, len(tree) + 1 :].any()
    depths = np.append(0, larger.depths())
    for host, rows in groups.items():
        seen = {0, *(node + 1 for node in tree.path_to(host))}
        for j, row in enumerate(rows, start=1):
            seen.add(row)
            assert set(np.flatnonzero(mask[row])) == seen
            assert depths[row] == depths[host + 1] + j


@settings(max_examples=40)
@given(drawn=trees(max_nodes=14, vocab=20), num_groups=st.integers(1, 6))
def test_groups_stand_where_a_path_is_likeliest_to_end(drawn, num_groups):
    tree = ranked(drawn.sanitised(VOCAB, 99))
    chances = last_accepted_chances(tree)
    assert chances.sum() == pytest.approx(1)
    sequence, drafter = sequence_of([1]), space(num_groups=num_groups)
    drafter.begin(sequence, None)
    drafter.extend(sequence, tree)
    chosen = [host + 1 for host in drafter._texts[sequence].groups]
    others = sorted(set(range(len(chances))) - set(chosen))
    assert not others or chances[chosen].min() >= chances[others].max()


def test_masks_go_no_further_than_the_text_may():
    sequence, drafter = sequence_of([1], room=2), space(num_masks=5, num_groups=9)
    drafter.begin(sequence, None)
    larger = drafter.extend(sequence, DraftTree.chain([4], [0.5]))
    assert larger.depths().tolist() == [1, 1, 2, 2]


def test_a_draft_node_that_is_a_mask_already_is_not_doubled():
    """Token 7 below the root is in the draft: with the last token 7 repeated as mask, its row serves."""
    sequence, drafter = sequence_of([7]), MaskTokens(num_masks=2, num_groups=2)
    drafter.begin(sequence, None)
    larger = drafter.extend(sequence, DraftTree.chain([7], [0.5]))
    assert larger.token_ids.tolist() == [7, 7, 7]
    assert larger.parents.tolist() == [-1, 0, 1]
    assert drafter._texts[sequence].groups == {ROOT: [1, 2], 0: [2, 3]}
    assert len(larger.sanitised(VOCAB, 99)) == 3


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("width", [1, 3])
def test_masks_that_are_right_give_k_tokens_more_than_plain_in_every_step(k, params, width):
    """A target that needs no past: sampled too, since a guess is drawn with the target's noise."""
    drafter = CombinedDrafter([space(num_masks=k, num_groups=99, width=width)])
    _, gains = write(FakeTarget(by_position(VOCAB)), drafter, [1, 2], params, num_draft_tokens=400)
    assert gains[0] == 1
    assert set(gains[1:-1]) == {k + 1}


def test_one_group_is_enough_where_the_model_is_sure():
    def next_logits(text):
        return one_hot(int(by_position(VOCAB)(text).argmax()), VOCAB)

    _, gains = write(FakeTarget(next_logits), space(num_masks=3, **LUD), [1, 2], GREEDY)
    assert gains[0] == 1
    assert set(gains[1:-1]) == {4}


@pytest.mark.parametrize("options", [{}, LUD], ids=["space", "lud"])
def test_masks_that_are_wrong_give_plain_decoding(options):
    def next_logits(text):
        after = text[-1] if MASK in text else (3 * text[-1] + len(text)) % (MASK - 1)
        return one_hot(after, VOCAB)

    target = FakeTarget(next_logits)
    text, gains = write(target, space(**options), [1, 2], GREEDY)
    assert text == write(target, NoDrafter(), [1, 2], GREEDY, num_draft_tokens=0)[0]
    assert set(gains) == {1}


def test_a_draft_holds_the_likeliest_paths_first():
    rows = [{4: 0.6, 5: 0.4}, {6: 0.9, 7: 0.1}]
    logits = torch.full((3, VOCAB), -30.0)
    for row, probs in enumerate(rows, start=1):
        for token, prob in probs.items():
            logits[row, token] = np.log(prob)
    sequence, drafter = sequence_of([1]), space(num_masks=2, width=2)
    drafter.begin(sequence, None)
    drafter.extend(sequence, DraftTree())
    sequence.token_ids.append(2)
    drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [2]), None, logits))
    tree = drafter.propose(sequence, 9)
    check_tree(tree, 9)
    assert tree.token_ids.tolist() == [4, 6, 5, 6, 7, 7]
    assert tree.parents.tolist() == [-1, 0, -1, 2, 0, 2]
    assert tree.scores == pytest.approx([0.6, 0.54, 0.4, 0.36, 0.06, 0.04])
    assert drafter.propose(sequence, 3).token_ids.tolist() == [4, 6, 5]


def test_rows_of_a_pass_without_the_masks_are_not_read():
    sequence, drafter = sequence_of([1]), space()
    drafter.begin(sequence, None)
    tree = DraftTree.chain([4, 5, 6, 7])
    drafter.extend(sequence, tree)
    logits = torch.zeros(5, VOCAB)  # the masks were left out
    drafter.observe(sequence, Observation(tree, Acceptance([], [2]), None, logits))
    assert not len(drafter.propose(sequence, 9))
    drafter.extend(sequence, DraftTree())
    drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [2]), None, torch.zeros(4, VOCAB)))
    assert len(drafter.propose(sequence, 9))
    drafter.observe(sequence, Observation(DraftTree(), Acceptance([], [2]), None, torch.zeros(4, VOCAB)))
    assert not len(drafter.propose(sequence, 9))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("k", [1, 3])
def test_unverified_with_beta_0_every_step_writes_all_pads(models, k, temperature):
    lm, prompt, gains = models(), [5, 9, 13], []
    params = SamplingParams(max_new_tokens=41, temperature=temperature, seed=4, ignore_eos=True)
    found = lm.generate(
        prompt,
        params,
        drafter=MaskTokens("lud", num_masks=k, beta=0, mask_token_id=0, **LUD),
        verify=unverified(0),
        num_draft_tokens=9,
        trace=lambda step: gains.append(len(step.gains[0].acceptance.token_ids)),
    )
    assert found.guarantee == "approximate"
    assert gains[0] == 1
    assert set(gains[1:-1]) == {k + 1}
    assert found.token_ids != lm.generate(prompt, params, drafter="off").token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_unverified_with_beta_above_1_is_plain_decoding(models, temperature):
    params = SamplingParams(max_new_tokens=30, temperature=temperature, seed=4)
    lm = models()
    plain = lm.generate([5, 9, 13], params, drafter="off")
    for drafter in ("lud", "space", "suffix+token-recycling"):
        found = lm.generate([5, 9, 13], params, drafter=drafter, verify=unverified(2), num_draft_tokens=9)
        assert found.token_ids == plain.token_ids
        assert found.stats.num_draft_tokens > 0 or drafter != "suffix+token-recycling"


class Spy(MaskTokens):
    """Writes down the root's logits of every pass, and the text they belong to."""

    def begin(self, sequence, prompt_candidates):
        super().begin(sequence, prompt_candidates)
        self.seen = []

    def observe(self, sequence, observation):
        text = sequence.token_ids[: -len(observation.acceptance.token_ids)]
        self.seen.append((text, observation.logits[0]))
        super().observe(sequence, observation)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom-alibi", "lfm2-hybrid"])
def test_the_cache_of_unverified_tokens_is_that_of_the_text(targets, models, name):
    """Keys that came from pad inputs would show in every later row."""
    dtype = torch.float64
    lm, forward = models(name, dtype), targets(name, dtype).forward
    drafter = Spy("lud", num_masks=3, beta=0, mask_token_id=0, **LUD)
    params = SamplingParams(max_new_tokens=41, ignore_eos=True)
    lm.generate([5, 9, 13], params, drafter=drafter, verify=unverified(0), num_draft_tokens=9)
    assert len(drafter.seen) < 41
    for text, found in drafter.seen:
        expected = forward(np.asarray([text]), np.arange(len(text))[None], None, None)[0][-1]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)  # some layers rotate in float32


def test_unverified_pads_below_beta_are_not_drafted_and_sure_ones_are():
    def next_logits(text):
        """Sure at even positions, nearly undecided at odd ones."""
        logits = by_position(VOCAB)(text)
        return one_hot(int(logits.argmax()), VOCAB) if len(text) % 2 else logits / 10

    target, lud = FakeTarget(next_logits), space(num_masks=3, beta=0.9, **LUD)
    text, gains = write(target, lud, [1], GREEDY, verify=unverified(0.9))
    assert set(gains[1:-1]) == {1, 2}
    assert text == write(target, NoDrafter(), [1], GREEDY, num_draft_tokens=0)[0]


def test_an_unverified_text_teaches_the_union_nothing_about_its_drafts():
    union = CombinedDrafter([space(num_masks=3, beta=0, **LUD)])
    before = {key: value.copy() for key, value in union.state().items()}
    write(FakeTarget(by_position(VOCAB)), union, [1], GREEDY, verify=unverified(0))
    for key, value in union.state().items():
        assert np.array_equal(value, before[key])
    write(FakeTarget(by_position(VOCAB)), union, [1], GREEDY)
    assert any(not np.array_equal(value, before[key]) for key, value in union.state().items())


def target_with(**config):
    generation = SimpleNamespace(eos_token_id=config.pop("generation_eos", None))
    forward = SimpleNamespace(
        text_config=SimpleNamespace(**config), model=SimpleNamespace(generation_config=generation)
    )
    return SimpleNamespace(forward=forward, vocab_size=VOCAB)


def test_without_a_trained_mask_the_config_names_one():
    assert default_mask_token(None) is None
    assert default_mask_token(target_with()) is None
    assert default_mask_token(target_with(generation_eos=[4, 5])) == 4
    assert default_mask_token(target_with(pad_token_id=None, unk_token_id=0, eos_token_id=2)) == 0
    assert default_mask_token(target_with(pad_token_id=3, mask_token_id=9)) == 9
    assert default_mask_token(target_with(pad_token_id=VOCAB, eos_token_id=2)) == 2
    assert default_mask_token(target_with(pad_token_id=-1, eos_token_id=[])) is None


def test_they_are_fused_drafters_by_name(models):
    for name in ("space", "lud"):
        assert isinstance(DRAFTERS[name](Resources(VOCAB)), FusedDrafter)
        assert isinstance(make_drafter(f"{name}+suffix", models().resources), FusedDrafter)
    with pytest.raises(ConfigError, match="space\\+lud cannot be combined"):
        make_drafter("space+lud", Resources(VOCAB))


def test_they_refuse_what_cannot_work_and_forget_sequences():
    for option in ("num_masks", "num_groups", "width"):
        with pytest.raises(ConfigError, match=f"{option}=0"):
            MaskTokens(**{option: 0})
    with pytest.raises(ConfigError, match="mask_token_id=-1"):
        MaskTokens(mask_token_id=-1)
    with pytest.raises(StoreError, match="space"):
        MaskTokens().restore({"x": np.zeros(1)})
    drafter, sequence = MaskTokens(), sequence_of([1])
    drafter.begin(sequence, None)
    drafter.end(sequence)
    drafter.end(sequence)
    assert drafter.state() == {}
    assert not drafter._texts
