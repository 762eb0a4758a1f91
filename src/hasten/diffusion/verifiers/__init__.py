"""Verifiers: which canvases are predicted ahead, in the forward pass of the present one."""

from __future__ import annotations

from hasten.diffusion.base import Verifier
from hasten.diffusion.verifiers.freedave import FreeDave

__all__ = ["VERIFIERS", "FreeDave"]

VERIFIERS: dict[str, type[Verifier]] = {one.name: one for one in (FreeDave,)}
