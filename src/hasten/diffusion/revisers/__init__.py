"""Revisers."""

from __future__ import annotations

from hasten.diffusion.base import Reviser

REVISERS: dict[str, type[Reviser]] = {}
