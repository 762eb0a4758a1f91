"""What ``hasten info`` tells about a diffusion model."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hasten.diffusion.canvas import Denoiser
    from hasten.diffusion.engine import DiffusionModel

_LENGTHS = (32, 128, 512)
_RUNS = 5


def canvas_facts(name: str, model: DiffusionModel) -> dict[str, Any]:
    """JSON-ready: what the checkpoint is, and what a pass over a whole canvas costs here."""
    denoiser, module = model.denoiser, model.module
    parameter = next(module.parameters())
    lengths = [length for length in _LENGTHS if length <= (denoiser.max_length or length)]
    return {
        "model": name,
        "architecture": type(module).__name__,
        "parameters": sum(one.numel() for one in module.parameters()),
        "vocabulary": denoiser.vocab_size,
        "context": denoiser.max_length,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "spec": asdict(denoiser.spec),
        "cost_ms": {str(length): round(_pass_ms(denoiser, length), 4) for length in lengths},
    }


def _pass_ms(denoiser: Denoiser, length: int) -> float:
    """Median milliseconds of a pass over one canvas whose every position is wanted."""
    import numpy as np

    from hasten.diffusion.canvas import Query

    session = denoiser.open([length], keeps_rows=False)
    places = np.arange(length)
    query = Query(sequence=0, token_ids=places % denoiser.vocab_size, wanted=places)
    spent = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        session.forward([query])
        spent.append(1000 * (time.perf_counter() - start))
    return statistics.median(spent[1:])


def print_canvas_facts(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("model", facts["model"])
    table.add_row("architecture", f"{facts['architecture']}, {facts['parameters']:,} parameters, diffusion")
    table.add_row(
        "vocabulary", f"{facts['vocabulary']:,} tokens, canvas up to {facts['context'] or 'any length'}"
    )
    table.add_row("weights", f"{facts['dtype']} on {facts['device']}")
    table.add_row("spec", ", ".join(f"{key} {value}" for key, value in facts["spec"].items()))
    for length, spent in facts["cost_ms"].items():
        table.add_row(f"canvas of {length}", f"{spent:.2f} ms a pass")
    console.print(table)
