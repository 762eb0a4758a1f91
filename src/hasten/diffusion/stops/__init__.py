"""Stops."""

from __future__ import annotations

from hasten.diffusion.base import StopPolicy

STOPS: dict[str, type[StopPolicy]] = {}
