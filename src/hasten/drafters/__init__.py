"""Drafters by name: one published system a file, and their union."""

from __future__ import annotations

from collections.abc import Callable

from hasten.core import System
from hasten.drafters.aded import SYSTEM as ADED_SYSTEM, Aded
from hasten.drafters.aggressive import GAD_SYSTEM, SYSTEM as IAD_SYSTEM, AggressiveDecoding
from hasten.drafters.base import Drafter, Observation, Resources
from hasten.drafters.combined import CombinedDrafter
from hasten.drafters.copying import (
    COPYSPEC_SYSTEM,
    LLMA_SYSTEM,
    PROMPT_LOOKUP_SYSTEM,
    CopySpec,
    Llma,
    PromptLookup,
)
from hasten.drafters.corpus_index import CorpusIndex
from hasten.drafters.jacobi import SYSTEM as JACOBI_SYSTEM, Jacobi
from hasten.drafters.lookahead import SYSTEM as LOOKAHEAD_SYSTEM, Lookahead
from hasten.drafters.mask_tokens import LUD_SYSTEM, SPACE_SYSTEM, MaskTokens, default_mask_token
from hasten.drafters.plain import NoDrafter
from hasten.drafters.rasd import SYSTEM as RASD_SYSTEM, Rasd
from hasten.drafters.rest import SYSTEM as REST_SYSTEM, Rest
from hasten.drafters.suffix import SAM_SYSTEM, SUFFIX_SYSTEM, SuffixDrafter
from hasten.drafters.superposed import SYSTEM as SUPERPOSED_SYSTEM, Superposed
from hasten.drafters.token_recycling import SYSTEM as TOKEN_RECYCLING_SYSTEM, TokenRecycling
from hasten.drafters.tokenswift import SYSTEM as TOKENSWIFT_SYSTEM, TokenSwift
from hasten.errors import ConfigError


def _index_of(given: Resources) -> CorpusIndex:
    if given.index is None:
        raise ConfigError(
            "rest needs a corpus index: make one with `hasten index FILES -o STORE` and give index=STORE / "
            "--index STORE"
        )
    return given.index


DRAFTERS: dict[str, Callable[[Resources], Drafter]] = {
    "token-recycling": lambda given: TokenRecycling(given.vocab_size),
    "token-recycling-template": lambda given: TokenRecycling(given.vocab_size, template=True),
    "aded": lambda given: Aded(),
    "suffix": lambda given: SuffixDrafter(),
    "prompt-lookup": lambda given: PromptLookup(),
    "copyspec": lambda given: CopySpec(),
    "aggressive": lambda given: AggressiveDecoding(),
    "llma": lambda given: Llma(),
    "lookahead": lambda given: Lookahead(),
    "rest": lambda given: Rest(_index_of(given)),
    "rasd": lambda given: Rasd(given.index, TokenRecycling(given.vocab_size)),
    "space": lambda given: MaskTokens("space", mask_token_id=default_mask_token(given.target)),
    "lud": lambda given: MaskTokens(
        "lud", num_groups=1, width=1, mask_token_id=default_mask_token(given.target)
    ),
    "jacobi": lambda given: Jacobi(),
    "tokenswift": lambda given: TokenSwift(given.target),
    "superposed": lambda given: Superposed(given.target),
}
"""name -> constructor, given what a drafter may be built from"""

AUTO = ("token-recycling", "aded", "suffix")
"""What "auto" combines."""

SYSTEMS: tuple[System, ...] = (
    TOKEN_RECYCLING_SYSTEM,
    ADED_SYSTEM,
    SUFFIX_SYSTEM,
    SAM_SYSTEM,
    PROMPT_LOOKUP_SYSTEM,
    COPYSPEC_SYSTEM,
    LLMA_SYSTEM,
    LOOKAHEAD_SYSTEM,
    REST_SYSTEM,
    RASD_SYSTEM,
    IAD_SYSTEM,
    GAD_SYSTEM,
    SPACE_SYSTEM,
    LUD_SYSTEM,
    JACOBI_SYSTEM,
    TOKENSWIFT_SYSTEM,
    SUPERPOSED_SYSTEM,
)


def make_drafter(name: str, given: Resources) -> Drafter:
    """A drafter by name: one of DRAFTERS, several joined by "+", "auto", or "off".

    Raises ConfigError for an unknown name, or a drafter that needs what was not given.
    """
    if name == "off":
        return NoDrafter()
    parts = AUTO if name == "auto" else tuple(name.split("+"))
    unknown = sorted(set(parts) - set(DRAFTERS))
    if unknown or len(set(parts)) < len(parts):
        raise ConfigError(
            f"drafter={name!r} is unknown; choose auto, off, {', '.join(sorted(DRAFTERS))}, or several with +"
        )
    return CombinedDrafter([DRAFTERS[part](given) for part in parts], name)


__all__ = [
    "AUTO",
    "DRAFTERS",
    "SYSTEMS",
    "CombinedDrafter",
    "Drafter",
    "NoDrafter",
    "Observation",
    "Resources",
    "make_drafter",
]
