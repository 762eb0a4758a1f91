"""Policies by name: how much of a draft is verified."""

from __future__ import annotations

from collections.abc import Callable

from hasten.core import System
from hasten.errors import ConfigError
from hasten.policies.base import MAX_DRAFT_TOKENS, DraftPolicy, FixedPolicy
from hasten.policies.bass import SYSTEM as BASS_SYSTEM, BassPolicy
from hasten.policies.cost import CostPolicy
from hasten.policies.ems import SYSTEM as EMS_SYSTEM, EmsPolicy
from hasten.policies.forward_cost import ForwardCost
from hasten.policies.prompt_rows import PromptPrices, telling_positions

POLICIES: dict[str, Callable[[ForwardCost], DraftPolicy]] = {
    "cost": CostPolicy,
    "ems": lambda cost: EmsPolicy(),
    "bass": lambda cost: BassPolicy(),
}
"""name -> constructor, given what passes of this model have cost so far"""

SYSTEMS: tuple[System, ...] = (EMS_SYSTEM, BASS_SYSTEM)


def check_policy(policy: str | DraftPolicy, num_draft_tokens: int | None) -> None:
    """Raises ConfigError for an unknown policy, or one that would compete with a fixed size."""
    is_known = policy in POLICIES if isinstance(policy, str) else hasattr(policy, "budget")
    if not is_known:
        raise ConfigError(
            f"policy={policy!r} is unknown; choose {', '.join(POLICIES)}, or give a DraftPolicy of your own"
        )
    if num_draft_tokens is not None and policy != "cost":
        raise ConfigError(
            f"num_draft_tokens={num_draft_tokens} fixes the size that policy={policy!r} would choose; "
            "give one of them"
        )


__all__ = [
    "MAX_DRAFT_TOKENS",
    "POLICIES",
    "SYSTEMS",
    "BassPolicy",
    "CostPolicy",
    "DraftPolicy",
    "EmsPolicy",
    "FixedPolicy",
    "ForwardCost",
    "PromptPrices",
    "check_policy",
    "telling_positions",
]
