"""The autoregressive loop: propose, forward, verify, keep, observe; for a batch of one or many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hasten.core import Acceptance, Sequence
from hasten.drafters.base import BatchDrafter, Drafter, FusedDrafter, Observation, SelfDrafter
from hasten.logits import Draw, ForeseenSampler, Logits
from hasten.models.forwards.forward import PREFILL_CHUNK
from hasten.models.sessions.session import Session, find
from hasten.models.target import Target
from hasten.policies import DraftPolicy, telling_positions
from hasten.tree import DraftTree
from hasten.verify import Verify, follow


@dataclass(slots=True)
class _Clock:
    """Splits the time of a step among its phases, in milliseconds."""

    started: float = field(default_factory=time.perf_counter)
    spent: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.spent[phase] = self.spent.get(phase, 0.0) + 1000 * (now - self.started)
        self.started = now


@dataclass(frozen=True, slots=True)
class Gain:
    """What one step gained for one sequence."""

    sequence: Sequence
    tree: DraftTree
    acceptance: Acceptance

    def sources(self) -> list[str]:
        """Who proposed each written token."""
        names = [self.tree.source_names[int(self.tree.sources[node])] for node in self.acceptance.path]
        return [*names, "target"]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: the gain of every sequence that took part, and where the milliseconds went."""

    gains: list[Gain]
    milliseconds: dict[str, float]


def decode(
    model: Target,
    drafter: Drafter,
    policy: DraftPolicy,
    sequences: list[Sequence],
    verify: Verify = follow,
) -> Generator[Step, None, None]:
    """Write all sequences to their end, a step at a time.

    Invariant between steps: every committed token but the last is in the target's cache; the last one is the
    root of the next tree. Each sequence's ``token_ids``, ``stats`` and ``finish_reason`` are up to date
    whenever a step is yielded, so the generator may be closed at any time.
    """
    with closing(_steps(model, drafter, policy, sequences, verify)) as steps:
        while True:
            with model.undisturbed():
                step = next(steps, None)
            if step is None:
                return
            yield step


def _steps(
    model: Target, drafter: Drafter, policy: DraftPolicy, sequences: list[Sequence], verify: Verify
) -> Generator[Step, None, None]:
    active = list(sequences)
    session = model.open(active)
    begun: list[Sequence] = []
    news = _News(drafter)
    try:
        policy.begin(_prefill(model, session, drafter, policy, active, begun=begun))
        _attach(drafter, session, active)
        clock = _Clock()
        while active:
            budget = policy.budget([len(sequence.token_ids) for sequence in active])
            if policy.is_learning:
                news.tell()
            trees = _propose(drafter, policy, budget, active, model.vocab_size)
            trees = [session.fit(tree) for tree in trees]
            extended = _extend(drafter, session, active, trees, model.vocab_size) if budget else trees
            clock.lap("draft")
            top_k = drafter.top_k if policy.is_learning else 0
            with _meanwhile(drafter, active):
                logits = find(session, extended, _foresee(extended, active), top_k)
                model.synchronize()  # the one time a step waits
            clock.lap("forward")
            acceptances = [verify(*row) for row in zip(trees, logits, active, strict=True)]
            clock.lap("verify")
            session.keep(acceptances)
            clock.lap("other")
            gains = _commit(active, trees, acceptances)
            news.hear(gains, logits, top_k, at_once=policy.is_learning)
            clock.lap("draft")
            spent, clock.spent = clock.spent, {}
            _judge(policy, extended, acceptances, spent)
            if any(gain.sequence.finish_reason for gain in gains):
                news.tell()
                active = _retire(active, session, drafter, begun)
            clock.lap("other")
            spent["other"] += clock.spent.pop("other")
            _account(gains, spent)
            yield Step(gains, spent)
            clock.started = time.perf_counter()
    finally:
        news.tell()
        for sequence in begun:
            drafter.end(sequence)


def _judge(
    policy: DraftPolicy, trees: list[DraftTree], acceptances: list[Acceptance], spent: dict[str, float]
) -> None:
    """Tell the policy what the step cost and gained."""
    num_rows = len(trees) * (max(map(len, trees)) + 1)
    num_accepted = [len(acceptance.path) for acceptance in acceptances]
    other_ms = spent["verify"] + spent["other"]
    policy.observe(num_rows, spent["forward"], spent["draft"], num_accepted, other_ms)


