"""Texts that join, leave and fork between steps: each is written as it would be alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from adversaries import VOCAB, Adversary, Recorder, random_tree
from conftest import build_model
from hasten.core import Drafting, SamplingParams, Sequence
from hasten.drafters import DRAFTERS
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.sessions.tree_session import TreeSession
from hasten.text.decode import RunningBatch
from hasten.text.engine import LanguageModel
from hasten.text.scheduler import Scheduler

METHODS = [
    Drafting(drafter="off"),
    Drafting(drafter="auto", num_draft_tokens=9),
    Drafting(drafter="suffix", policy="ems"),
    Drafting(drafter="jacobi", num_draft_tokens=5),
    Drafting(drafter="adapld", policy="bass"),
    Drafting(drafter=Adversary(random_tree), num_draft_tokens=12),
    Drafting(drafter="space", num_draft_tokens=4),
    Drafting(drafter="auto"),
]
SAMPLINGS = [
    {},
    {"temperature": 0.9},
    {"temperature": 0.8, "top_k": 20, "min_p": 0.01},
    {"temperature": 1.1, "top_p": 0.9},
]


@dataclass
class Life:
    """What happens to one text."""

    prompt: list[int]
    params: SamplingParams
    drafting: Drafting
    arrives: int
    """before the step of that number"""
    cancelled: int | None = None
    """before so many steps after that"""
    forked: int | None = None
    sample: int = 0
    """of the fork"""
    sequence: Sequence | None = None
    forks: list[tuple[int, Sequence]] = field(default_factory=list)
    """(tokens that were written then, child)"""


def random_life(rng):
    prompt = rng.integers(2, VOCAB, rng.integers(1, 40)).tolist()
    if rng.random() < 0.3:
        prompt = [7, 8, 9] * 12 + prompt
    return Life(
        prompt,
        SamplingParams(
            max_new_tokens=int(rng.integers(1, 30)),
            seed=int(rng.integers(99)),
            ignore_eos=bool(rng.random() < 0.5),
            stop_token_ids=rng.integers(2, VOCAB, 2).tolist(),
            **SAMPLINGS[rng.integers(len(SAMPLINGS))],
        ),
        METHODS[rng.integers(len(METHODS))],
        int(rng.integers(0, 25)),
        int(rng.integers(0, 9)) if rng.random() < 0.25 else None,
        int(rng.integers(0, 9)) if rng.random() < 0.3 else None,
        int(rng.integers(0, 2)),
    )


def live(lm, lives, max_batch=4, prefill_tokens=16):
    """Runs them through a scheduler; returns its steps."""
    scheduler, steps, number = Scheduler(lm.target, max_batch=max_batch, prefill_tokens=prefill_tokens), [], 0
    while scheduler.has_work or any(life.arrives >= number for life in lives):
        for life in lives:
            if life.arrives == number:
                [job] = lm._requests.jobs([life.prompt], life.params)
                life.sequence = job.sequence
                scheduler.submit(job.sequence, lm.method(life.drafting))
            age = number - life.arrives
            if age == life.cancelled and age >= 0:
                scheduler.cancel(life.sequence)
            is_writing = age >= 0 and life.sequence.new_token_ids and not life.sequence.finish_reason
            if life.forked is not None and age >= life.forked and is_writing and not life.forks:
                child = scheduler.fork(life.sequence, life.sample)
                life.forks.append((len(life.sequence.new_token_ids), child))
        if scheduler.has_work:
            steps.append(scheduler.step())
        number += 1
    scheduler.close()
    return steps


def alone(lm, life):
    return lm.generate(life.prompt, life.params, drafter="off").token_ids


def going_on(lm, life, num_written, sample):
    """What another sample writes after the first tokens of a text."""
    written = life.sequence.new_token_ids[:num_written]
    stops = replace(life.params, max_new_tokens=life.params.max_new_tokens - num_written)
    [job] = lm._requests.jobs([life.prompt + written], stops)
    job.sequence.sampler.sample = sample
    list(lm.decode_sequences([(job.sequence, lm.method(Drafting(drafter="off")))], 1))
    return written + job.sequence.new_token_ids


def check(lm, lives):
    num_forks = 0
    for life in lives:
        expected, found = alone(lm, life), life.sequence.new_token_ids
        if life.sequence.finish_reason == "interrupted":
            assert life.cancelled is not None
            assert found == expected[: len(found)]
        else:
            assert found == expected
        assert life.sequence.stats.num_tokens == len(found)
        for num_written, child in life.forks:
            num_forks += 1
            wanted = going_on(lm, life, num_written, life.sample)
            assert child.new_token_ids == wanted
            assert child.stats.num_tokens == len(wanted)
            assert child.finish_reason in ("stop", "length")
    return num_forks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom-alibi", "lfm2-hybrid", "rwkv", "mamba-recurrent"])
def test_every_text_is_that_of_a_run_alone(models, name, seed):
    lm, rng = models(name), np.random.default_rng(seed)
    lives = [random_life(rng) for _ in range(14)]
    steps = live(lm, lives)
    num_forks = check(lm, lives)
    assert max(len(step.gains) for step in steps) > 2
    started = [sequence for step in steps for sequence in step.started]
    ended = [sequence for step in steps for sequence in step.ended]
    every = [life.sequence for life in lives]
    assert len(set(started)) == len(started)
    assert set(started) <= set(every)
    assert len(ended) == len(set(ended)) == len(every) + num_forks
    assert set(every) <= set(ended)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom-alibi"])
def test_greedy_texts_are_those_of_transformers(models, name):
    lm = models(name)
    rng = np.random.default_rng(5)
    lives = [random_life(rng) for _ in range(10)]
    for life in lives:
        life.params = SamplingParams(max_new_tokens=12, ignore_eos=True)
        life.cancelled = None
    live(lm, lives, max_batch=3)
    model = lm.target.forward.model
    for life in lives:
        theirs = model.generate(
            torch.tensor([life.prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
        )
        assert life.sequence.token_ids == theirs[0].tolist()
        assert all(child.token_ids == theirs[0].tolist() for _, child in life.forks)


def test_this_must_fail_a_row_that_is_joined_in_the_wrong_place(models, monkeypatch):
    lm = models()
    rng = np.random.default_rng(0)
    lives = [random_life(rng) for _ in range(14)]
    join = TreeSession.join

    def swapped(session, other):
        join(session, other)
        if type(session) is not TreeSession:
            return
        count = len(session.num_cached_tokens)
        session.select([*range(1, count), 0])

    monkeypatch.setattr(TreeSession, "join", swapped)
    live(lm, lives)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        check(lm, lives)


def scheduled(lm, prompts, params, drafting, **options):
    scheduler = Scheduler(lm.target, **options)
    jobs = lm._requests.jobs(prompts, params)
    for job in jobs:
        scheduler.submit(job.sequence, lm.method(drafting))
    return scheduler, [job.sequence for job in jobs]


PARAMS = SamplingParams(max_new_tokens=20, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8], [40], [3, 60, 61, 62, 63, 3, 60], [9, 9, 8]]


def test_a_cancelled_text_ends_before_the_next_step(models):
    lm = models()
    recorder = Recorder(Adversary(random_tree))
    scheduler, sequences = scheduled(
        lm, PROMPTS, PARAMS, Drafting(drafter=recorder, num_draft_tokens=6), max_batch=2
    )
    for _ in range(3):
        scheduler.step()
    first, _, third, _ = sequences
    length = len(first.token_ids)
    scheduler.cancel(first)
    scheduler.cancel(third)  # still waits
    step = scheduler.step()
    assert set(step.ended) >= {first, third}
    assert first not in [gain.sequence for gain in step.gains]
    assert (first.finish_reason, len(first.token_ids)) == ("interrupted", length)
    assert (third.finish_reason, third.new_token_ids) == ("interrupted", [])
    assert first in recorder.ended
    while scheduler.has_work:
        scheduler.step()
    assert third not in [sequence for sequence, _ in recorder.begun]
    expected = lm.generate(PROMPTS, PARAMS, drafter="off")
    for sequence, output in zip(sequences, expected, strict=True):
        if sequence not in (first, third):
            assert sequence.new_token_ids == output.token_ids
    assert [one for one, _ in recorder.begun if one not in recorder.ended] == []


@pytest.fixture(scope="module")
def roomy():
    """A model of long prompts."""
    return LanguageModel(CausalLM(build_model("llama", max_position_embeddings=4096)), drafter="off")


def test_a_text_that_is_cancelled_while_it_is_read_never_begins(roomy):
    lm = roomy
    scheduler, [long, other] = scheduled(
        lm, [[*range(2, 90)] * 12, PROMPTS[0]], PARAMS, Drafting(drafter="off"), prefill_tokens=1
    )
    step = scheduler.step()
    assert not step.gains
    scheduler.cancel(long)
    ended = []
    while scheduler.has_work:
        ended += scheduler.step().ended
    assert ended == [long, other]
    assert long.new_token_ids == []
    assert other.new_token_ids == lm.generate(PROMPTS[0], PARAMS, drafter="off").token_ids


def test_a_text_may_be_cancelled_in_the_middle_of_a_step(models, monkeypatch):
    lm = models()
    scheduler, [sequence] = scheduled(lm, PROMPTS[:1], PARAMS, Drafting(drafter="off"))
    keep = TreeSession.keep

    def cancelling(session, acceptances):
        keep(session, acceptances)
        if len(sequence.new_token_ids) == 4:
            thread = threading.Thread(target=scheduler.cancel, args=(sequence,))
            thread.start()
            thread.join()

    monkeypatch.setattr(TreeSession, "keep", cancelling)
    while scheduler.has_work:
        scheduler.step()
    assert len(sequence.new_token_ids) == 5
    assert sequence.finish_reason == "interrupted"


def test_running_texts_do_not_wait_for_a_long_prompt(roomy):
    lm = roomy
    scheduler, [first] = scheduled(lm, PROMPTS[:1], PARAMS, Drafting(drafter="off"), prefill_tokens=1)
    scheduler.step()
    [job] = lm._requests.jobs([[*range(2, 90)] * 20], PARAMS)  # four chunks of 512
    scheduler.submit(job.sequence, lm.method(Drafting(drafter="off")))
    steps = 0
    while not job.sequence.new_token_ids:
        written = len(first.token_ids)
        scheduler.step()
        steps += 1
        assert len(first.token_ids) == written + 1
    assert steps == 4
    scheduler.close()


def test_texts_are_submitted_by_other_threads(models):
    lm = models()
    expected = [output.token_ids for output in lm.generate(PROMPTS * 3, PARAMS, drafter="off")]
    scheduler = Scheduler(lm.target, max_batch=3)
    jobs = [lm._requests.jobs([prompt], PARAMS)[0] for prompt in PROMPTS * 3]
    method = lm.method(Drafting(drafter="auto", num_draft_tokens=5))
    threads = [
        threading.Thread(
            target=lambda part=jobs[start::3]: [scheduler.submit(job.sequence, method) for job in part]
        )
        for start in range(3)
    ]
    for thread in threads:
        thread.start()
    while scheduler.has_work or any(thread.is_alive() for thread in threads):
        scheduler.step()
    assert [job.sequence.new_token_ids for job in jobs] == expected


def test_a_batch_is_refilled(models):
    """A text of 20 tokens beside texts of 4: as many steps as the long one alone takes."""
    lm = models()
    each = [replace(PARAMS, max_new_tokens=count) for count in (20, 4, 4, 4, 4, 4)]
    steps = []
    prompts = [[5, 6, 7, index + 8] for index in range(6)]
    outputs = lm.generate(prompts, each, drafter="off", batch_size=2, trace=steps.append)
    assert [len(output.token_ids) for output in outputs] == [20, 4, 4, 4, 4, 4]
    assert len(steps) == 20
    assert [output.prompt_ids for output in outputs] == prompts


def test_only_texts_that_are_written_can_be_forked(models):
    lm = models()
    batch = RunningBatch(lm.target)
    [job] = lm._requests.jobs([PROMPTS[0]], PARAMS)
    with pytest.raises(ConfigError, match="is being written here"):
        batch.fork(job.sequence)
    job.sequence.finish_reason = "stop"
    with pytest.raises(ConfigError, match="has ended"):
        job.sequence.fork()


RARELY = ("llma", "copyspec", "aggressive", "draft-specdec")
"""Draft little in random texts."""


@pytest.mark.parametrize("drafter", [*sorted(DRAFTERS), "auto", "draft-chain+suffix"])
def test_every_drafter_goes_on_behind_a_fork_and_beside_texts_that_join(models, drafts, drafter):
    """Texts of a drafter that is told of all forks, leaves and joins are those of plain decoding."""
    plain = models()
    if drafter in ("rest",):
        pytest.skip("needs an index")
    lm = LanguageModel(plain.target, drafter="off", draft=drafts())
    rng = np.random.default_rng(3)
    lives = [random_life(rng) for _ in range(9)]
    for life in lives:
        life.drafting = Drafting(drafter=drafter, num_draft_tokens=8)
        life.forked = int(rng.integers(1, 5))
    live(lm, lives)
    assert check(lm, lives) > 2
    forks = [child for life in lives for _, child in life.forks]
    assert sum(child.stats.num_draft_tokens for child in forks) > 0 or drafter in RARELY
