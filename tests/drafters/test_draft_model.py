"""The draft model as a drafter: its cache, its groups, when it rests, which arm it uses, reading ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from adversaries import VOCAB
from hasten.core import Acceptance, SamplingParams, Sequence
from hasten.drafters import CombinedDrafter, Observation
from hasten.drafters.lookup.copying import CopySpec
from hasten.drafters.model.arms import Arm
from hasten.drafters.model.continued import Continued
from hasten.drafters.model.draft_model import DraftModel
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.eagle import Eagle
from hasten.errors import ConfigError
from hasten.models.draft.draft_lm import load_draft
from hasten.sampling import Sampler
from judges import wanting

PROMPTS = [[5, 9, 13, 22] * 3, [40], [3, 60, 61, 62], [88, 87, 86, 85, 84]]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.8, seed=11)


def sequence_of(token_ids, params=GREEDY, proposals="coupled", seed=3):
    sampler = Sampler(params, seed)
    return Sequence(list(token_ids), len(token_ids), 10**6, sampler, None, judge=wanting(proposals))


def draft_model(draft, shape=None, **options):
    return DraftModel([Arm(draft, shape or Eagle(depth=3, width=3))], overlap="off", **options)


def begun(drafter, *sequences):
    for sequence in sequences:
        drafter.begin(sequence, None)
    return list(sequences)


def write(drafter, sequence, tree, token_ids):
    """As if the target had written these."""
    sequence.token_ids += token_ids
    drafter.observe(sequence, Observation(tree, Acceptance([], token_ids)))


def same(one, other):
    return (
        one.token_ids.tolist() == other.token_ids.tolist() and one.parents.tolist() == other.parents.tolist()
    )


@pytest.fixture(scope="module")
def twin(targets):
    """A draft that is the target itself."""
    return load_draft(targets().forward.model, target=targets(), target_tokenizer=None)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_that_is_the_target_is_always_right(models, twin, params):
    drafter = CombinedDrafter([draft_model(twin, Chain(5))], "draft")
    for output in models().generate(PROMPTS, params, drafter=drafter, num_draft_tokens=5):
        assert output.stats.acceptance_histogram == {6: 4}
        assert output.stats.tokens_per_source == {"draft": 20, "target": 4}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_trees_of_a_batch_are_those_of_its_rows_alone(drafts, params):
    drafter = draft_model(drafts())
    batch = begun(drafter, *(sequence_of(prompt, params) for prompt in PROMPTS))
    together = drafter.propose_all(batch, 20)
    for tree, prompt in zip(together, PROMPTS, strict=True):
        [alone] = begun(draft_model(drafts()), sequence_of(prompt, params))
        assert same(tree, draft_model(drafts()).propose(alone, 20))
        assert len(tree) > 3


@pytest.mark.parametrize("own", [True, False], ids=["its own nodes", "foreign tokens"])
def test_it_catches_up_with_what_was_written(drafts, own):
    drafter = draft_model(drafts())
    [sequence] = begun(drafter, sequence_of(PROMPTS[0]))
    rng = np.random.default_rng(0)
    for _ in range(6):
        tree = drafter.propose(sequence, 12)
        path = tree.token_ids[tree.likeliest_path()].tolist()
        write(drafter, sequence, tree, [*(path[:2] if own else []), int(rng.integers(2, VOCAB))])
        fresh = draft_model(drafts()).propose(sequence_of(sequence.token_ids), 12)
        assert same(drafter.propose(sequence, 12), fresh)


def test_steps_it_was_not_asked_in_are_caught_up_with(drafts):
    drafter = draft_model(drafts())
    [sequence] = begun(drafter, sequence_of(PROMPTS[0]))
    drafter.propose(sequence, 12)
    sequence.token_ids += [7, 8, 9, 10]
    assert same(
        drafter.propose(sequence, 12), draft_model(drafts()).propose(sequence_of(sequence.token_ids), 12)
    )


def test_sequences_leave_and_others_come(drafts):
    drafter = draft_model(drafts())
    batch = begun(drafter, *(sequence_of(prompt) for prompt in PROMPTS))
    drafter.propose_all(batch, 8)
    drafter.end(batch[1])
    left = [batch[3], batch[0]]
    newcomer = begun(drafter, sequence_of([50, 51, 52]))
    for asked in (left, newcomer, left):
        for sequence, tree in zip(asked, drafter.propose_all(asked, 8), strict=True):
            assert same(tree, draft_model(drafts()).propose(sequence_of(sequence.token_ids), 8))
    for sequence in [batch[0], *batch[2:], *newcomer]:
        drafter.end(sequence)
    assert not drafter._groups


def test_nothing_is_proposed_where_only_one_token_is_left(drafts):
    drafter = draft_model(drafts())
    sequence = sequence_of(PROMPTS[0])
    sequence.max_length = len(sequence.token_ids) + 1
    assert len(drafter.propose(sequence, 8)) == 0
    sequence.max_length += 2
    assert drafter.propose(sequence, 8).depths().max() == 2


def test_nothing_is_proposed_for_a_text_the_draft_cannot_read(drafts, monkeypatch):
    drafter = draft_model(drafts())
    sequence = sequence_of(PROMPTS[0])
    monkeypatch.setattr(type(drafts()), "to_draft", lambda self, token_ids: [])
    assert len(drafter.propose(sequence, 8)) == 0


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Slow:
    """A shape that takes this long."""

    def __init__(self, clock, seconds, length=2):
        self.clock, self.seconds, self.chain = clock, seconds, Chain(length)
        self.num_trees = 0

    def grow(self, tree):
        self.clock.now += self.seconds
        self.num_trees += 1
        return self.chain.grow(tree)

    def learn(self, tree, acceptance): ...


def run(drafter, clock, rounds, accepted, step_seconds=1.0):
    """Rounds of a union in which so many of its chain's tokens are written; returns the sequence."""
    union = CombinedDrafter([drafter], "draft")
    [sequence] = begun(union, sequence_of(PROMPTS[0]))
    for _ in range(rounds):
        tree = union.propose(sequence, 8)
        clock.now += step_seconds
        path = tree.likeliest_path()[:accepted]
        token_ids = [*tree.token_ids[path].tolist(), 1 + len(sequence.token_ids) % 90]
        sequence.token_ids += token_ids
        union.observe(sequence, Observation(tree, Acceptance(path, token_ids)))
    return sequence


