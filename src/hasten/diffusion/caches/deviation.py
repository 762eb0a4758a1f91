"""How far predictions are from those that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.diffusion.canvas import Prediction


@dataclass(slots=True)
class Deviation:
    """How far predictions with a cache are from those without."""

    num_predictions: int = 0
    """open positions, each in every forward pass"""
    num_others: int = 0
    """of those, where another token is the likeliest"""
    total_variation: float = 0.0
    """sum over them of the distance between the two laws, each from 0 to 1"""

    @property
    def disagreement(self) -> float:
        """The share of predictions whose likeliest token is another, from 0 to 1."""
        return self.num_others / max(1, self.num_predictions)

    @property
    def distance(self) -> float:
        """The mean total variation between the two laws, from 0 to 1."""
        return self.total_variation / max(1, self.num_predictions)

    def add(self, cached: Prediction, exact: Prediction) -> None:
        """Both of the same positions."""
        self.num_predictions += len(exact.positions)
        self.num_others += int((cached.token_ids != exact.token_ids).sum())
        self.total_variation += float((cached.probs - exact.probs).abs().sum()) / 2
