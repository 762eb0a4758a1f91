"""Cache policies: which rows a forward pass computes, and which it reads as they were."""

from __future__ import annotations

from hasten.diffusion.base import CachePolicy
from hasten.diffusion.caches.none import NoCache

__all__ = ["CACHES", "NoCache"]

CACHES: dict[str, type[CachePolicy]] = {one.name: one for one in (NoCache,)}
