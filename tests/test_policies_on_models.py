"""Policies decide how much is drafted, never what is written."""

from __future__ import annotations

import pytest

from adversaries import Adversary, Oracle, Recorder, very_wide
from hasten.core import Drafting, SamplingParams
from hasten.drafters.plain import NoDrafter
from hasten.errors import ConfigError
from hasten.policies import (
    POLICIES,
    SYSTEMS,
    FixedPolicy,
)
from hasten.tree import DraftTree

PROMPTS = [[5, 9, 13, 22] * 5, [40], [3, 60, 61, 62, 63, 3, 60], [88, 87, 86], [30, 31, 30, 31, 33, 30, 31]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", ["llma", "lookahead", "auto"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_writes_the_plain_text(models, policy, drafter, temperature):
    lm = models()
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=temperature, seed=3)
    expected = lm.generate(PROMPTS, params, drafter="off")
    for _ in range(2):
        found = lm.generate(PROMPTS, params, drafter=drafter, policy=policy)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    if policy != "cost":
        assert sum(one.stats.num_draft_tokens for one in found) > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["bloom-alibi", "lfm2-hybrid", "rwkv"])
def test_every_policy_writes_the_plain_text_in_every_mode(models, name, policy):
    lm = models(name)
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    expected = lm.generate(PROMPTS, params, drafter="off")
    found = lm.generate(PROMPTS, params, drafter=Adversary(very_wide), policy=policy)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


class Extending(NoDrafter):
    """Adds the same number of rows of its own to every pass."""

    def propose(self, sequence, budget):
        return DraftTree.chain([7, 8][:budget])

    def extend(self, sequence, tree):
        more = DraftTree([11, 12, 13], [-1, -1, -1])
        return DraftTree([*tree.token_ids, *more.token_ids], [*tree.parents, *more.parents])


class Watched(FixedPolicy):
    """Writes down what it is told."""

    def __init__(self, num_draft_tokens):
        super().__init__(num_draft_tokens)
        self.told = []

    def observe(self, num_rows, forward_ms, draft_ms, num_accepted, other_ms):
        self.told.append((num_rows, list(num_accepted)))


def test_a_policy_hears_of_all_rows_and_of_what_every_sequence_accepted(models, monkeypatch):
    lm = models()
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    policies = []
    monkeypatch.setattr(
        "hasten.text.engine.FixedPolicy", lambda size: policies.append(Watched(size)) or policies[-1]
    )
    plain = lm.generate(PROMPTS[0], params, drafter="off")
    oracle = Recorder(Oracle([*PROMPTS[0], *plain.token_ids], depth=3))
    lm.generate(PROMPTS[0], params, drafter=oracle, num_draft_tokens=40)
    told = [(len(seen.tree) + 1, [len(seen.acceptance.path)]) for _, _, seen in oracle.observed]
    assert policies[-1].told == told
    assert max(accepted for _, [accepted] in told) == 3
    lm.generate(PROMPTS[:2], params, drafter=Extending(), num_draft_tokens=2)
    assert policies[-1].told[0] == (2 * (1 + 2 + 3), [0, 0])


def test_policies_are_known_by_name(models):
    lm = models()
    params = SamplingParams(max_new_tokens=4)
    for options, message in (
        ({"policy": "best"}, "policy='best' is unknown; choose cost, ems, bass"),
        ({"policy": "bass", "num_draft_tokens": 4}, "num_draft_tokens=4 fixes the size that policy='bass'"),
    ):
        with pytest.raises(ConfigError, match=message):
            lm.generate(PROMPTS[1], params, drafter="llma", **options)
        with pytest.raises(ConfigError, match=message):
            list(lm.stream(PROMPTS[1], params, drafter="llma", **options))
    pieces = list(lm.stream(PROMPTS[1], params, drafter="llma", policy="bass"))
    assert pieces[-1].output.token_ids == lm.generate(PROMPTS[1], params, drafter="off").token_ids
    assert {system.name for system in SYSTEMS} == {"ems-sd", "bass"}


def test_every_policy_keeps_what_it_learnt_to_itself(models):
    lm = models()
    used = [
        lm.method(Drafting(drafter=drafter, policy=name)).policy
        for _ in range(2)
        for drafter in ("llma", "suffix")
        for name in POLICIES
    ]
    assert used[:6] == used[6:]
    assert len(set(map(id, used))) == 6
