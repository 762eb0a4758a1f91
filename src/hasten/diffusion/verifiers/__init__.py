"""Verifiers: which canvases are predicted ahead, in the forward pass of the present one."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import Verifier
from hasten.diffusion.verifiers import freedave, speculative
from hasten.diffusion.verifiers.adjust import Adjust
from hasten.diffusion.verifiers.freedave import FreeDave
from hasten.diffusion.verifiers.speculative import Speculative

__all__ = ["SYSTEMS", "VERIFIERS", "Adjust", "FreeDave", "Speculative"]

VERIFIERS: dict[str, type[Verifier]] = {one.name: one for one in (Adjust, FreeDave, Speculative)}

SYSTEMS: tuple[System, ...] = (freedave.SYSTEM, speculative.SYSTEM)
