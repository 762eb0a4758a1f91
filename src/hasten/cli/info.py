"""``hasten info`` and ``hasten systems``: what a model can do here, and what hasten can do."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hasten.cli import options

if TYPE_CHECKING:
    from hasten.bench.models import OpenModel

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

_MODES = {
    "tree": "drafts are token trees, verified in one pass",
    "chain": "drafts are single paths; rejected tokens are cut off the cache",
    "chain with snapshots": "drafts are single paths; rejected tokens are undone from a copy of the state",
    "off": "no drafts: a pass over several tokens gives other logits than one at a time",
    "recompute": "no cache: every step reads the whole text again",
}


def info(
    model: options.Model,
    *,
    as_json: AsJson = False,
    shape: options.Shape = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
) -> None:
    """What was found out about a model on this machine, and what was chosen why."""
    from hasten.bench.models import open_model, shape_sentence

    options.quiet_loading()
    opened = open_model(model, dtype=dtype, device=device, forward=forward, shape=shape)
    facts = _facts(opened)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(facts, shape_sentence(opened))


def systems(as_json: AsJson = False) -> None:
    """Every implemented method: its paper, its guarantee, its module."""
    from hasten import drafters, models, policies

    all_systems = (*drafters.SYSTEMS, *policies.SYSTEMS, *models.SYSTEMS)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(system) for system in all_systems], indent=2))
        return
    # Seven columns do not fit into a terminal; name and description do.
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for system in all_systems:
        paper = f"{system.title} (arXiv {system.arxiv})" if system.arxiv else system.title
        nature = f"{system.kind}, {system.guarantee}, {system.module}"
        table.add_row(system.name, f"{system.summary}\n{paper}\n{nature}")
    Console(highlight=False).print(table)


def _facts(opened: OpenModel) -> dict[str, Any]:
    target = opened.language_model.target
    probe = target.probe
    cost = target.measure_cost()
    return {
        "model": opened.name,
        "shape": opened.shape,
        "architecture": type(target.forward.model).__name__,
        "parameters": opened.num_parameters,
        "vocabulary": target.vocab_size,
        "context": target.max_length,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "weight_bytes": target.num_bytes(),
        "probe": {"mode": probe.mode, "noise": probe.noise, "rejected": probe.rejected},
        "forward": {"chosen": opened.forward, "reason": opened.reason},
        "cost_ms": {str(rows): round(spent, 4) for rows, spent in cost.items()},
        "cost_ratio": {str(rows): round(spent / cost[1], 4) for rows, spent in cost.items()},
    }


def _print_facts(facts: dict[str, Any], note: str) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    probe, forward = facts["probe"], facts["forward"]
    rows = {
        "model": facts["model"],
        "architecture": f"{facts['architecture']}, {facts['parameters']:,} parameters",
        "vocabulary": f"{facts['vocabulary']:,} tokens, context {facts['context'] or 'not stated'}",
        "weights": f"{facts['dtype']} on {facts['device']}, {facts['weight_bytes'] / 2**20:.1f} MiB",
        "probe": f"{probe['mode']}: {_MODES[probe['mode']]} (logits agree within {probe['noise']:.2g})",
        **{f"not {mode}": reason for mode, reason in probe["rejected"].items()},
        "forward": f"{forward['chosen']}: {forward['reason']}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    costs = Table(title="milliseconds of a pass", title_justify="left")
    for column in ("rows", "ms", "times one row"):
        costs.add_column(column, justify="right")
    for row_count, spent in facts["cost_ms"].items():
        costs.add_row(row_count, f"{spent:.2f}", f"{facts['cost_ratio'][row_count]:.2f}")
    console.print(costs)
    if note:
        console.print(note)
