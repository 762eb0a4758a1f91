"""Selectors: which open positions are written after a forward pass."""

from __future__ import annotations

from hasten.core import System
from hasten.diffusion.base import Selector
from hasten.diffusion.selectors.auto import Auto
from hasten.diffusion.selectors.burst import SYSTEM as BURST_SYSTEM, Burst
from hasten.diffusion.selectors.ccd_ds import SYSTEM as CCD_DS_SYSTEM, CcdDs
from hasten.diffusion.selectors.dream import SYSTEM as DREAM_SYSTEM, Dream
from hasten.diffusion.selectors.entropy import SYSTEM as ENTROPY_SYSTEM, Entropy
from hasten.diffusion.selectors.entropy_bound import SYSTEM as ENTROPY_BOUND_SYSTEM, EntropyBound
from hasten.diffusion.selectors.factor import SYSTEM as FACTOR_SYSTEM, Factor
from hasten.diffusion.selectors.guided import SYSTEM as GUIDED_SYSTEM, Guided
from hasten.diffusion.selectors.hierarchy import SYSTEM as HIERARCHY_SYSTEM, Hierarchy
from hasten.diffusion.selectors.joint import SYSTEM as JOINT_SYSTEM, Joint
from hasten.diffusion.selectors.klass import SYSTEM as KLASS_SYSTEM, Klass
from hasten.diffusion.selectors.learn2pd import SYSTEM as LEARN2PD_SYSTEM, Learn2PD
from hasten.diffusion.selectors.local_leap import SYSTEM as LOCAL_LEAP_SYSTEM, LocalLeap
from hasten.diffusion.selectors.maskgit import SYSTEM as MASKGIT_SYSTEM, MaskGit
from hasten.diffusion.selectors.static import SYSTEM as STATIC_SYSTEM, Static
from hasten.diffusion.selectors.threshold import SYSTEM as THRESHOLD_SYSTEM, Threshold
from hasten.diffusion.selectors.unroll import Unroll

__all__ = [
    "SELECTORS",
    "SYSTEMS",
    "Auto",
    "Burst",
    "CcdDs",
    "Dream",
    "Entropy",
    "EntropyBound",
    "Factor",
    "Guided",
    "Hierarchy",
    "Joint",
    "Klass",
    "Learn2PD",
    "LocalLeap",
    "MaskGit",
    "Static",
    "Threshold",
    "Unroll",
]

SELECTORS: dict[str, type[Selector]] = {
    one.name: one
    for one in (
        Auto,
        Burst,
        CcdDs,
        Dream,
        Entropy,
        EntropyBound,
        Factor,
        Guided,
        Hierarchy,
        Joint,
        Klass,
        Learn2PD,
        LocalLeap,
        MaskGit,
        Static,
        Threshold,
        Unroll,
    )
}

SYSTEMS: tuple[System, ...] = (
    STATIC_SYSTEM,
    DREAM_SYSTEM,
    MASKGIT_SYSTEM,
    THRESHOLD_SYSTEM,
    FACTOR_SYSTEM,
    ENTROPY_SYSTEM,
    ENTROPY_BOUND_SYSTEM,
    LOCAL_LEAP_SYSTEM,
    HIERARCHY_SYSTEM,
    KLASS_SYSTEM,
    CCD_DS_SYSTEM,
    LEARN2PD_SYSTEM,
    JOINT_SYSTEM,
    GUIDED_SYSTEM,
    BURST_SYSTEM,
)
"""The published methods that choose what is written."""
