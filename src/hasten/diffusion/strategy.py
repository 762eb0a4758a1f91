"""A strategy: one choice for each decision of the diffusion loop, and whether they go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hasten.constraints.base import Constraint
from hasten.core import Guarantee
from hasten.diffusion.base import (
    BlockPolicy,
    CachePolicy,
    Policy,
    Reviser,
    Selector,
    StopPolicy,
    Transform,
    Verifier,
)
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.caches.none import NoCache
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.selectors.static import Static
from hasten.errors import ConfigError

_STRENGTH: tuple[Guarantee, ...] = ("approximate", "distribution", "exact")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a canvas is written. The default is the reference: one token a forward, nothing cached."""

    blocks: BlockPolicy = field(default_factory=FixedBlocks)
    selector: Selector = field(default_factory=Static)
    transforms: tuple[Transform, ...] = ()
    stops: tuple[StopPolicy, ...] = ()
    revisers: tuple[Reviser, ...] = ()
    cache: CachePolicy = field(default_factory=NoCache)
    verifier: Verifier | None = None
    constraint: Constraint | None = None

    @property
    def policies(self) -> Iterator[Policy]:
        yield from (self.blocks, self.selector, *self.transforms, *self.stops, *self.revisers, self.cache)
        if self.verifier is not None:
            yield self.verifier

    @property
    def name(self) -> str:
        """As ``parse_strategy`` reads it, without the values of parameters."""
        parts = [one for one in self.policies if one is not self.cache]
        return "+".join(one.name for one in parts) + f"/{self.cache.name}"

    @property
    def guarantee(self) -> Guarantee:
        """What the text is to that of ``reference``: the weakest promise of any part."""
        return min((one.guarantee for one in self.policies), key=_STRENGTH.index)

    @property
    def reference(self) -> Strategy:
        """What this is measured against: same blocks, order and what else belongs to the question."""
        asked = tuple(one for one in self.transforms if one.guarantee == "exact")
        return Strategy(
            blocks=self.blocks if self.blocks.guarantee == "exact" else FixedBlocks(),
            selector=self.selector.reference,
            transforms=asked,
            constraint=self.constraint,
        )

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
