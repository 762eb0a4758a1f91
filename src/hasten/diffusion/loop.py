"""The diffusion loop: plan, forward, transform, select, commit, revise; for one canvas or many.

A canvas is written by a generator that asks for predictions and is sent them, so that it reads from top to
bottom; ``denoise`` drives many side by side, one forward pass at a time. Canvases do not wait for each other.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Sequence as AbstractSequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hasten.diffusion.base import Policy, Speculator, Strategy
from hasten.diffusion.canvas import Block, Canvas, Denoiser, Ids, Prediction, Query
from hasten.diffusion.drawing import Drawing, NoiseSource
from hasten.diffusion.limits import Limits
from hasten.diffusion.steps import NONE, DenoisingStep, Finish, Plan, Revision, Selection, Turn
from hasten.diffusion.trace import DiffusionStats, Record

Asking = Generator[list[Query], list[Prediction], None]


@dataclass(frozen=True, slots=True)
class _Questions:
    """About one canvas: its own query, those of each transform, and those that are compared with its own."""

    query: Query
    extras: list[list[Query]]
    compared: list[Query]

    @property
    def flat(self) -> list[Query]:
        return [self.query, *(one for extra in self.extras for one in extra), *self.compared]

    def answered(self, predictions: Iterator[Prediction]) -> _Answers:
        own = next(predictions)
        extras = [[next(predictions) for _ in extra] for extra in self.extras]
        return _Answers(own, extras, [next(predictions) for _ in self.compared])


@dataclass(frozen=True, slots=True)
class _Answers:
    prediction: Prediction
    extras: list[list[Prediction]]
    compared: list[Prediction]


@dataclass(eq=False)
class Writing:
    """One canvas on its way. Canvas, stats and records are up to date whenever queries are asked."""

    canvas: Canvas
    strategy: Strategy
    draw: Drawing
    noise: NoiseSource
    sequence: int = 0
    """its number in the session"""
    limits: Limits | None = None
    stats: DiffusionStats = field(default_factory=DiffusionStats)
    records: list[Record] = field(default_factory=list)
    """of the steps since ``denoise`` last yielded"""

    def __post_init__(self) -> None:
        policies = list(self.strategy.policies)
        self._states: dict[int, Any] = {id(one): one.start(self.canvas) for one in policies}
        self._wants = {one.wants for one in policies}
        self._wants_hidden = any(one.wants_hidden for one in policies)
        self._ahead: dict[bytes, _Answers] = {}
        self._last: DenoisingStep | None = None
        self._rows = 0

    def _state(self, policy: Policy) -> Any:
        return self._states[id(policy)]

    def steps(self) -> Asking:
        """Writes the canvas, a block at a time."""
        while self.canvas.num_open:
            self._ahead, self._last = {}, None
            yield from self._write_block()

    def _write_block(self) -> Asking:
        window = self.strategy.blocks.window(self.canvas)
        step = yield from self._look(window, 0)
        step = replace(step, block=self.strategy.blocks.choose(window, step))
        while True:
            finish = self._asked_to_stop(step, "before_commit")
            was_open = step.num_open
            step = self._cut(step, finish)
            if was_open and not step.num_open:
                return
            looks_again = yield from self._commit(step, fills=finish.fills)
            if not looks_again:
                step = self._cut(step, self._asked_to_stop(step, "after_commit"))
                if not step.num_open:
                    return
            self._last = step
            step = yield from self._look(step.block, step.forward_in_block + 1)

    def _asked_to_stop(self, step: DenoisingStep, moment: Literal["before_commit", "after_commit"]) -> Finish:
        """What all stop policies want together."""
        wishes = [getattr(stop, moment)(step, self._state(stop)) for stop in self.strategy.stops]
        made = [wish for wish in wishes if wish is not None]
        lengths = [wish.length for wish in made if wish.length is not None]
        return Finish(min(lengths, default=None), any(wish.fills for wish in made))

    def _cut(self, step: DenoisingStep, finish: Finish) -> DenoisingStep:
        """The step on the shortened canvas."""
        if finish.length is None or finish.length >= len(self.canvas):
            return step
        self.canvas.truncate(finish.length)
        positions = step.prediction.positions
        kept = step.prediction.at(positions[positions < finish.length])
        start, end = step.block
        return replace(step, prediction=kept, block=Block(start, min(end, finish.length)))

    def _look(
        self, block: Block, forward_in_block: int
    ) -> Generator[list[Query], list[Prediction], DenoisingStep]:
        """The prediction of the canvas as it is now, ready to be decided on."""
        answers = yield from self._predict(block, forward_in_block)
        number = self.stats.num_steps - 1
        step = DenoisingStep(
            self.canvas, block, answers.prediction, number, forward_in_block, self.sequence, self.draw
        )
        for transform, extras in zip(self.strategy.transforms, answers.extras, strict=True):
            step = replace(step, prediction=transform.apply(step, extras, self._state(transform)))
        if self.limits is not None:
            step = replace(step, prediction=self.limits.masked(self.canvas, step.prediction))
        return replace(step, prediction=self.draw(step.prediction))

    def _predict(
        self, block: Block, forward_in_block: int
    ) -> Generator[list[Query], list[Prediction], _Answers]:
        """Made ahead, or now and together with those of the canvases that are likely to come next."""
        known = self._ahead.pop(self.canvas.key, None)
        if known is not None:
            self.stats.num_ahead += 1
            self._rows = 0
            return known
        plan = self._plan(block, forward_in_block)
        drafts = self._drafts()
        asked = [self._questions(self.canvas, block, plan)]
        asked += [self._questions(draft, block, replace(plan, stores=False)) for draft in drafts]
        queries = [query for one in asked for query in one.flat]
        self._rows = sum(query.num_rows for query in queries)
        answers = iter((yield queries))
        own, *others = [one.answered(answers) for one in asked]
        self._ahead = {draft.key: one for draft, one in zip(drafts, others, strict=True)}
        for other in own.compared:
            cache = self.strategy.cache
            cache.compare(own.prediction, other, self._state(cache))
        return own

    def _plan(self, block: Block, forward_in_block: int) -> Plan:
        selector, cache = self.strategy.selector, self.strategy.cache
        upcoming = None
        if selector.order_is_known:
            upcoming = selector.upcoming(self.canvas, block, self._state(selector))
        return cache.plan(Turn(self.canvas, block, forward_in_block, upcoming), self._state(cache))

    def _drafts(self) -> list[Canvas]:
        speculator = self.strategy.speculator
        if speculator is None or self._last is None:
            return []
        return speculator.drafts(self._last, self._foreseen(self._last, speculator), self._state(speculator))

    def _foreseen(self, last: DenoisingStep, speculator: Speculator) -> Iterator[Canvas]:
        """What the canvas becomes if later predictions are as imagined, by default like the last one."""
        selector = self.strategy.selector
        state = copy.deepcopy(self._state(selector))
        canvas = self.canvas
        step = last
        while True:
            step = replace(step, canvas=canvas, forward_in_block=step.forward_in_block + 1)
            step = speculator.imagined(step, self._state(speculator))
            selection = selector.select(step, state)
            canvas = canvas.fork()
            canvas.commit(selection.positions, selection.token_ids)
            if not len(canvas.open_in(last.block)):
                return
            yield canvas

    def _questions(self, canvas: Canvas, block: Block, plan: Plan) -> _Questions:
        query = self._query(canvas, block, plan)
        extras = [one.extra_queries(query, canvas) for one in self.strategy.transforms]
        compared = [] if plan.compared is None else [self._query(canvas, block, plan.compared)]
        return _Questions(query, extras, compared)

    def _query(self, canvas: Canvas, block: Block, plan: Plan) -> Query:
        wanted = self._wanted(canvas, block)
        if plan.computed is not None:
            wanted = np.intersect1d(wanted, plan.computed, assume_unique=True)
        return Query(
            sequence=self.sequence,
            token_ids=canvas.token_ids.copy(),
            wanted=wanted,
            computed=plan.computed,
            stores=plan.stores,
            wants_hidden=self._wants_hidden,
            previous=self._last.prediction if self._last else None,
        )

    def _wanted(self, canvas: Canvas, block: Block) -> Ids:
        """Ascending: what any policy wants to know."""
        is_wanted = np.zeros(len(canvas), dtype=bool)
        inside = slice(block.start, block.end)
        is_wanted[inside] = canvas.is_open[inside] | ("block" in self._wants)
        if "canvas" in self._wants:
            is_wanted |= canvas.is_open
        return np.flatnonzero(is_wanted)

    def _commit(self, step: DenoisingStep, *, fills: bool) -> Generator[list[Query], list[Prediction], bool]:
        """Writes and revises; whether the block shall be looked at again even if nothing is open."""
        strategy = self.strategy
        if fills or not step.num_open:
            selection = Selection.of(step.everywhere, slice(None)) if fills else Selection(NONE, NONE)
        else:
            selection = yield from strategy.selector.inquire(step, self._state(strategy.selector))
        if step.num_open and not len(selection.positions):
            raise ValueError(f"selector {strategy.selector.name!r} wrote nothing; it must write a position")
        if strategy.speculator is not None:
            state = self._state(strategy.speculator)
            selection = strategy.speculator.settle(step, selection, self.draw, state)
        if self.limits is not None:
            selection = self.limits.admitted(self.canvas, step.prediction, selection)
        self.canvas.commit(selection.positions, selection.token_ids, self.stats.num_forwards)
        revisions = [] if fills else self._revise(step, selection)
        self.stats.num_tokens = int((~self.canvas.is_open & ~self.canvas.is_given).sum())
        self.records.append(self._record(step, selection, revisions))
        return any(one.looks_again for one in revisions)

    def _revise(self, step: DenoisingStep, selection: Selection) -> list[Revision]:
        forward = self.stats.num_forwards
        revisions = []
        for reviser in self.strategy.revisers:
            revision = reviser.revise(step, selection, self._state(reviser))
            self.canvas.edit(revision.edited, revision.token_ids, forward)
            self.canvas.reopen(revision.reopened, self.noise(revision.reopened, forward))
            self.canvas.reopen(revision.kept, self.canvas.token_ids[revision.kept])
            revisions.append(revision)
        return revisions

    def _record(self, step: DenoisingStep, selection: Selection, revisions: list[Revision]) -> Record:
        guesses = self.canvas.token_ids.copy()
        seen = step.prediction.positions
        is_guess = self.canvas.is_open[seen]
        guesses[seen[is_guess]] = step.prediction.token_ids[is_guess]
        written = step.prediction.at(selection.positions).with_tokens(selection.token_ids)
        return Record(
            sequence=self.sequence,
            forward=self.stats.num_forwards,
            is_ahead=self._rows == 0,
            block=step.block,
            num_rows=self._rows,
            positions=selection.positions,
            token_ids=selection.token_ids,
            confidence=written.confidence,
            reopened=np.concatenate([NONE, *(one.reopened for one in revisions)]),
            edited=np.concatenate([NONE, *(one.edited for one in revisions)]),
            canvas_ids=guesses,
            is_open=self.canvas.is_open.copy(),
        )


def denoise(denoiser: Denoiser, writings: AbstractSequence[Writing]) -> Generator[list[Record], None, None]:
    """Write all canvases to their end, a forward pass at a time; yields what happened after each pass.

    ``writings[i].sequence`` is i. Canvases and stats are up to date whenever it yields, so the generator may
    be closed at any time. An inquiring selector's passes may yield no record.
    """
    keeps_rows = any(writing.strategy.cache.keeps_rows for writing in writings)
    session = denoiser.open([len(writing.canvas) for writing in writings], keeps_rows=keeps_rows)
    active = {writing.sequence: writing.steps() for writing in writings}
    asked = {sequence: next(steps) for sequence, steps in active.items()}
    while asked:
        started = time.perf_counter()
        predictions = iter(session.forward([query for queries in asked.values() for query in queries]))
        forwarded = time.perf_counter()
        involved = [writings[sequence] for sequence in asked]
        for writing in involved:
            writing.stats.num_forwards += 1
            writing.stats.num_rows += sum(query.num_rows for query in asked[writing.sequence])
        asked = dict(_advance(active, asked, predictions))
        for writing in involved:
            writing.stats.forward_ms += 1000 * (forwarded - started)
            writing.stats.other_ms += 1000 * (time.perf_counter() - forwarded)
        yield [record for writing in involved for record in _taken(writing)]


def _advance(
    active: dict[int, Asking], asked: dict[int, list[Query]], predictions: Iterator[Prediction]
) -> Iterator[tuple[int, list[Query]]]:
    """Send every canvas its predictions; what those that go on ask next."""
    for sequence, queries in asked.items():
        answers = [next(predictions) for _ in queries]
        try:
            yield sequence, active[sequence].send(answers)
        except StopIteration:
            continue


def _taken(writing: Writing) -> list[Record]:
    records, writing.records = writing.records, []
    return records
