"""The policies "auto" and "exact", which look at the denoiser and the canvas."""

from __future__ import annotations

from hasten.diffusion.base import Strategy
from hasten.diffusion.blocks.fixed import DEFAULT_SIZE
from hasten.diffusion.canvas import Canvas, DenoiserSpec
from hasten.diffusion.parse import parse_strategy


def auto_strategy(spec: DenoiserSpec, canvas: Canvas) -> Strategy:
    """As parallel as the bounds allow, and a cache only where its error is measured."""
    line = "renoise+temperature+stable" if spec.noise == "uniform" else "auto"
    is_long = canvas.num_open > DEFAULT_SIZE
    cache = "measured" if spec.attention == "full" and is_long else _exact_cache(spec)
    return parse_strategy(f"{line}{_stop(spec, canvas)}/{cache}", spec)


def exact_strategy(spec: DenoiserSpec, canvas: Canvas) -> Strategy:
    """The text of the reference, in fewer forward passes. Raises ConfigError for uniform noise."""
    return parse_strategy(f"static+freedave{_stop(spec, canvas)}/{_exact_cache(spec)}", spec)


def _stop(spec: DenoiserSpec, canvas: Canvas) -> str:
    """Nothing is written behind an end of text, where the end of the canvas is open."""
    return "+eos" if spec.eos_ids and canvas.last_given < canvas.first_open else ""


def _exact_cache(spec: DenoiserSpec) -> str:
    return "blocks" if spec.attention == "block-causal" else "none"
