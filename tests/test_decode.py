"""The loop: what drafters are told, what sessions are asked, and that nothing outlives a request."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from adversaries import EOS, Adversary, Oracle, Recorder, end_everywhere, random_tree
from conftest import ARCHITECTURES
from hasten.core import SamplingParams
from hasten.drafters import CombinedDrafter, make_drafter
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.sessions.tree_session import TreeSession
from hasten.policies import FixedPolicy
from hasten.text.decode import decode
from hasten.text.engine import LanguageModel
from hasten.tree import DraftTree

PROMPTS = [[5, 6, 7, 8], [40], [3, 60, 61, 62, 63, 3, 60]]
PARAMS = SamplingParams(max_new_tokens=21, ignore_eos=True)


def record(lm, prompts, params=PARAMS, top_k=0, inner=None):
    recorder = Recorder(inner or Adversary(random_tree), top_k)
    outputs = lm.generate(prompts, params, drafter=recorder, num_draft_tokens=12)
    return recorder, outputs


@pytest.mark.parametrize("depth", [1, 3, 4, 6])
@pytest.mark.parametrize("name", ["llama", "bloom-alibi", "lfm2-hybrid", "rwkv"])
def test_a_right_draft_saves_exactly_its_depth(models, name, depth):
    lm = models(name)
    plain = lm.generate(PROMPTS[0], PARAMS, drafter="off")
    oracle = Oracle([*PROMPTS[0], *plain.token_ids], depth)
    found = lm.generate(PROMPTS[0], PARAMS, drafter=oracle, num_draft_tokens=40)
    assert found.stats.num_steps == math.ceil(21 / (depth + 1))
    assert found.stats.num_tokens == 21


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_sequence_is_begun_once_and_ended_once(models, name):
    recorder, _ = record(models(name), PROMPTS)
    assert len(recorder.begun) == len(recorder.ended) == 3
    assert {id(one) for one, _ in recorder.begun} == {id(one) for one in recorder.ended}


def test_what_is_observed_adds_up_to_what_was_written(models):
    recorder, outputs = record(models(), PROMPTS, SamplingParams(max_new_tokens=15))
    for output in outputs:
        mine = [
            observation.acceptance.token_ids
            for sequence, _, observation in recorder.observed
            if sequence.token_ids[: sequence.prompt_length] == output.prompt_ids
        ]
        assert list(itertools.chain(*mine)) == output.token_ids


@pytest.mark.parametrize("stop", ["stop token", "limit", "end of text"])
def test_nothing_after_the_end_is_ever_observed(models, stop):
    lm = models()
    text = lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids
    end = text.index(text[9]) + 1
    params = {
        "stop token": SamplingParams(max_new_tokens=21, stop_token_ids=[text[9]], ignore_eos=True),
        "limit": SamplingParams(max_new_tokens=end, ignore_eos=True),
        "end of text": SamplingParams(max_new_tokens=21),
    }[stop]
    if stop == "end of text":
        lm.target.forward.model.generation_config.eos_token_id = text[9]
    try:
        for depth in (3, 5, 30):
            recorder, output = record(lm, PROMPTS[0], params, inner=Oracle([*PROMPTS[0], *text], depth))
            assert output.token_ids == text[:end]
            assert output.finish_reason == ("length" if stop == "limit" else "stop")
            seen = [token_ids for _, token_ids, _ in recorder.observed]
            assert seen[-1] == [*PROMPTS[0], *text[:end]]
            for _, _, observation in recorder.observed:
                assert len(observation.acceptance.path) == len(observation.acceptance.token_ids) - 1
    finally:
        lm.target.forward.model.generation_config.eos_token_id = EOS


def test_trees_never_reach_beyond_the_limit(models):
    recorder, _ = record(models(), PROMPTS[0], inner=Adversary(lambda *_: DraftTree.chain([7] * 300)))
    for _, token_ids, observation in recorder.observed:
        before = len(token_ids) - len(observation.acceptance.token_ids)
        assert len(observation.tree) < len(PROMPTS[0]) + 21 - before


def test_an_end_of_text_in_every_draft_ends_nothing(models):
    lm = models()
    expected = lm.generate(PROMPTS, PARAMS, drafter="off")
    _, found = record(lm, PROMPTS, inner=Adversary(end_everywhere))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


@pytest.mark.parametrize("name", ["llama", "bloom-alibi", "lfm2-hybrid", "rwkv", "mamba-recurrent"])
def test_candidates_are_the_models_own_for_every_node(models, name):
    lm = models(name)
    recorder, _ = record(lm, PROMPTS, top_k=4)
    for sequence, candidates in recorder.begun:
        expected = None if sequence.prompt_length == 1 else (sequence.prompt_length - 1, 4)
        assert expected == (candidates.token_ids.shape if candidates else None)
    assert {len(observation.tree) > 0 for *_, observation in recorder.observed} == {
        False,
        name != "mamba-recurrent",
    }
    for _, token_ids, observation in recorder.observed:
        written = observation.acceptance.token_ids
        before = token_ids[: len(token_ids) - len(written)]
        for node in range(-1, len(observation.tree)):
            tokens = observation.tree.token_ids[observation.tree.path_to(node)].tolist()
            best = next_best(lm.target.forward, [*before, *tokens])
            assert observation.candidates.token_ids[node + 1, 0] == best


def next_best(forward, token_ids):
    logits = forward(np.asarray([token_ids]), np.arange(len(token_ids))[None], None, None)
    return int(logits[0, -1].argmax())


def test_no_candidates_are_computed_unless_asked_for(models):
    recorder, _ = record(models(), PROMPTS, top_k=0)
    assert {candidates for _, candidates in recorder.begun} == {None}
    assert {observation.candidates for *_, observation in recorder.observed} == {None}


def test_statistics_add_up(models):
    lm = models()
    steps = []
    text = lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids
    found = lm.generate(
        PROMPTS[0], PARAMS, drafter=Oracle([*PROMPTS[0], *text], 3), num_draft_tokens=20, trace=steps.append
    ).stats
    assert found.num_tokens == 21 == sum(size * count for size, count in found.acceptance_histogram.items())
    assert found.num_steps == len(steps) == sum(found.acceptance_histogram.values())
    assert found.num_draft_tokens == sum(len(step.gains[0].tree) for step in steps)
    assert found.num_accepted_tokens == found.tokens_per_source["draft"]
    assert found.tokens_per_source.total() == found.num_tokens
    assert found.mean_acceptance_length == pytest.approx(21 / found.num_steps)
    assert found.acceptance_rate == pytest.approx(found.num_accepted_tokens / found.num_draft_tokens)
    assert found.as_dict()["num_accepted_tokens"] == found.num_accepted_tokens
    for phase in ("draft", "forward", "verify", "other"):
        traced = sum(step.milliseconds[phase] for step in steps)
        assert getattr(found, f"{phase}_ms") == pytest.approx(traced)
    assert found.total_ms > 0


def test_plain_decoding_drafts_nothing(models):
    found = models().generate(PROMPTS[0], PARAMS, drafter="off", num_draft_tokens=12).stats
    assert (found.num_draft_tokens, found.num_steps, found.mean_acceptance_length) == (0, 21, 1.0)


def drafts_change_the_text(models):
    lm = models("gemma3")
    expected = lm.generate(PROMPTS, PARAMS, drafter="off")
    oracles = [Oracle([*out.prompt_ids, *out.token_ids], 4, error_rate=0.3) for out in expected]
    found = [
        lm.generate(out.prompt_ids, PARAMS, drafter=oracle, num_draft_tokens=20)
        for out, oracle in zip(expected, oracles, strict=True)
    ]
    return [one.token_ids for one in found] != [one.token_ids for one in expected]


def test_this_must_fail_an_accepted_path_that_is_not_kept(models, monkeypatch):
    assert not drafts_change_the_text(models)
    keep = TreeSession.keep

    def forgetful(session, acceptances):
        starts = [type(one)(list(range(len(one.path))), one.token_ids) for one in acceptances]
        keep(session, starts)

    monkeypatch.setattr(TreeSession, "keep", forgetful)
    assert drafts_change_the_text(models)


def test_this_must_fail_a_root_that_is_cached_twice(models, monkeypatch):
    reading = TreeSession.reading
    monkeypatch.setattr(
        TreeSession,
        "reading",
        lambda session, prompts, *rest: reading(session, [[*one, one[-1]] for one in prompts], *rest),
    )
    lm = models()
    expected = CausalLM(lm.target.forward.model, mode="chain")
    found = lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids
    assert found != type(lm)(expected, drafter="off").generate(PROMPTS[0], PARAMS).token_ids


class Fused(Adversary):
    """Appends a row of its own below the root and below every node, and keeps what it sees of them."""

    top_k = 0

    def __init__(self, make, extra=None):
        super().__init__(make)
        self._extra = extra
        self.rows = []

    def extend(self, sequence, tree):
        count = len(tree)
        tokens = [*tree.token_ids, *([90] * (count + 1))]
        parents = [*tree.parents, *range(-1, count)]
        return self._extra(tree) if self._extra else DraftTree(tokens, parents)

    def observe(self, sequence, observation):
        self.rows.append((sequence.token_ids[:], observation))


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom-alibi", "lfm2-hybrid"])
def test_extra_rows_see_their_ancestors_and_are_never_accepted(models, name):
    lm = models(name)
    plain = lm.generate(PROMPTS, PARAMS, drafter="off")
    drafter = Fused(random_tree)
    found = lm.generate(PROMPTS, PARAMS, drafter=drafter, num_draft_tokens=6)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    extended = 0
    for token_ids, observation in drafter.rows:
        tree = observation.tree
        rows = observation.logits[len(tree) + 1 :]
        before = token_ids[: len(token_ids) - len(observation.acceptance.token_ids)]
        for node, row in zip(range(-1, len(tree)), rows, strict=False):
            path = tree.token_ids[tree.path_to(node)].tolist()
            assert int(row.argmax()) == next_best(lm.target.forward, [*before, *path, 90])
            extended += 1
    assert extended > (60 if ARCHITECTURES[name][2] == "tree" else 0)


@pytest.mark.parametrize(
    "extra",
    [
        lambda tree: DraftTree([7], [-1]),
        lambda tree: DraftTree([*tree.token_ids, 10**9], [*tree.parents, -1]),
        lambda tree: DraftTree([*tree.token_ids, *[3] * 300], [*tree.parents, *range(-1, 299)]),
        lambda tree: DraftTree(),
    ],
)
def test_extra_rows_that_cannot_be_computed_are_left_out(models, extra):
    lm = models()
    plain = lm.generate(PROMPTS, PARAMS, drafter="off")
    drafter = Fused(lambda *_: DraftTree([5, 6, 9], [-1, 0, -1]), extra)
    found = lm.generate(PROMPTS, PARAMS, drafter=drafter, num_draft_tokens=6)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    drafted = [one for _, one in drafter.rows if len(one.tree)]
    assert drafted
    assert all(len(one.logits) == len(one.tree) + 1 for one in drafted)


class Attached(Adversary):
    """Notes whose caches it could look into."""

    def __init__(self):
        super().__init__(random_tree)
        self.batches = []

    def attach(self, session, sequences):
        self.batches.append(list(sequences))


def test_a_self_drafter_knows_which_row_is_whose(models):
    drafter = Attached()
    params = SamplingParams(max_new_tokens=30, stop_token_ids=[7, 20, 33, 71], temperature=0.8, seed=2)
    outputs = models().generate(PROMPTS, params, drafter=CombinedDrafter([drafter]), num_draft_tokens=6)
    lengths = sorted({len(one.token_ids) for one in outputs})
    assert len(drafter.batches[0]) == 3
    assert len(drafter.batches) >= len(lengths)
    for earlier, later in itertools.pairwise(drafter.batches):
        assert later == [one for one in earlier if one in later]
        assert all(one.finish_reason for one in earlier if one not in later)


def test_two_drafters_with_extra_rows_cannot_share_a_pass():
    with pytest.raises(ConfigError, match="adversary"):
        CombinedDrafter([Fused(random_tree), Fused(random_tree)])


class Asynchronous(CausalLM):
    """A target that pretends to be on a device which computes while the host goes on."""

    is_asynchronous = True
    num_waits = 0

    def synchronize(self):
        self.num_waits += 1


@pytest.mark.parametrize("drafter", ["token-recycling", "superposed", "draft-chain", "random_tree"])
@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        replace(PARAMS, temperature=0.8, seed=3),
        replace(PARAMS, temperature=0.8, top_k=30, min_p=0.02, seed=3),
        replace(PARAMS, temperature=0.9, top_p=0.8, seed=3),
    ],
)
def test_what_is_computed_behind_the_pass_changes_no_token(models, drafts, drafter, params):
    plain = models()
    target = Asynchronous(plain.target.forward.model)
    lm = LanguageModel(target, drafter="off", draft=drafts())
    chosen = Adversary(random_tree) if drafter == "random_tree" else drafter
    found = lm.generate(PROMPTS, params, drafter=chosen, num_draft_tokens=12)
    expected = plain.generate(PROMPTS, params, drafter="off")
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    steps = max(output.stats.num_steps for output in found)
    assert target.num_waits == steps + 1  # once a step, once after the prompts
    assert sum(output.stats.num_draft_tokens for output in found) > 0


class Resting(FixedPolicy):
    """Drafts in some steps only, and learns at once in those and a few more."""

    def __init__(self, asks, learns):
        super().__init__(4)
        self._asks, self._learns = itertools.cycle(asks), itertools.cycle(learns)

    def budget(self, contexts=(), num_others=0, *, pads_rows=True):
        budget = 4 * next(self._asks)
        self.is_learning = budget > 0 or next(self._learns)
        return budget


@pytest.mark.parametrize(
    ("name", "is_same"),
    [
        *(
            (name, True)
            for name in ("suffix", "llma", "lookahead", "prompt-lookup", "token-recycling", "rasd")
        ),
        ("auto", False),  # adapts to the last tokens once a step
        ("jacobi", False),  # reads the logits of every step
    ],
)
def test_a_drafter_that_was_told_later_knows_the_same_texts(models, name, is_same):
    lm = models()
    plain = lm.generate(PROMPTS, PARAMS, drafter="off")
    trees = {}
    for policy in (
        Resting([0, 0, 0, 1], [False]),
        Resting([0, 0, 0, 1], [False, True]),
        Resting([0, 0, 0, 1], [True]),
    ):
        drafter = make_drafter(name, lm.resources)
        drafter.top_k = 0  # what comes from candidates is lost where it is not told of at once
        recorder = Telling(drafter)
        sequences = [job.sequence for job in lm._requests.jobs(PROMPTS, PARAMS, None)]
        list(decode(lm.target, recorder, policy, sequences))
        assert [sequence.token_ids for sequence in sequences] == [
            [*output.prompt_ids, *output.token_ids] for output in plain
        ]
        trees[policy] = recorder.proposed
        # Every token once, in order, also of sequences that ended while the drafter rested.
        for output in plain:
            assert recorder.heard[tuple(output.prompt_ids)] == output.token_ids
    first, *others = trees.values()
    assert first
    assert not is_same or all(other == first for other in others)


class Telling:
    """Writes down what another drafter proposes and hears."""

    def __init__(self, inner):
        self._inner = inner
        self.proposed, self.heard = [], {}

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def propose_all(self, sequences, budget):
        trees = self._inner.propose_all(sequences, budget)
        self.proposed += [(tree.token_ids.tolist(), tree.parents.tolist()) for tree in trees]
        return trees

    def observe(self, sequence, observation):
        written = observation.acceptance.token_ids
        assert sequence.token_ids[-len(written) :] == written
        self.heard.setdefault(tuple(sequence.token_ids[: sequence.prompt_length]), []).extend(written)
        self._inner.observe(sequence, observation)
