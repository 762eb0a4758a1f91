"""How a draft model's guesses become a tree, one published shape a file."""

from __future__ import annotations

from hasten.drafters.trees.adaptive import Adaptive
from hasten.drafters.trees.dyspec import DySpec, DySpecThreshold
from hasten.drafters.trees.eagle import Eagle
from hasten.drafters.trees.multi_candidate import MultiCandidate
from hasten.drafters.trees.rsd import RsdBeams, RsdConstant
from hasten.drafters.trees.sequoia import Sequoia
from hasten.drafters.trees.specdec import SpecDec
from hasten.drafters.trees.spectr import SpecTr

__all__ = [
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
