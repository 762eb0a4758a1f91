"""What was trained for a denoiser: found, checked against it, and handed to the policies that use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from hasten.diffusion.canvas import Denoiser
from hasten.diffusion.confidence_filter import FILTER_FILE, ConfidenceFilter, load_filter
from hasten.diffusion.denoisers.joint_sampler import JointSampler
from hasten.diffusion.sampler_file import load_sampler
from hasten.errors import ModelError
from hasten.models.fingerprint import model_fingerprint
from hasten.models.loading import resolve_source


def denoiser_fingerprint(denoiser: Denoiser) -> str:
    """Identifies a denoiser's weights. Raises ModelError for one that runs no transformers model."""
    model = getattr(denoiser, "model", None)
    if model is None:
        raise ModelError(
            f"filters and samplers are trained for transformers models; {type(denoiser).__name__} runs none"
        )
    return model_fingerprint(model)


def find_filter(
    denoiser: Denoiser, name: str, file: Path | None
) -> ConfidenceFilter | Callable[[], ConfidenceFilter] | None:
    """The filter in a file, or what loads the one in the folder of the model of this name; None without one.

    Loading raises StoreError or IncompatibleModels for a file that cannot be used. What merely lies in the
    folder is not looked at before it is asked for.
    """
    if file is not None:
        return load_filter(file, denoiser_fingerprint(denoiser))
    beside = Path(resolve_source(name)) / FILTER_FILE
    if not beside.is_file():
        return None
    return functools.cache(lambda: load_filter(beside, denoiser_fingerprint(denoiser)))


def find_sampler(denoiser: Denoiser, file: Path | None) -> JointSampler | None:
    """The sampler in a file, None without one.

    Raises StoreError, IncompatibleModels or ModelError for one that cannot be used.
    """
    if file is None:
        return None
    fingerprint = denoiser_fingerprint(denoiser)
    return load_sampler(file, denoiser.model, denoiser.spec, fingerprint)
