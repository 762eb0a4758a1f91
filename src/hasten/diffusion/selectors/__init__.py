"""Selectors: which open positions are written after a forward pass."""

from __future__ import annotations

from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.static import Static
from hasten.diffusion.selectors.threshold import Threshold

__all__ = ["SELECTORS", "Static", "Threshold"]

SELECTORS: dict[str, type[Selector]] = {one.name: one for one in (Static, Threshold)}
