"""Learn2PD's filter (arXiv 2509.25188): which candidates of a block are final, from how sure the denoiser is.

Two linear layers read the confidences of all positions of a block, written ones included, and say of each
position how likely its candidate is the token that decoding one token a forward would end with. So it knows
patterns of confidence, and no tokens; it is tied to a size of block. Knows tensors and files, not how it is
trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.diffusion.helper_files import HelperKind, load_helper, save_helper
from hasten.errors import ConfigError, StoreError

FILTER_FILE = "confidence_filter.safetensors"
"""Its name in the folder of its model."""

_KIND = HelperKind("confidence filter", "hasten train filter", "hasten-confidence-filter-1")


class ConfidenceFilter(nn.Module):
    """Confidences [..., block_size] to log-odds [..., block_size] that the candidates are final.

    Raises ConfigError for a size below 1.
    """

    def __init__(self, block_size: int, hidden_size: int = 32) -> None:
        if min(block_size, hidden_size) < 1:
            raise ConfigError(
                f"block_size={block_size}, hidden_size={hidden_size} cannot work; give 1 or more"
            )
        super().__init__()
        self.block_size = block_size
        self.hidden_size = hidden_size
        self.first = nn.Linear(block_size, hidden_size)
        self.last = nn.Linear(hidden_size, block_size)

    def forward(self, confidences: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.first(confidences)))
        return found

    @torch.no_grad()
    def chances(self, confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [block_size]: how likely the candidate of each position is final."""
        logits = self(torch.from_numpy(confidences).to(self.first.weight))
        return np.asarray(torch.sigmoid(logits.double()).cpu().numpy())


def save_filter(path: Path, made: ConfidenceFilter, fingerprint: str) -> None:
    """Write the filter of the denoiser with this fingerprint. Raises StoreError."""
    notes = {"block_size": str(made.block_size), "hidden_size": str(made.hidden_size)}
    save_helper(path, _KIND, made.state_dict(), notes, fingerprint)


def load_filter(path: Path, fingerprint: str) -> ConfidenceFilter:
    """The filter of the denoiser with this fingerprint.

    Raises:
        StoreError: no such file, or no filter.
        IncompatibleModels: the filter of another denoiser.
    """
    tensors, notes = load_helper(path, _KIND, fingerprint)
    try:
        made = ConfidenceFilter(int(notes["block_size"]), int(notes["hidden_size"]))
        made.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, ConfigError) as problem:
        raise StoreError(f"{str(path)!r} does not hold a confidence filter: {problem}") from problem
    return made.requires_grad_(False)
