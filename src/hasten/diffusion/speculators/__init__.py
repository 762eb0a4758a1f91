"""Speculators: which canvases are predicted ahead, in the forward pass of the present one."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import Speculator
from hasten.diffusion.speculators import freedave, speculative
from hasten.diffusion.speculators.adjust import Adjust
from hasten.diffusion.speculators.freedave import FreeDave
from hasten.diffusion.speculators.speculative import Speculative

__all__ = ["SPECULATORS", "SYSTEMS", "Adjust", "FreeDave", "Speculative"]

SPECULATORS: dict[str, type[Speculator]] = {one.name: one for one in (Adjust, FreeDave, Speculative)}

SYSTEMS: tuple[System, ...] = (freedave.SYSTEM, speculative.SYSTEM)
