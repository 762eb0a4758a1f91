"""What a policy of the diffusion loop may decide, and what it sees when it does.

Policies are frozen values without state of their own: ``start`` gives the state of one canvas, the loop
hands it back to every call, and forks it to look ahead. ``refuses`` names the reason why a policy cannot work
in a strategy. ``wants`` names the rows a policy needs: "open" ones of the block, the whole "block", or the
open ones of the whole "canvas".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.core import Guarantee, SamplingParams
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.drawing import Draw

if TYPE_CHECKING:
    from hasten.diffusion.strategy import Strategy

Wants = Literal["open", "block", "canvas"]
Inquiry = Generator[list[Query], list[Prediction], "Selection"]

NONE: Ids = np.empty(0, dtype=np.int64)
_GREEDY = Draw(SamplingParams())


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass, as policies see it."""

    canvas: Canvas
    block: Block
    prediction: Prediction
    """of every wanted position that was computed; transforms and constraint applied"""
    forward: int
    """predictions that this canvas has had before"""
    forward_in_block: int
    """predictions that it has had in this block before"""
    sequence: int = 0
    """the canvas's number in the session, for queries of a selector's own"""
    draw: Draw = _GREEDY
    """gives predictions of a selector's own their candidates; knows the laws that these are drawn from"""

    @property
    def num_open(self) -> int:
        """Open positions of the block."""
        return len(self.canvas.open_in(self.block))

    @cached_property
    def open(self) -> Prediction:
        """Of the open positions of the block that were predicted: what may be committed now."""
        waiting = self.canvas.open_in(self.block)
        return self.prediction.at(np.intersect1d(waiting, self.prediction.positions, assume_unique=True))

    @cached_property
    def everywhere(self) -> Prediction:
        """Of all open positions that were predicted, after the block too."""
        positions = self.prediction.positions
        return self.prediction.at(positions[self.canvas.is_open[positions]])


@dataclass(frozen=True, eq=False)
class Selection:
    """What to write now."""

    positions: Ids
    """int64 [n], open ones"""
    token_ids: Ids
    """int64 [n]"""

    @classmethod
    def of(cls, prediction: Prediction, chosen: Any) -> Selection:
        """The candidates of some rows of a prediction; ``chosen`` is a bool mask or row numbers."""
        return cls(prediction.positions[chosen], prediction.token_ids[chosen])


@dataclass(frozen=True, eq=False)
class Revision:
    """What to take back after a commit: positions to open again, and tokens to replace."""

    reopened: Ids = field(default_factory=lambda: NONE)
    edited: Ids = field(default_factory=lambda: NONE)
    token_ids: Ids = field(default_factory=lambda: NONE)
    """int64: the tokens of the edited positions"""
    kept: Ids = field(default_factory=lambda: NONE)
    """positions to open again that go on holding their token; the reopened ones get fresh noise"""
    looks_again: bool = False
    """whether the block shall be predicted once more although nothing of it is open"""


@dataclass(frozen=True)
class Finish:
    """The end of a text: cut to ``length``, where given, and write all that is open with its candidates."""

    length: int | None = None
    fills: bool = False


@dataclass(frozen=True, eq=False)
class Turn:
    """A forward pass that is about to happen, as a cache policy sees it."""

    canvas: Canvas
    block: Block
    forward_in_block: int
    upcoming: Ids | None = None
    """the positions that will be committed after it, where the selector's order is known in advance"""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rows a forward pass computes, see Query."""

    computed: Ids | None = None
    stores: bool = False
    compared: Plan | None = None
    """another plan for the same canvas: the cache policy is told both predictions, the text follows this"""


@dataclass(frozen=True)
class Helpers:
    """What some policies need besides numbers; None where a caller gave none."""

    guide: Any = None
    """an autoregressive model that scores proposals, for "guided" """
    filter: Any = None
    """a trained filter, or what loads it, for "learn2pd" """
    sampler: Any = None
    """a trained one-layer sampler, for "joint" """
    delimiter_ids: tuple[int, ...] = ()
    """tokens that end a line, for "adablock" """
    spec: DenoiserSpec | None = None
    """of the denoiser; ``parse_strategy`` sets it"""


class Policy(ABC):
    """What all policies share."""

    name: ClassVar[str]
    wants: ClassVar[Wants] = "open"
    published_with: ClassVar[str | None] = None
    """the selector that goes with it where a caller names none"""
    wants_hidden: ClassVar[bool] = False
    """whether predictions shall carry the last hidden states of the canvas"""

    @classmethod
    def make(cls, helpers: Helpers, **values: Any) -> Policy:
        """Built from the values of a strategy's text. Raises ConfigError for a helper that is missing."""
        return cls(**values)

    @property
    def guarantee(self) -> Guarantee:
        """What the text is to the reference's when this policy alone is added to it."""
        return "approximate"

    def start(self, canvas: Canvas) -> Any:
        """The state of one canvas; it must survive copy.deepcopy."""
        return None

    def refuses(self, strategy: Strategy, spec: DenoiserSpec) -> str | None:
        """Why this policy cannot work there, and what would; None if it can."""
        return None


