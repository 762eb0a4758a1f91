"""How a draft model's guesses become a tree, one published shape a file."""

from __future__ import annotations

from hasten.core import System
from hasten.drafters.trees.adaptive import Adaptive
from hasten.drafters.trees.dyspec import HEAP_SYSTEM, THRESHOLD_SYSTEM, DySpec, DySpecThreshold
from hasten.drafters.trees.eagle import SYSTEM as EAGLE_SYSTEM, Eagle
from hasten.drafters.trees.multi_candidate import SYSTEM as MULTI_CANDIDATE_SYSTEM, MultiCandidate
from hasten.drafters.trees.rsd import BEAM_SYSTEM, CONSTANT_SYSTEM, RsdBeams, RsdConstant
from hasten.drafters.trees.sequoia import SYSTEM as SEQUOIA_SYSTEM, Sequoia
from hasten.drafters.trees.specdec import SYSTEM as SPECDEC_SYSTEM, SpecDec
from hasten.drafters.trees.spectr import SYSTEM as SPECTR_SYSTEM, SpecTr

SYSTEMS: tuple[System, ...] = (
    MULTI_CANDIDATE_SYSTEM,
    SPECTR_SYSTEM,
    CONSTANT_SYSTEM,
    BEAM_SYSTEM,
    HEAP_SYSTEM,
    THRESHOLD_SYSTEM,
    SEQUOIA_SYSTEM,
    EAGLE_SYSTEM,
    SPECDEC_SYSTEM,
)

__all__ = [
    "SYSTEMS",
    "Adaptive",
    "DySpec",
    "DySpecThreshold",
    "Eagle",
    "MultiCandidate",
    "RsdBeams",
    "RsdConstant",
    "Sequoia",
    "SpecDec",
    "SpecTr",
]
