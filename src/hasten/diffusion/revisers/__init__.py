"""Revisers: what is taken back or replaced after a commit."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import Reviser
from hasten.diffusion.revisers import edit, editable, remask
from hasten.diffusion.revisers.edit import Edit
from hasten.diffusion.revisers.editable import Editable
from hasten.diffusion.revisers.remask import Remask
from hasten.diffusion.revisers.renoise import Renoise

__all__ = ["REVISERS", "SYSTEMS", "Edit", "Editable", "Remask", "Renoise"]

REVISERS: dict[str, type[Reviser]] = {one.name: one for one in (Edit, Editable, Remask, Renoise)}
SYSTEMS: tuple[System, ...] = (edit.SYSTEM, *editable.SYSTEMS, remask.SYSTEM)
