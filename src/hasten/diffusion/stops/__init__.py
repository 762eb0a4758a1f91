"""Stop policies: when a text ends before everything was written a block at a time."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import StopPolicy
from hasten.diffusion.stops import eot, prophet
from hasten.diffusion.stops.eos import EndIsWritten
from hasten.diffusion.stops.eot import EndOfText
from hasten.diffusion.stops.fixed_point import FixedPoint
from hasten.diffusion.stops.limit import Limit
from hasten.diffusion.stops.prophet import Prophet
from hasten.diffusion.stops.stable import Stable

__all__ = [
    "STOPS",
    "SYSTEMS",
    "EndIsWritten",
    "EndOfText",
    "FixedPoint",
    "Limit",
    "Prophet",
    "Stable",
]

STOPS: dict[str, type[StopPolicy]] = {
    one.name: one for one in (EndIsWritten, EndOfText, FixedPoint, Limit, Prophet, Stable)
}
SYSTEMS: tuple[System, ...] = (eot.SYSTEM, prophet.SYSTEM)
