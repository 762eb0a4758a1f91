"""The strategy "auto": as parallel as the bounds allow, and a cache only where its error was measured."""

from __future__ import annotations

from hasten.canvas import Canvas, Denoiser
from hasten.diffusion.blocks.fixed import DEFAULT_SIZE
from hasten.diffusion.parse import parse_strategy
from hasten.diffusion.strategy import Strategy


class Auto:
    """Chooses for one denoiser."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser

    def strategy(self, canvas: Canvas, *, is_exact: bool) -> Strategy:
        """For one canvas. Exact: the text of the reference, in fewer forward passes."""
        spec = self._denoiser.spec
        ends_open = canvas.last_given < canvas.first_open
        line = "static+freedave" if is_exact else "auto"
        if spec.noise == "uniform" and not is_exact:
            line = "renoise+temperature+stable"
        if spec.eos_ids and ends_open:
            line += "+eos"
        return parse_strategy(f"{line}/{self._cache(canvas, is_exact=is_exact)}", spec)

    def _cache(self, canvas: Canvas, *, is_exact: bool) -> str:
        attention = self._denoiser.spec.attention
        if attention != "full":
            return "blocks" if attention == "block-causal" else "none"
        is_long = canvas.num_open > DEFAULT_SIZE
        return "measured" if is_long and not is_exact else "none"
