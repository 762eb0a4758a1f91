"""The file of a joint sampler: its layer's weights, for one base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.denoisers.joint_sampler import JointSampler
from hasten.diffusion.helper_files import HelperKind, load_helper, save_helper
from hasten.errors import StoreError

_KIND = HelperKind("joint sampler", "hasten train joint", "hasten-joint-sampler-1")


def save_sampler(path: Path, sampler: JointSampler, fingerprint: str) -> None:
    """Write the sampler of the base model with this fingerprint. Raises StoreError."""
    save_helper(path, _KIND, sampler.state_dict(), {}, fingerprint)


def load_sampler(path: Path, base: Any, spec: DenoiserSpec, fingerprint: str) -> JointSampler:
    """The sampler of this transformers model, in its dtype and on its device.

    Raises:
        StoreError: no such file, or no sampler of this shape.
        IncompatibleModels: the sampler of another model.
        ModelError: a model whose shape cannot be read.
    """
    tensors, _ = load_helper(path, _KIND, fingerprint)
    sampler = JointSampler(base, spec)
    try:
        sampler.load_state_dict(tensors)
    except RuntimeError as problem:
        raise StoreError(f"{str(path)!r} does not hold a joint sampler: {problem}") from problem
    return sampler.requires_grad_(False)
