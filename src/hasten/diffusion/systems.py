"""Every published method of the diffusion half, as `hasten systems` lists them."""

from __future__ import annotations

from hasten.diffusion import blocks, caches, revisers, selectors, speculators, stops, transforms

SYSTEMS = (
    *selectors.SYSTEMS,
    *blocks.SYSTEMS,
    *transforms.SYSTEMS,
    *stops.SYSTEMS,
    *revisers.SYSTEMS,
    *caches.SYSTEMS,
    *speculators.SYSTEMS,
)
