"""What a cache costs in accuracy is measured along the reference's text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffusion.models import BLOCK_CAUSAL, FULL, MASK, build_blind, build_denoiser
from hasten.diffusion.cache_error import measure_error
from hasten.diffusion.caches.deviation import Deviation
from hasten.diffusion.caches.vicinity import Vicinity
from hasten.diffusion.canvas import Canvas
from hasten.diffusion.denoisers.masked_lm import MaskedLM
from hasten.diffusion.parse import parse_strategy

PROMPT = (5, 9, 17, 33, 8)


def error_of(denoiser: MaskedLM, text: str, length: int = 12, num_passes: int | None = None) -> Deviation:
    canvas = Canvas.after(PROMPT, np.full(length, MASK))
    before = canvas.key
    found = measure_error(denoiser, canvas, parse_strategy(text, denoiser.spec), num_passes)
    assert canvas.key == before
    return found


def test_an_exact_cache_has_no_error() -> None:
    for text, spec in [
        ("static/none", FULL),
        ("static+blocks:6/dkv:1", FULL),
        ("threshold/blocks", BLOCK_CAUSAL),
    ]:
        found = error_of(build_denoiser(spec=spec), text)
        assert found.disagreement == 0
        assert found.distance < 1e-9
        assert found.num_predictions > 12
    assert error_of(build_blind(), "static+whole/dual").distance < 1e-9


def test_one_commit_is_enough_to_see_the_error_of_a_dual_cache() -> None:
    denoiser = build_denoiser()
    assert error_of(denoiser, "static+whole/dual", num_passes=1).distance < 1e-12
    found = error_of(denoiser, "static+whole/dual", num_passes=2)
    assert found.distance > 1e-3
    assert found.num_predictions == 12 + 11
    whole = error_of(denoiser, "static+whole/dual")
    assert 0 < whole.disagreement < 1
    assert whole.num_predictions == 12 * 13 / 2
    assert error_of(denoiser, "static+whole/dual").total_variation == whole.total_variation


def test_computing_all_rows_more_often_makes_the_error_smaller() -> None:
    """On the mean of several random models."""
    distances = []
    for cache in ("dual:1", "dual:2", "dual:4", "dual"):
        errors = [error_of(build_denoiser(seed=seed), f"static+whole/{cache}", length=8) for seed in (1, 3)]
        distances.append(sum(error.distance for error in errors))
    assert distances[0] < 1e-9
    assert distances == sorted(distances)
    assert distances[3] > 2 * distances[1]


def test_the_wider_the_vicinity_the_nearer_it_is_to_no_cache() -> None:
    denoiser = build_denoiser()
    strategy = parse_strategy("static+blocks:2/none", FULL)
    errors = []
    for radius in (0, 4, 20):
        canvas = Canvas.after(PROMPT, np.full(12, MASK))
        cache = Vicinity(radius, warm_up=0)
        errors.append(measure_error(denoiser, canvas, replace(strategy, cache=cache)).distance)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9
