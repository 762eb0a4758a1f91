"""Verification rules, one a file: which path of a draft tree is kept, and what that promises of the text.

Words: an *accepted* token was drafted and is what the target writes; a *recovered* token is the target's own
where the draft was wrong; a *bonus* token is the target's own after a whole path was right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hasten.compile_cache  # noqa: F401 - before what is compiled
from hasten.core import Acceptance, Guarantee, Judge, LogitRows, Proposals, Sequence, System
from hasten.errors import ConfigError
from hasten.tree import DraftTree
from hasten.verify.block import SYSTEM as BLOCK_SYSTEM, block
from hasten.verify.confident import confident
from hasten.verify.fastest import Fastest
from hasten.verify.follow import follow
from hasten.verify.k_sequential import SYSTEM as SPECTR_SYSTEM, k_sequential
from hasten.verify.naive import SYSTEM as MCSD_SYSTEM, naive
from hasten.verify.point_mass import point_mass
from hasten.verify.residual import SYSTEM as SPECINFER_SYSTEM, residual
from hasten.verify.tolerant import tolerant
from hasten.verify.traversal import SYSTEM as TRAVERSAL_SYSTEM, traversal
from hasten.verify.typical import SYSTEM as TYPICAL_SYSTEM, typical

Verify = Callable[[DraftTree, LogitRows, Sequence], Acceptance]


@dataclass(frozen=True, slots=True)
class Verifier:
    """A rule, its promise and the drafts it wants of a model.

    The promise is "exact" (plain decoding's text), "distribution" (its law) or "approximate".
    """

    name: str
    rule: Verify
    guarantee: Guarantee
    proposals: Proposals = "coupled"

    def judge(self, sequence: Sequence) -> Judge:
        """What judges the drafts of one text, asked for before its first draft; a rule keeps nothing."""
        return self

    def verify(self, tree: DraftTree, logits: LogitRows, sequence: Sequence) -> Acceptance:
        """See Judge."""
        return self.rule(tree, logits, sequence)

    def fork(self) -> Judge:
        """See Judge."""
        return self


class _Choosing(Verifier):
    """``fastest``, which keeps of each text what its rules gained there."""

    def judge(self, sequence: Sequence) -> Judge:
        return Fastest(sequence)


VERIFIERS: dict[str, Verifier] = {
    "follow": Verifier("follow", follow, "exact"),
    "fastest": _Choosing("fastest", follow, "distribution"),
    "residual": Verifier("residual", residual, "distribution", "distinct"),
    "confident": Verifier("confident", confident(), "approximate"),
    "tolerant": Verifier("tolerant", tolerant(), "approximate"),
    "residual-independent": Verifier("residual-independent", residual, "distribution", "independent"),
    "k-sequential": Verifier("k-sequential", k_sequential, "distribution", "independent"),
    "block": Verifier("block", block, "distribution", "distinct"),
    "traversal": Verifier("traversal", traversal, "distribution", "distinct"),
    "naive": Verifier("naive", naive, "distribution", "distinct"),
    "point-mass": Verifier("point-mass", point_mass, "distribution", "chosen"),
    "typical": Verifier("typical", typical(), "approximate", "chosen"),
}
"""Rules by name; all but "follow" are used only where a caller names them."""

SYSTEMS: tuple[System, ...] = (
    SPECINFER_SYSTEM,
    SPECTR_SYSTEM,
    BLOCK_SYSTEM,
    TRAVERSAL_SYSTEM,
    MCSD_SYSTEM,
    TYPICAL_SYSTEM,
)


def find_verifier(verify: str | Verifier) -> Verifier:
    """A rule by name, or itself. Raises ConfigError for an unknown name."""
    if isinstance(verify, Verifier):
        return verify
    if not isinstance(verify, str) or verify not in VERIFIERS:
        raise ConfigError(f"verify={verify!r} is unknown; choose {', '.join(VERIFIERS)}")
    return VERIFIERS[verify]


__all__ = [
    "SYSTEMS",
    "VERIFIERS",
    "Fastest",
    "Verifier",
    "Verify",
    "block",
    "confident",
    "find_verifier",
    "follow",
    "k_sequential",
    "naive",
    "point_mass",
    "residual",
    "tolerant",
    "traversal",
    "typical",
]
