"""Verification rules, one a file: which path of a draft tree is kept, and what that promises of the text.

Words: an *accepted* token was drafted and is what the target writes; a *recovered* token is the target's own
where the draft was wrong; a *bonus* token is the target's own after a whole path was right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hasten.core import Acceptance, Guarantee, Sequence
from hasten.errors import ConfigError
from hasten.tree import DraftTree
from hasten.verify.confident import confident
from hasten.verify.follow import follow
from hasten.verify.residual import residual
from hasten.verify.tolerant import tolerant

Verify = Callable[[DraftTree, torch.Tensor, Sequence], Acceptance]


@dataclass(frozen=True, slots=True)
class Verifier:
    """A rule and its promise: "exact" (plain decoding's text), "distribution" (its law) or "approximate"."""

    name: str
    rule: Verify
    guarantee: Guarantee


VERIFIERS: dict[str, Verifier] = {
    "follow": Verifier("follow", follow, "exact"),
    "residual": Verifier("residual", residual, "distribution"),
    "confident": Verifier("confident", confident(), "approximate"),
    "tolerant": Verifier("tolerant", tolerant(), "approximate"),
}
"""Rules by name; all but "follow" are used only where a caller names them."""


def find_verifier(verify: str | Verifier) -> Verifier:
    """A rule by name, or itself. Raises ConfigError for an unknown name."""
    if isinstance(verify, Verifier):
        return verify
    if verify not in VERIFIERS:
        raise ConfigError(f"verify={verify!r} is unknown; choose {', '.join(VERIFIERS)}")
    return VERIFIERS[verify]


__all__ = ["VERIFIERS", "Verifier", "Verify", "confident", "find_verifier", "follow", "residual", "tolerant"]
