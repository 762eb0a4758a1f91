"""Judges of texts that no batch admitted: what drafters ask of the rule."""

from __future__ import annotations

from hasten.verify import Verifier, follow


def wanting(proposals="coupled", guarantee="exact"):
    """A judge that follows, and says that it wants these drafts and promises that."""
    return Verifier("test", follow, guarantee, proposals)
