"""Transforms."""

from __future__ import annotations

from hasten.diffusion.base import Transform

TRANSFORMS: dict[str, type[Transform]] = {}
