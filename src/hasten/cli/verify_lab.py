"""``hasten verify-lab``: what each verification rule accepts for a target and a draft model."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hasten.cli import options
from hasten.core import SamplingParams

if TYPE_CHECKING:
    from hasten.bench.verify_lab import Lab


def verify_lab(
    model: options.Model,
    *,
    draft: Annotated[str, typer.Option(metavar="MODEL", help="The draft model.")],
    prompts: Annotated[str, typer.Option(help="A .jsonl of prompts as for bench, or demo.")] = "demo",
    limit: Annotated[int, typer.Option(help="So many prompts of it.")] = 4,
    k: Annotated[list[int] | None, typer.Option(help="Candidates below a node. Repeatable.")] = None,
    positions: Annotated[int, typer.Option(help="Compare the laws at so many positions at most.")] = 32,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """How often each rule accepts one of k candidates of the draft, and how often any exact rule could."""
    import hasten
    from hasten.bench.prompts import load_prompt_set
    from hasten.bench.verify_lab import measure

    options.quiet_loading()
    choice = options.DraftChoice(draft, draft_device, draft_vocab)
    language_model = hasten.load(model, dtype=dtype, device=device, **choice.arguments())
    conversations = load_prompt_set(prompts, language_model.target.vocab_size).conversations[:limit]
    texts = [list(each.token_ids) or each.turns[0] for each in conversations]
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    lab = measure(language_model, texts, params, k or [1, 2, 4, 8], positions)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(lab)))
    else:
        _print(lab, f"{model} with {draft}, temperature {temperature:g}")


def _print(lab: Lab, title: str) -> None:
    widths = list(next(iter(lab.acceptances.values())))
    table = Table(title=title, caption=f"{lab.num_positions} positions; top-1 agreement {lab.agreement:.2f}")
    table.add_column("rule")
    for width in widths:
        table.add_column(f"k={width}", justify="right")
    for rule, by_width in lab.acceptances.items():
        table.add_row(rule, *(f"{by_width[width]:.3f}" for width in widths))
    Console(highlight=False).print(table)
