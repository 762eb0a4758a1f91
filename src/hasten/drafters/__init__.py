"""Drafters by name: one published system a file, and their union."""

from __future__ import annotations

import hasten.compile_cache  # noqa: F401 - before what is compiled
from hasten.drafters.base import Drafter, Observation, Resources
from hasten.drafters.combined import CombinedDrafter
from hasten.drafters.own import is_own, make_own
from hasten.drafters.plain import NoDrafter
from hasten.drafters.registry import DRAFT, DRAFTERS, SYSTEMS, draft_of
from hasten.errors import ConfigError

AUTO = ("stand", "logitspec", "suffix")
"""What "auto" combines."""


def parts_of(name: str, *, has_draft: bool) -> tuple[str, ...]:
    """The systems that a drafter's name stands for."""
    if name == "off":
        return ()
    if name == "auto":
        return (*AUTO, DRAFT) if has_draft else AUTO
    return tuple(name.split("+"))


def asks_draft(part: str) -> bool:
    """Whether a system, one of ``parts_of``, asks the draft model; of one's own, that is not known."""
    return part.startswith(DRAFT) and not is_own(part)


def make_drafter(name: str, given: Resources) -> Drafter:
    """A drafter by name: one of DRAFTERS, FILE.py:CLASS, several joined by "+", "auto", or "off".

    Raises ConfigError for an unknown name, or a drafter that needs what was not given.
    """
    if name == "off":
        return NoDrafter()
    parts = parts_of(name, has_draft=given.draft is not None)
    unknown = sorted({part for part in parts if not is_own(part)} - set(DRAFTERS))
    if unknown or len(set(parts)) < len(parts):
        raise ConfigError(
            f"drafter={name!r} is unknown; choose auto, off, {', '.join(sorted(DRAFTERS))}, FILE.py:CLASS "
            "for one of your own, or several with +"
        )
    # A model comes first: a union keeps the laws of what its first source sampled.
    ordered = sorted(parts, key=lambda part: not asks_draft(part))
    return CombinedDrafter(
        [make_own(part, given) if is_own(part) else DRAFTERS[part](given) for part in ordered], name
    )


__all__ = [
    "AUTO",
    "DRAFT",
    "DRAFTERS",
    "SYSTEMS",
    "CombinedDrafter",
    "Drafter",
    "NoDrafter",
    "Observation",
    "Resources",
    "asks_draft",
    "draft_of",
    "make_drafter",
    "parts_of",
]
