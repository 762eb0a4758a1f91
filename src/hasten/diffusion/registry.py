"""Every policy of the diffusion loop by name. A new one is entered in ``POLICIES``, and nowhere else."""

from __future__ import annotations

from typing import Any

from hasten.core import System
from hasten.diffusion.base import CachePolicy, Policy
from hasten.diffusion.blocks.adablock import AdaBlock
from hasten.diffusion.blocks.fixed import FixedBlocks
from hasten.diffusion.blocks.whole import Whole
from hasten.diffusion.caches.blocks import BlockCache
from hasten.diffusion.caches.dkv import DelayedCache
from hasten.diffusion.caches.dkv_greedy import GreedyCache
from hasten.diffusion.caches.dual import Dual
from hasten.diffusion.caches.freecache import FreeCache
from hasten.diffusion.caches.measured import Measured
from hasten.diffusion.caches.none import NoCache
from hasten.diffusion.caches.prefix import FrozenPrefix
from hasten.diffusion.caches.recap import Recap
from hasten.diffusion.caches.vicinity import Vicinity
from hasten.diffusion.revisers.edit import Edit
from hasten.diffusion.revisers.editable import Editable
from hasten.diffusion.revisers.remask import Remask
from hasten.diffusion.revisers.renoise import Renoise
from hasten.diffusion.selectors.auto import Auto
from hasten.diffusion.selectors.burst import Burst
from hasten.diffusion.selectors.ccd_ds import CcdDs
from hasten.diffusion.selectors.dream import Dream
from hasten.diffusion.selectors.entropy import Entropy
from hasten.diffusion.selectors.entropy_bound import EntropyBound
from hasten.diffusion.selectors.factor import Factor
from hasten.diffusion.selectors.guided import Guided
from hasten.diffusion.selectors.hierarchy import Hierarchy
from hasten.diffusion.selectors.joint import Joint
from hasten.diffusion.selectors.klass import Klass
from hasten.diffusion.selectors.learn2pd import Learn2PD
from hasten.diffusion.selectors.local_leap import LocalLeap
from hasten.diffusion.selectors.maskgit import MaskGit
from hasten.diffusion.selectors.static import Static
from hasten.diffusion.selectors.threshold import Threshold
from hasten.diffusion.selectors.unroll import Unroll
from hasten.diffusion.speculators.adjust import Adjust
from hasten.diffusion.speculators.freedave import FreeDave
from hasten.diffusion.speculators.speculative import Speculative
from hasten.diffusion.stops.eos import EndIsWritten
from hasten.diffusion.stops.eot import EndOfText
from hasten.diffusion.stops.fixed_point import FixedPoint
from hasten.diffusion.stops.limit import Limit
from hasten.diffusion.stops.prophet import Prophet
from hasten.diffusion.stops.stable import Stable
from hasten.diffusion.transforms.ccd_history import CcdHistory
from hasten.diffusion.transforms.cfg import Guidance
from hasten.diffusion.transforms.credit import Credit
from hasten.diffusion.transforms.no_eos import NoEos
from hasten.diffusion.transforms.temperature import Temperature
from hasten.diffusion.transforms.unseen import Unseen

POLICIES: tuple[type[Policy], ...] = (
    # which positions are written
    Static,
    Dream,
    MaskGit,
    Threshold,
    Factor,
    Entropy,
    EntropyBound,
    LocalLeap,
    Hierarchy,
    Klass,
    CcdDs,
    Learn2PD,
    Joint,
    Guided,
    Burst,
    Auto,
    Unroll,
    # which range is written next
    AdaBlock,
    Whole,
    FixedBlocks,
    # what changes a prediction
    CcdHistory,
    Guidance,
    Credit,
    Unseen,
    NoEos,
    Temperature,
    # when a text ends
    EndOfText,
    Prophet,
    EndIsWritten,
    FixedPoint,
    Limit,
    Stable,
    # what is taken back
    Edit,
    Editable,
    Remask,
    Renoise,
    # which rows are computed
    BlockCache,
    FrozenPrefix,
    Dual,
    DelayedCache,
    GreedyCache,
    FreeCache,
    Vicinity,
    Recap,
    NoCache,
    Measured,
    # what is predicted ahead
    FreeDave,
    Speculative,
    Adjust,
)


def named(kind: type[Any]) -> dict[str, type[Policy]]:
    """The policies of a kind, such as Selector, by name."""
    return {one.name: one for one in POLICIES if issubclass(one, kind)}


CACHES = named(CachePolicy)
"""what may stand behind the "/" of a strategy's text"""
PARTS = {one.name: one for one in POLICIES if not issubclass(one, CachePolicy)}
"""what may stand before it"""
SYSTEMS: tuple[System, ...] = tuple(system for one in POLICIES for system in one.systems)
"""the published methods among them, as `hasten systems` lists them"""
