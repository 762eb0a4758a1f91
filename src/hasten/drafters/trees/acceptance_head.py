"""SpecDec++'s acceptance head (arXiv 2405.19715): from a draft's hidden state to the chance of its token.

A small residual network reads the last hidden state of the draft at a token that it drafted, and says how
likely the target accepts that token, given that it accepted all before. The blocks have weights of their own,
where the released code uses one block several times. Knows tensors and files; knows no models but by their
fingerprint, and not how it is trained.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hasten.errors import IncompatibleModels, StoreError
from hasten.files import write_whole

HEAD_FILE = "acceptance_head.safetensors"
"""Its name in the folder of its draft model."""

_FORMAT = "hasten-acceptance-1"


class AcceptanceHead(nn.Module):
    """Hidden states [..., hidden] to log-odds of acceptance [...]; untrained, its odds are even.

    Args:
        hidden_size: of the draft.
        num_blocks: residual blocks before the last layer.
    """

    def __init__(self, hidden_size: int, num_blocks: int = 3) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_blocks))
        self.last = nn.Linear(hidden_size, 2)  # rejected, accepted
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.last.weight)
        for block in self.blocks:
            hidden = hidden + nn.functional.silu(block(hidden))
        rejected, accepted = self.last(hidden).unbind(-1)
        found: Tensor = accepted - rejected
        return found

    @torch.no_grad()
    def chance(self, hidden: Tensor) -> float:
        """The chance that the token with this hidden state [hidden] is accepted."""
        return float(torch.sigmoid(self(hidden)))


def save_head(path: str | os.PathLike[str], head: AcceptanceHead, fingerprint: str) -> None:
    """Write a head of this draft. An older file is replaced only when the new one is complete.

    Raises StoreError if the place cannot be written.
    """
    notes = {"format": _FORMAT, "draft": fingerprint}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_whole(Path(path), lambda temporary: save_file(tensors, temporary, notes), "acceptance head")


def load_head(path: str | os.PathLike[str], fingerprint: str) -> AcceptanceHead:
    """The head of this draft.

    Raises:
        StoreError: no such file, or no acceptance head.
        IncompatibleModels: the head of another draft.
    """
    if not Path(path).is_file():
        raise StoreError(f"no acceptance head at {str(path)!r}; train one with `hasten train acceptance`")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as problem:
        raise StoreError(f"{str(path)!r} is not readable ({problem}); train the head anew") from problem
    if notes.get("format") != _FORMAT:
        raise StoreError(f"{str(path)!r} has format {notes.get('format')!r}, expected {_FORMAT!r}")
    if notes.get("draft") != fingerprint:
        raise IncompatibleModels(
            f"{str(path)!r} was trained for the draft {notes.get('draft')!r}, this one is {fingerprint!r}; "
            "train a head for it with `hasten train acceptance`"
        )
    try:
        head = AcceptanceHead(
            tensors["last.weight"].shape[1], sum(key.endswith(".weight") for key in tensors) - 1
        )
        head.load_state_dict(tensors)
    except (KeyError, RuntimeError, IndexError) as problem:
        raise StoreError(f"{str(path)!r} does not hold an acceptance head: {problem}") from problem
    return head.requires_grad_(False)
