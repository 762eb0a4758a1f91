"""Drafters by name: one published system a file, and their union."""

from __future__ import annotations

from collections.abc import Callable

from hasten.core import System
from hasten.drafters.aded import SYSTEM as ADED_SYSTEM, Aded
from hasten.drafters.base import Drafter, Observation
from hasten.drafters.combined import CombinedDrafter
from hasten.drafters.copying import COPYSPEC_SYSTEM, PROMPT_LOOKUP_SYSTEM, CopySpec, PromptLookup
from hasten.drafters.plain import NoDrafter
from hasten.drafters.suffix import SAM_SYSTEM, SUFFIX_SYSTEM, SuffixDrafter
from hasten.drafters.token_recycling import SYSTEM as TOKEN_RECYCLING_SYSTEM, TokenRecycling
from hasten.errors import ConfigError

DRAFTERS: dict[str, Callable[[int], Drafter]] = {
    "token-recycling": TokenRecycling,
    "token-recycling-template": lambda vocab_size: TokenRecycling(vocab_size, template=True),
    "aded": lambda vocab_size: Aded(),
    "suffix": lambda vocab_size: SuffixDrafter(),
    "prompt-lookup": lambda vocab_size: PromptLookup(),
    "copyspec": lambda vocab_size: CopySpec(),
}
"""name -> constructor, given the size of the vocabulary"""

AUTO = ("token-recycling", "aded", "suffix")
"""What "auto" combines."""

SYSTEMS: tuple[System, ...] = (
    TOKEN_RECYCLING_SYSTEM,
    ADED_SYSTEM,
    SUFFIX_SYSTEM,
    SAM_SYSTEM,
    PROMPT_LOOKUP_SYSTEM,
    COPYSPEC_SYSTEM,
)


def make_drafter(name: str, vocab_size: int) -> Drafter:
    """A drafter by name: one of DRAFTERS, several joined by "+", "auto", or "off".

    Raises ConfigError for an unknown name.
    """
    if name == "off":
        return NoDrafter()
    parts = AUTO if name == "auto" else tuple(name.split("+"))
    unknown = sorted(set(parts) - set(DRAFTERS))
    if unknown or len(set(parts)) < len(parts):
        raise ConfigError(
            f"drafter={name!r} is unknown; choose auto, off, {', '.join(sorted(DRAFTERS))}, or several with +"
        )
    return CombinedDrafter([DRAFTERS[part](vocab_size) for part in parts], name)


__all__ = [
    "AUTO",
    "DRAFTERS",
    "SYSTEMS",
    "CombinedDrafter",
    "Drafter",
    "NoDrafter",
    "Observation",
    "make_drafter",
]