@pytest.mark.parametrize(("seconds", "accepted", "rests"), [(0.1, 0, True), (0.1, 1, False), (3.0, 1, True)])
def test_a_draft_that_does_not_pay_rests_and_the_statistics_say_so(
    drafts, monkeypatch, seconds, accepted, rests
):
    clock = Clock(monkeypatch)
    shape = Slow(clock, seconds)
    sequence = run(draft_model(drafts(), shape, rests=True), clock, 200, accepted)
    rested = sequence.stats.as_dict()["resting_steps"]["draft"]
    assert (rested > 150) == rests
    assert shape.num_trees == 200 - rested
    assert shape.num_trees >= 12  # it is asked again
    assert rested >= 6  # and what resting would cost is looked at


def test_the_fastest_arm_is_used_most(drafts, monkeypatch):
    clock = Clock(monkeypatch)
    shapes = [Slow(clock, 0.5), Slow(clock, 0.01), Slow(clock, 0.2)]
    run(DraftModel([Arm(drafts(), shape) for shape in shapes], overlap="off"), clock, 200, 2)
    counts = [shape.num_trees for shape in shapes]
    assert counts[1] > 150
    assert min(counts) >= 6


def test_a_pass_is_priced_in_tokens(drafts, monkeypatch):
    clock = Clock(monkeypatch)
    arm = Arm(drafts(), Slow(clock, 0.3, length=3))
    drafter = DraftModel([arm], overlap="off")
    run(drafter, clock, 40, 2)
    # A round is 3 passes of 0.1 s and the target's second, and writes 3 tokens.
    assert drafter._arms.token_price(arm) == pytest.approx(0.1 / (1.3 / 3), rel=0.1)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_reading_ahead_changes_no_text_and_saves_passes(models, twin, params):
    lm = models()
    plain = lm.generate(PROMPTS, params, drafter="off")
    drafter = DraftModel([Arm(twin, Chain(4))], overlap="on")
    found = lm.generate(
        PROMPTS, params, drafter=CombinedDrafter([drafter], "draft"), num_draft_tokens=4, trace=lambda _: None
    )
    assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    assert threading.active_count() == 1 or "hasten" not in str(threading.enumerate())


