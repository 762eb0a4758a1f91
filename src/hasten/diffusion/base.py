"""What a policy of the diffusion loop may decide, and a strategy: one choice for each decision.

Policies are frozen values without state of their own: ``start`` gives the state of one canvas, the loop
hands it back to every call, and forks it to look ahead. ``refuses`` names the reason why a policy cannot work
in a strategy. ``wants`` names the rows a policy needs: "open" ones of the block, the whole "block", or the
open ones of the whole "canvas".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from hasten.constraints.base import Constraint
from hasten.core import Guarantee, System
from hasten.diffusion.canvas import Block, Canvas, DenoiserSpec, Ids, Prediction, Query
from hasten.diffusion.drawing import Drawing
from hasten.diffusion.steps import NONE, DenoisingStep, Finish, Plan, Revision, Selection, Turn
from hasten.errors import ConfigError

Wants = Literal["open", "block", "canvas"]
Inquiry = Generator[list[Query], list[Prediction], Selection]

_STRENGTH: tuple[Guarantee, ...] = ("approximate", "distribution", "exact")


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
    systems: ClassVar[tuple[System, ...]] = ()
    """the published methods that it is, or is part of"""
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

    def choose(self, window: Block, step: DenoisingStep) -> Block:
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
    def reference(self) -> Selector | None:
        """The one-token-a-forward selector whose text this one writes faster; None for the default."""
        return None

    def select(self, step: DenoisingStep, state: Any) -> Selection:
        """At least one open position of the block; by default the surest, as the reference."""
        return Selection.of(step.open, [int(step.open.confidence.argmax())])

    def inquire(self, step: DenoisingStep, state: Any) -> Inquiry:
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
    def apply(self, step: DenoisingStep, extras: list[Prediction], state: Any) -> Prediction:
        """``step.prediction`` with other logits."""


class StopPolicy(Policy):
    """When a text ends before everything was written a block at a time."""

    cuts_the_end: ClassVar[bool] = False
    """whether it may shorten a canvas"""
    ends_open: ClassVar[bool] = False
    """whether it is certain to end a canvas that is never all written, such as one of uniform noise"""

    def before_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        """After a forward pass, before its selection."""
        return None

    def after_commit(self, step: DenoisingStep, state: Any) -> Finish | None:
        """After the selection was written and revised, unless a reviser wants to look at a full block again.

        Only a ``length`` counts here.
        """
        return None


class Reviser(Policy):
    """What is taken back after a commit."""

    @abstractmethod
    def revise(self, step: DenoisingStep, selection: Selection, state: Any) -> Revision: ...


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


class Speculator(Policy):
    """Which canvases are predicted beside the present one, because they are likely to come next.

    The loop uses a prediction made ahead only where the very same canvas comes up, so that it is the one that
    a forward pass of its own would have given.
    """

    @abstractmethod
    def drafts(self, step: DenoisingStep, guesses: Iterator[Canvas], state: Any) -> list[Canvas]:
        """Some of the canvases that ``guesses`` foresees, in order; it ends with the block.

        ``step`` is the last forward pass, from whose prediction they are guessed.
        """

    def imagined(self, step: DenoisingStep, state: Any) -> DenoisingStep:
        """What a forward pass of a foreseen canvas may tell; by default, what the last one told.

        ``step`` has the foreseen canvas, and the prediction of the canvas before it.
        """
        return step

    def settle(self, step: DenoisingStep, selection: Selection, draw: Drawing, state: Any) -> Selection:
        """The tokens that are written at the selected positions."""
        return selection


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a canvas is written: one choice for each decision of the loop; see ``defaults.REFERENCE``."""

    blocks: BlockPolicy
    selector: Selector
    cache: CachePolicy
    transforms: tuple[Transform, ...] = ()
    stops: tuple[StopPolicy, ...] = ()
    revisers: tuple[Reviser, ...] = ()
    speculator: Speculator | None = None
    constraint: Constraint | None = None

    @property
    def policies(self) -> Iterator[Policy]:
        yield from (self.blocks, self.selector, *self.transforms, *self.stops, *self.revisers, self.cache)
        if self.speculator is not None:
            yield self.speculator

    @property
    def name(self) -> str:
        """As ``parse_strategy`` reads it, without the values of parameters."""
        parts = [one for one in self.policies if one is not self.cache]
        return "+".join(one.name for one in parts) + f"/{self.cache.name}"

    @property
    def guarantee(self) -> Guarantee:
        """What the text is to that of ``defaults.reference_of`` it: the weakest promise of any part."""
        return min((one.guarantee for one in self.policies), key=_STRENGTH.index)

    def check(self, spec: DenoiserSpec) -> None:
        """Raises ConfigError, with the reason, for a combination that cannot work."""
        for policy in self.policies:
            if reason := policy.refuses(self, spec):
                raise ConfigError(f"{policy.name!r} cannot work in {self.name!r}: {reason}")
        if spec.noise == "uniform" and not (self.revisers and any(one.ends_open for one in self.stops)):
            raise ConfigError(
                f"{self.name!r} cannot write with uniform noise, where every position stays open: it needs a "
                "reviser and a stop policy that ends it, such as 'editable+fixed-point' or 'renoise+stable'"
            )

    def check_canvas(self, canvas: Canvas) -> None:
        """Raises ConfigError where a canvas does not suit, such as one that the blocks do not divide."""
        self.blocks.window(canvas)
        if self.cuts_the_end and canvas.first_open < canvas.last_given:
            names = ", ".join(one.name for one in self.stops if one.cuts_the_end)
            raise ConfigError(f"{names} cuts the end of a text, but here a gap has given text behind it")

    @property
    def cuts_the_end(self) -> bool:
        return any(one.cuts_the_end for one in self.stops)

    def constrained(self, constraint: Constraint | None) -> Strategy:
        """The same with a constraint."""
        return replace(self, constraint=constraint)
