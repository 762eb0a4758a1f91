"""Transforms: what changes a prediction before anything is decided."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import Transform
from hasten.diffusion.transforms import ccd_history, cfg, credit, unseen
from hasten.diffusion.transforms.ccd_history import CcdHistory
from hasten.diffusion.transforms.cfg import Guidance
from hasten.diffusion.transforms.credit import Credit
from hasten.diffusion.transforms.no_eos import NoEos
from hasten.diffusion.transforms.temperature import Temperature
from hasten.diffusion.transforms.unseen import Unseen

__all__ = ["SYSTEMS", "TRANSFORMS", "CcdHistory", "Credit", "Guidance", "NoEos", "Temperature", "Unseen"]

TRANSFORMS: dict[str, type[Transform]] = {
    one.name: one for one in (CcdHistory, Guidance, Credit, NoEos, Temperature, Unseen)
}
SYSTEMS: tuple[System, ...] = (ccd_history.SYSTEM, cfg.SYSTEM, credit.SYSTEM, unseen.SYSTEM)
