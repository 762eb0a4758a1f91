"""Every forward pass computes every row: the reference implementation of all caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core import Guarantee
from hasten.diffusion.base import CachePolicy
from hasten.diffusion.steps import Plan, Turn


@dataclass(frozen=True)
class NoCache(CachePolicy):
    """Nothing is kept between forward passes."""

    name: ClassVar[str] = "none"
    guarantee: ClassVar[Guarantee] = "exact"
    keeps_rows: ClassVar[bool] = False

    @property
    def is_constant_in_block(self) -> bool:
        return True

    def plan(self, turn: Turn, state: Any) -> Plan:
        return Plan()