class _News:
    """What a drafter may learn of every step: at once, or later, of many steps as of one without a draft."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._num_untold: Counter[Sequence] = Counter()

    def hear(self, gains: list[Gain], logits: list[Logits], top_k: int, *, at_once: bool) -> None:
        for gain, of_one in zip(gains, logits, strict=True):
            if at_once:
                self._drafter.observe(gain.sequence, _observation(gain, of_one, top_k))
            else:
                self._num_untold[gain.sequence] += len(gain.acceptance.token_ids)

    def tell(self) -> None:
        """All that was put off."""
        for sequence, count in self._num_untold.items():
            written = Acceptance([], sequence.token_ids[-count:])
            self._drafter.observe(sequence, Observation(DraftTree(), written))
        self._num_untold.clear()


def _prefill(
    model: Target,
    session: Session,
    drafter: Drafter,
    policy: DraftPolicy,
    active: list[Sequence],
    *,
    begun: list[Sequence],
) -> float:
    """Cache the prompts; returns the milliseconds that took."""
    clock = _Clock()
    prompts = [sequence.token_ids for sequence in active]
    positions = _telling_positions(prompts, policy) if drafter.top_k else None
    found = session.prefill(prompts, drafter.top_k, positions)
    model.synchronize()
    for sequence, candidates in zip(active, found, strict=True):
        begun.append(sequence)
        drafter.begin(sequence, candidates)
    clock.lap("prefill")
    for sequence in active:
        sequence.stats.prefill_ms = clock.spent["prefill"]
    return clock.spent["prefill"]


def _telling_positions(prompts: list[list[int]], policy: DraftPolicy) -> list[NDArray[np.int64]] | None:
    """Where drafters are to see candidates of each prompt; None: everywhere."""
    count = policy.num_prompt_rows(sum(map(len, prompts)))
    if count is None:
        return None
    return [telling_positions(prompt, count // len(prompts), PREFILL_CHUNK) for prompt in prompts]


def _propose(
    drafter: Drafter, policy: DraftPolicy, budget: int, active: list[Sequence], vocab_size: int
) -> list[DraftTree]:
    """Trees no deeper than a sequence may still grow: its last token is the target's own."""
    if not budget:
        return policy.choose([DraftTree() for _ in active])
    if isinstance(drafter, BatchDrafter):
        trees = drafter.propose_all(active, budget)
    else:
        trees = [drafter.propose(sequence, budget) for sequence in active]
    return policy.choose(
        [
            tree.sanitised(vocab_size, sequence.num_remaining - 1)
            for tree, sequence in zip(trees, active, strict=True)
        ]
    )


def _meanwhile(drafter: Drafter, active: list[Sequence]) -> AbstractContextManager[None]:
    return drafter.while_verifying(active) if isinstance(drafter, BatchDrafter) else nullcontext()


def _attach(drafter: Drafter, session: Session, active: list[Sequence]) -> None:
    if isinstance(drafter, SelfDrafter):
        drafter.attach(session, active)


def _extend(
    drafter: Drafter,
    session: Session,
    active: list[Sequence],
    trees: list[DraftTree],
    vocab_size: int,
) -> list[DraftTree]:
    """The trees with the extra rows of a fused drafter, where the model can take them."""
    if not isinstance(drafter, FusedDrafter):
        return trees
    extended = []
    for sequence, tree in zip(active, trees, strict=True):
        larger = drafter.extend(sequence, tree)
        clean = session.fit(larger.sanitised(vocab_size, sequence.num_remaining))
        extended.append(larger if tree.begins(larger) and len(clean) == len(larger) else tree)
    return extended


def _commit(active: list[Sequence], trees: list[DraftTree], acceptances: list[Acceptance]) -> list[Gain]:
    gains = [Gain(*row) for row in zip(active, trees, acceptances, strict=True)]
    for sequence, acceptance in zip(active, acceptances, strict=True):
        sequence.token_ids += acceptance.token_ids
        sequence.finish_reason = acceptance.finish_reason
    return gains


def _foresee(trees: list[DraftTree], active: list[Sequence]) -> list[Draw | None]:
    """How what the pass computes will be drawn, so that it can be found there."""
    draws: list[Draw | None] = []
    for tree, sequence in zip(trees, active, strict=True):
        sampler, depths = sequence.sampler, np.concatenate(([0], tree.depths()))
        positions = len(sequence.token_ids) + depths
        draws.append(sampler.foresee(positions) if isinstance(sampler, ForeseenSampler) else None)
    return draws


def _observation(gain: Gain, logits: Logits, top_k: int) -> Observation:
    """What the drafter may learn of a sequence: the candidates of the tree's own rows, not of extra ones."""
    found = logits.candidates(top_k).rows(0, len(gain.tree) + 1) if top_k else None
    return Observation(gain.tree, gain.acceptance, found, logits)


def _retire(
    active: list[Sequence], session: Session, drafter: Drafter, begun: list[Sequence]
) -> list[Sequence]:
    """End the finished sequences; returns the others, which the session goes on with."""
    rows = [row for row, sequence in enumerate(active) if not sequence.finish_reason]
    for sequence in active:
        if sequence.finish_reason:
            begun.remove(sequence)
            drafter.end(sequence)
    going_on = [active[row] for row in rows]
    if going_on:
        session.retain(rows)
        _attach(drafter, session, going_on)
    return going_on


def _account(gains: list[Gain], spent: dict[str, float]) -> None:
    for gain in gains:
        stats = gain.sequence.stats
        stats.num_steps += 1
        stats.num_tokens += len(gain.acceptance.token_ids)
        stats.num_draft_tokens += len(gain.tree)
        stats.acceptance_histogram[len(gain.acceptance.token_ids)] += 1
        stats.tokens_per_source.update(gain.sources())
        for phase, milliseconds in spent.items():
            name = f"{phase}_ms"
            setattr(stats, name, getattr(stats, name) + milliseconds)