def test_what_was_read_ahead_needs_no_pass_afterwards(twin):
    drafter = DraftModel([Arm(twin, Chain(3))], overlap="on")
    [sequence] = begun(drafter, sequence_of(PROMPTS[0]))
    tree = drafter.propose(sequence, 3)
    session = drafter._groups[0].session
    with drafter.while_verifying([sequence]):
        deadline = time.monotonic() + 20
        while session.num_passes < 3 + 17 and time.monotonic() < deadline:
            time.sleep(0.01)
    passes = session.num_passes
    [grown] = session.grow([[(-1, int(tree.token_ids[0]))]])
    assert grown
    assert session.num_passes == passes
    following = draft_model(twin, Chain(4)).propose(sequence_of(sequence.token_ids), 4).token_ids.tolist()
    write(drafter, sequence, tree, following)
    drafter.propose(sequence, 3)
    assert session.num_passes == passes  # text and tree were both read already


def test_errors_while_reading_ahead_are_raised(twin, monkeypatch):
    drafter = DraftModel([Arm(twin, Chain(3))], overlap="on")
    [sequence] = begun(drafter, sequence_of(PROMPTS[0]))
    drafter.propose(sequence, 3)

    def broken(wanted):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(drafter._groups[0].session, "grow", broken)
    with pytest.raises(RuntimeError, match="out of memory"), drafter.while_verifying([sequence]):
        pass


def test_arms_and_overlap_are_checked(drafts):
    with pytest.raises(ConfigError, match="at least one tree shape"):
        DraftModel([])
    with pytest.raises(ConfigError, match="overlap='sometimes'"):
        DraftModel([Arm(drafts(), Chain())], overlap="sometimes")


def test_a_copy_continues_the_draft(drafts):
    """After the draft's path the text repeats what followed the same words before."""
    drafter = Continued(draft_model(drafts(), Chain(3), name="both"), CopySpec(gamma=3), "both")
    probe = draft_model(drafts(), Chain(3))
    start = [5, 9, 13, 22]
    chain = probe.propose(sequence_of(start), 3).token_ids.tolist()
    text = [*chain, 70, 71, 72, 73, *start]
    chain = probe.propose(sequence_of(text), 3).token_ids.tolist()
    text = [*chain, 70, 71, 72, 73, *text]
    [sequence] = begun(drafter, sequence_of(text))
    tree = drafter.propose(sequence, 20)
    path = tree.token_ids[tree.likeliest_path()].tolist()
    expected = probe.propose(sequence_of(text), 3).token_ids.tolist()
    assert path[:3] == expected
    if expected == chain:
        assert path[3:6] == [70, 71, 72]
    assert len(tree) <= 20


@pytest.mark.parametrize("rule", ["residual", "traversal", "k-sequential", "block", "fastest"])
def test_sampled_and_copied_nodes_together_keep_the_law(models, drafts, rule):
    """The first two tokens, over many seeds, against the target's own law."""
    lm = models()
    prompt = [5, 9, 13, 22, 5, 9, 13, 22, 5, 9]
    params = SamplingParams(max_new_tokens=3, ignore_eos=True, temperature=0.7, n=1500, top_k=3, seed=0)
    union = CombinedDrafter([draft_model(drafts()), CopySpec(gamma=2)], "draft+copyspec")
    found = lm.generate([prompt], params, drafter=union, num_draft_tokens=9, verify=rule, batch_size=250)
    plain = lm.generate([prompt], params, drafter="off", batch_size=250)
    assert sum(each.stats.num_accepted_tokens for each in found) > 300
    counts = {}
    for side, outputs in enumerate((plain, found)):
        for output in outputs:
            counts.setdefault(tuple(output.token_ids[:2]), [0, 0])[side] += 1
    table = np.array(list(counts.values()), float)
    large = table[table.sum(1) >= 20]
    rest = table[table.sum(1) < 20].sum(0, keepdims=True)
    table = np.concatenate((large, rest)) if rest.sum() >= 20 else large
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    assert statistic < 3 * (len(table) - 1) + 12
