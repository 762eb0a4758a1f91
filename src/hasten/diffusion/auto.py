"""The strategy "auto": as parallel as the bounds allow, and a cache only where its error was measured."""

from __future__ import annotations

from hasten.canvas import Canvas, Denoiser
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.strategy import Strategy


class Auto:
    """Chooses for one denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def strategy(self, canvas: Canvas, *, is_exact: bool) -> Strategy:
        """For one canvas. Exact: the text of the reference, in fewer forward passes."""
        spec = self._denoiser.spec
        cache = "blocks" if spec.attention == "block-causal" else "none"
        line = "static+freedave" if is_exact else "auto"
        return parse_strategy(f"{line}/{cache}", spec)