class BlockPolicy(Policy):
    """Which range of positions is written next."""

    @abstractmethod
    def window(self, canvas: Canvas) -> Block:
        """The widest block that may come next; it begins at or before the first open position."""

    def choose(self, window: Block, step: Step) -> Block:
        """The block, from a first prediction of the window; it begins where the window does."""
        return window


class Selector(Policy):
    """Which open positions are written after a forward pass, and with what."""

    @property
    def block_size(self) -> int | None:
        """The only size of blocks that it can work with; None for any."""
        return None

    @property
    def order_is_known(self) -> bool:
        """Whether ``upcoming`` tells the positions before their prediction."""
        return False

    @property
    def reference(self) -> Selector:
        """The one-token-a-forward selector whose text this one wants to write faster."""
        from hasten.diffusion.selectors.static import Static

        return Static()

    def select(self, step: Step, state: Any) -> Selection:
        """At least one open position of the block; by default the surest, as the reference."""
        return Selection.of(step.open, [int(step.open.confidence.argmax())])

    def inquire(self, step: Step, state: Any) -> Inquiry:
        """``select`` for selectors that ask for more predictions first: a generator of queries."""
        return self.select(step, state)
        yield []

    def upcoming(self, canvas: Canvas, block: Block, state: Any) -> Ids:
        """The positions that the next ``select`` will choose; none where the order is not known."""
        return NONE


class Transform(Policy):
    """Changes a prediction before anything is decided."""

    def extra_queries(self, query: Query, canvas: Canvas) -> list[Query]:
        """More queries for the same forward pass, such as one without the prompt."""
        return []

    @abstractmethod
    def apply(self, step: Step, extras: list[Prediction], state: Any) -> Prediction:
        """``step.prediction`` with other logits."""


class StopPolicy(Policy):
    """When a text ends before everything was written a block at a time."""

    cuts_the_end: ClassVar[bool] = False
    """whether it may shorten a canvas"""
    ends_open: ClassVar[bool] = False
    """whether it is certain to end a canvas that is never all written, such as one of uniform noise"""

    def before_commit(self, step: Step, state: Any) -> Finish | None:
        """After a forward pass, before its selection."""
        return None

    def after_commit(self, step: Step, state: Any) -> Finish | None:
        """After the selection was written and revised, unless a reviser wants to look at a full block again.

        Only a ``length`` counts here.
        """
        return None


class Reviser(Policy):
    """What is taken back after a commit."""

    @abstractmethod
    def revise(self, step: Step, selection: Selection, state: Any) -> Revision: ...


class CachePolicy(Policy):
    """Which rows a forward pass computes."""

    keeps_rows: ClassVar[bool] = True

    @property
    def is_constant_in_block(self) -> bool:
        """Whether every pass of a block but the first computes the same rows, whatever was committed."""
        return False

    @abstractmethod
    def plan(self, turn: Turn, state: Any) -> Plan: ...

    def compare(self, prediction: Prediction, compared: Prediction, state: Any) -> None:
        """Of a plan that named another one: both predictions, the second perhaps of fewer positions."""


class Verifier(Policy):
    """Which canvases are predicted beside the present one, because they are likely to come next.

    The loop uses a prediction made ahead only where the very same canvas comes up, so that it is the one that
    a forward pass of its own would have given.
    """

    @abstractmethod
    def drafts(self, step: Step, guesses: Iterator[Canvas], state: Any) -> list[Canvas]:
        """Some of the canvases that ``guesses`` foresees, in order; it ends with the block.

        ``step`` is the last forward pass, from whose prediction they are guessed.
        """

    def imagined(self, step: Step, state: Any) -> Step:
        """What a forward pass of a foreseen canvas may tell; by default, what the last one told.

        ``step`` has the foreseen canvas, and the prediction of the canvas before it.
        """
        return step

    def settle(self, step: Step, selection: Selection, draw: Draw, state: Any) -> Selection:
        """The tokens that are written at the selected positions."""
        return selection
