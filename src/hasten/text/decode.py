"""The autoregressive loop: propose, forward, verify, keep, observe; texts join and leave between steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hasten.core import Acceptance, Sequence
from hasten.drafters.base import Drafter
from hasten.errors import ConfigError
from hasten.logits import Draw, ForeseenSampler, Logits
from hasten.models.sessions.prefix_cache import PrefixCache
from hasten.models.sessions.session import CopiesRows, Session, find, num_rows_run
from hasten.models.target import Target
from hasten.policies import DraftPolicy
from hasten.text.drafting import Draft, DraftingGroup, Gain, Method
from hasten.text.reading import Entry, Reading
from hasten.tree import DraftTree
from hasten.verify import VERIFIERS, Verifier


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: the gain of every sequence that took part, and where the milliseconds went."""

    gains: list[Gain]
    milliseconds: dict[str, float]
    started: list[Sequence] = field(default_factory=list)
    """texts whose first step this is"""
    ended: list[Sequence] = field(default_factory=list)
    """texts that are finished, those that were cancelled since the last step included"""


def decode(
    model: Target,
    drafter: Drafter,
    policy: DraftPolicy,
    sequences: list[Sequence],
    verifier: Verifier = VERIFIERS["follow"],
) -> Generator[Step, None, None]:
    """Write all sequences side by side to their end, a step at a time.

    Each sequence's ``token_ids``, ``stats`` and ``finish_reason`` are up to date whenever a step is yielded,
    so the generator may be closed at any time.
    """
    with closing(RunningBatch(model)) as batch:
        batch.admit([(sequence, Method(drafter, policy, verifier)) for sequence in sequences])
        batch.read()
        while batch.sequences:
            yield batch.step()


class RunningBatch:
    """Texts that are written side by side, and that join, leave and fork between steps.

    Invariant between calls: of every text, each committed token but the last is in the target's cache; the
    last one is the root of the next tree. ``sequences`` are in the order of the session's rows. After an
    error inside ``read`` or ``step`` there is nothing left to do but to ``close`` it.

    Args:
        prefixes: what texts cached, for later ones that begin alike; of a model whose sessions give copies.
    """

    def __init__(self, model: Target, prefixes: PrefixCache | None = None) -> None:
        self.sequences: list[Sequence] = []
        self._model = model
        self._prefixes = prefixes
        self._session: Session | None = None
        self._reading: Reading | None = None
        self._groups: list[DraftingGroup] = []
        self._group_of: dict[Sequence, DraftingGroup] = {}
        self._started: list[Sequence] = []
        self._ended: list[Sequence] = []  # cancelled before they began

    @property
    def num_texts(self) -> int:
        """Those that are written, and those whose prompts are being read."""
        return len(self.sequences) + (len(self._reading.entries) if self._reading else 0)

    @property
    def has_work(self) -> bool:
        """Whether another step has anything to do or to say."""
        return bool(self.num_texts or self._ended)

    @property
    def is_reading(self) -> bool:
        """Whether prompts are still to be read; no other texts may be admitted meanwhile."""
        return self._reading is not None

    def admit(self, entries: list[Entry]) -> None:
        """Texts that join as soon as ``read`` has read their prompts.

        Raises ConfigError while others are being read.
        """
        if self._reading is not None:
            raise ConfigError("texts are being read; admit others when they have joined (read)")
        for sequence, method in entries:
            sequence.judge = method.verifier.judge(sequence)
        if entries:
            self._reading = Reading(self._model, entries, self._prefixes)

    def read(self, max_tokens: int | None = None) -> int:
        """Read the prompts of admitted texts, at least so many tokens of them, in whole chunks, or all.

        Returns how many were read. Texts that are read join the batch.
        """
        if self._reading is None:
            return 0
        with self._model.undisturbed():
            num_read, is_done = self._reading.advance(max_tokens)
            if is_done:
                reading, self._reading = self._reading, None
                self._join(reading)
        return num_read

    def step(self) -> Step:
        """One pass; texts that were cancelled leave before it, texts that ended after it."""
        with self._model.undisturbed():
            return self._step()

    def cancel(self, sequence: Sequence) -> None:
        """The text ends where it is, as "interrupted", and leaves before the next step.

        May be called at any time, also for a text that is still to be read, or that has ended.
        """
        if sequence.finish_reason is None:
            sequence.finish_reason = "interrupted"

    def fork(self, sequence: Sequence, sample: int | None = None) -> Sequence:
        """Another text that goes on from here with the same drafter and rule; see ``Sequence.fork``.

        Raises ConfigError for a text that is not being written here.
        """
        if sequence not in self._group_of or self._session is None:
            raise ConfigError("only a text that is being written here can be forked")
        child, group = sequence.fork(sample), self._group_of[sequence]
        self._session.select([*range(len(self.sequences)), self.sequences.index(sequence)])
        self.sequences.append(child)
        self._group_of[child] = group
        group.fork(sequence, child)
        self._attach()
        return child

    def close(self) -> None:
        """Give everything back: drafters forget the texts, which stay as they are."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
        for group in self._groups:
            group.end(list(group.sequences))
        self.sequences.clear()
        self._groups.clear()
        self._group_of.clear()
        self._close_session()

    def _step(self) -> Step:
        clock, ended = _Clock(), self._retire()
        started, self._started = self._started, []
        if self._session is None:
            return Step([], {}, started, ended)
        session, active = self._session, list(self.sequences)
        drafts = self._draft(session)
        trees = [draft.extended for draft in drafts]
        with clock.phase("forward"), self._meanwhile():
            top_k = max(group.top_k for group in self._groups)
            logits = find(session, trees, _foresee(trees, active), top_k)
            self._model.synchronize()  # the one time a step waits
        with clock.phase("verify"):
            acceptances = _verify(active, drafts, logits)
        session.keep(acceptances)
        gains = _commit(active, drafts, acceptances)
        for group in self._groups:
            rows = self._rows_of(group)
            group.hear([gains[row] for row in rows], [logits[row] for row in rows])
        clock.spent["draft"] = sum(group.draft_ms for group in self._groups)
        num_rows = num_rows_run(session, trees)
        self._judge(num_rows, acceptances, clock.spent["forward"], clock.spent["verify"] + clock.rest)
        ended += self._retire()
        clock.spent["other"] = clock.rest
        _account(gains, clock.spent)
        return Step(gains, clock.spent, started, ended)

    def _judge(
        self, num_rows: int, acceptances: list[Acceptance], forward_ms: float, other_ms: float
    ) -> None:
        """Tell the policies what the step cost and gained."""
        for group in self._groups:
            num_accepted = [len(acceptances[row].path) for row in self._rows_of(group)]
            group.policy.observe(num_rows, forward_ms, group.draft_ms, num_accepted, other_ms)

    def _draft(self, session: Session) -> list[Draft]:
        """Of every text, in the order of rows."""
        found: dict[Sequence, Draft] = {}
        for group in self._groups:
            num_others = len(self.sequences) - len(group.sequences)
            found |= zip(group.sequences, group.draft(session, num_others), strict=True)
        return [found[sequence] for sequence in self.sequences]

    @contextmanager
    def _meanwhile(self) -> Iterator[None]:
        with ExitStack() as stack:
            for group in self._groups:
                stack.enter_context(group.while_verifying())
            yield

    def _rows_of(self, group: DraftingGroup) -> list[int]:
        if len(self._groups) == 1:
            return list(range(len(self.sequences)))
        return [row for row, each in enumerate(self.sequences) if self._group_of[each] is group]

    def _retire(self) -> list[Sequence]:
        """Texts that have ended leave; returns them, and those that ended before they began."""
        never_begun, self._ended = self._ended, []
        rows, ended = _split(self.sequences)
        if not ended:
            return never_begun
        for row, sequence in enumerate(self.sequences):
            if sequence in ended:
                self._keep_prefix(row)
        for group in self._groups:
            if mine := [sequence for sequence in ended if self._group_of[sequence] is group]:
                group.end(mine)
        for sequence in ended:
            del self._group_of[sequence]
        self._groups = [group for group in self._groups if group.sequences]
        self.sequences = [self.sequences[row] for row in rows]
        if not rows:
            self._close_session()
        elif self._session is not None:
            self._session.select(rows)
            self._attach()
        return [*never_begun, *ended]

    def _keep_prefix(self, row: int) -> None:
        """Of a row, all that is cached may serve other texts."""
        if self._prefixes is not None and isinstance(self._session, CopiesRows):
            text = self.sequences[row].token_ids[:-1]
            self._prefixes.add(text, partial(self._session.cached, row))

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _attach(self) -> None:
        for group in self._groups:
            assert self._session is not None
            group.attach(self._session, self.sequences)

    def _group(self, method: Method) -> DraftingGroup:
        """Of texts with the same drafter and policy; a new one where there is none."""
        for group in self._groups:
            if group.drafter is method.drafter and group.policy is method.policy:
                return group
        self._groups.append(DraftingGroup(method.drafter, method.policy, self._model.vocab_size))
        return self._groups[-1]

    def _join(self, reading: Reading) -> None:
        """Texts whose prompts were read go on behind the others; those that were cancelled never begin."""
        session, entries = reading.session, reading.entries
        joining, ended = _split([sequence for sequence, _ in entries])
        self._ended += ended
        if not joining:
            session.close()
            return
        if len(joining) < len(entries):
            session.select(joining)
        if self._session is None:
            self._session = session
        else:
            self._session.join(session)
        new: Counter[DraftingGroup] = Counter()
        for row in joining:
            sequence, method = entries[row]
            sequence.stats.prefill_ms = reading.milliseconds
            group = self._group_of[sequence] = self._group(method)
            self.sequences.append(sequence)
            self._started.append(sequence)
            group.begin(sequence, reading.candidates[row])
            new[group] += 1
            self._keep_prefix(len(self.sequences) - 1)
        for group, count in new.items():
            group.policy.begin(reading.milliseconds, count / len(group.sequences))
        self._attach()


def _split(sequences: list[Sequence]) -> tuple[list[int], list[Sequence]]:
    """The rows of those that go on, and those that have ended; another thread may cancel meanwhile."""
    rows: list[int] = []
    ended: list[Sequence] = []
    for row, sequence in enumerate(sequences):
        if sequence.finish_reason:
            ended.append(sequence)
        else:
            rows.append(row)
    return rows, ended


def _foresee(trees: list[DraftTree], active: list[Sequence]) -> list[Draw | None]:
    """How what the pass computes will be drawn, so that it can be found there."""
    draws: list[Draw | None] = []
    for tree, sequence in zip(trees, active, strict=True):
        sampler, depths = sequence.sampler, np.concatenate(([0], tree.depths()))
        positions = len(sequence.token_ids) + depths
        draws.append(sampler.foresee(positions) if isinstance(sampler, ForeseenSampler) else None)
    return draws


def _verify(active: list[Sequence], drafts: list[Draft], logits: list[Logits]) -> list[Acceptance]:
    acceptances = []
    for sequence, draft, of_one in zip(active, drafts, logits, strict=True):
        assert sequence.judge is not None
        acceptance = sequence.judge.verify(draft.tree, of_one, sequence)
        if sequence.logprobs is not None:
            sequence.logprobs.add(of_one, acceptance)
        acceptances.append(acceptance)
    return acceptances


def _commit(active: list[Sequence], drafts: list[Draft], acceptances: list[Acceptance]) -> list[Gain]:
    gains = []
    for sequence, draft, acceptance in zip(active, drafts, acceptances, strict=True):
        sequence.token_ids += acceptance.token_ids
        if acceptance.finish_reason:  # else a text that was cancelled meanwhile stays so
            sequence.finish_reason = acceptance.finish_reason
        gains.append(Gain(sequence, draft.tree, acceptance))
    return gains


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


class _Clock:
    """What the phases of a step took, in milliseconds."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent[name] = 1000 * (time.perf_counter() - start)

    @property
    def rest(self) -> float:
        """Of the time since the step began, what belongs to no phase."""
        return 1000 * (time.perf_counter() - self._started) - sum(self.spent.values())
