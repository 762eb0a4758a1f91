"""``hasten info`` and ``hasten systems``: what a model can do here, and what hasten can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hasten.cli import options
from hasten.cli.console import print_json
from hasten.cli.info_canvases import canvas_facts, print_canvas_facts
from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.bench.models import OpenModel
    from hasten.models.draft.draft_lm import DraftLM

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

_MODES = {
    "tree": "drafts are token trees, verified in one pass",
    "chain": "drafts are single paths; rejected tokens are cut off the cache",
    "chain with snapshots": "drafts are single paths; rejected tokens are undone from a copy of the state",
    "off": "no drafts: a pass over several tokens gives other logits than one at a time",
    "recompute": "no cache: every step reads the whole text again",
}


LLAMA_CPP = "llama.cpp"
_SECONDS = 10.0
"""for the passes of one forward; large models get fewer of them, and fewer sizes"""
_ONLY_AUTOREGRESSIVE = {"shape", "forward", "draft", "draft_device", "draft_vocab"}


def info(
    context: typer.Context,
    model: options.Model,
    *,
    as_json: AsJson = False,
    shape: options.Shape = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
    draft: options.Draft = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
    spec: options.Spec = None,
    quick: Annotated[bool, typer.Option(help="What is known without running the model.")] = False,
) -> None:
    """What was found out about a model on this machine, and what was chosen why.

    Facts are shown first; then passes are measured, for at most some seconds each way of running them.
    """
    from hasten.bench.models import open_model, shape_sentence
    from hasten.models.checkpoints import is_denoiser

    options.quiet_loading()
    if is_denoiser(model, spec):
        from hasten.diffusion.engine import load_diffusion

        options.require_default(context, _ONLY_AUTOREGRESSIVE, "is for autoregressive models", model)
        found = canvas_facts(model, load_diffusion(model, dtype=dtype, device=device, spec=spec))
        print_json(found, indent=2) if as_json else print_canvas_facts(found)
        return
    choice = options.DraftChoice(draft, draft_device, draft_vocab)
    say = _silent if as_json else _say
    say(f"loading {model}" + ("" if quick else ", and trying how it runs best"))
    asked = "stock" if quick and forward == "auto" else forward
    opened = open_model(model, dtype=dtype, device=device, forward=asked, shape=shape, **choice.arguments())
    facts = _facts(opened, quick=quick)
    if not as_json:
        _print_facts(facts, shape_sentence(opened))
    if not quick:
        _measure(facts, opened, say)
        if forward == "auto" and opened.forward != LLAMA_CPP:
            loading = {"dtype": facts["dtype"], "device": facts["device"], "shape": shape}
            facts["forwards"] |= _other_forwards(model, opened.forward, loading, say)
    if as_json:
        print_json(facts, indent=2)
    elif not quick:
        _print_costs(facts)


def systems(as_json: AsJson = False) -> None:
    """Every implemented method: its paper, its guarantee, its module, and the name to ask for it by."""
    from hasten import constraints, drafters, models, policies, verify
    from hasten.diffusion.registry import POLICIES, SYSTEMS as DIFFUSION
    from hasten.drafters.registry import ENTRIES

    autoregressive = (*drafters.SYSTEMS, *policies.SYSTEMS, *models.SYSTEMS, *verify.SYSTEMS)
    all_systems = (*autoregressive, *DIFFUSION, *constraints.SYSTEMS)
    asked_as = {system.name: one.name for one in ENTRIES for system in one.systems}
    asked_as |= {system.name: one.name for one in POLICIES for system in one.systems}
    if as_json:
        rows = [dataclasses.asdict(one) | {"asked_as": asked_as.get(one.name)} for one in all_systems]
        print_json(rows, indent=2)
        return
    # Seven columns do not fit into a terminal; name and description do.
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for system in all_systems:
        paper = f"{system.title} (arXiv {system.arxiv})" if system.arxiv else system.title
        nature = f"{system.kind}, {system.guarantee}, {system.module}"
        if system.name in asked_as:
            nature = f"{asked_as[system.name]!r}: {nature}"
        table.add_row(system.name, f"{system.summary}\n{paper}\n{nature}")
    Console(highlight=False).print(table)


def _say(what: str) -> None:
    typer.secho(f"{what} ...", err=True, dim=True)


def _silent(what: str) -> None:
    """For programs, which read the result alone."""


def _facts(opened: OpenModel, *, quick: bool) -> dict[str, Any]:
    target = opened.language_model.target
    probe = None if quick else target.probe
    return {
        "model": opened.name,
        "shape": opened.shape,
        "architecture": target.architecture,
        "parameters": opened.num_parameters,
        "vocabulary": target.vocab_size,
        "context": target.max_length,
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "weight_bytes": target.num_bytes(),
        "probe": probe and {"mode": probe.mode, "noise": probe.noise, "rejected": probe.rejected},
        "forward": None
        if quick
        else {
            "chosen": opened.forward,
            "reason": opened.reason,
            "startup_seconds": round(opened.startup_seconds, 3),
        },
        "draft": _draft_facts(opened.language_model.resources.draft, quick=quick),
    }


def _measure(facts: dict[str, Any], opened: OpenModel, say: Callable[[str], None]) -> None:
    """Adds what passes cost."""
    from hasten.bench.memory_limit import measure_limit

    say(f"measuring passes of the {opened.forward} forward")
    cost = opened.language_model.target.measure_cost(seconds=_SECONDS)
    say("measuring the memory")
    facts |= {
        "cost_ms": _rounded(cost),
        "forwards": {opened.forward: {"cost_ms": _rounded(cost)}},
        "cost_ratio": {str(rows): round(spent / cost[1], 4) for rows, spent in cost.items()},
        "memory_limit": measure_limit(opened, cost=cost).as_json(),
    }


def _other_forwards(
    model: str, chosen: str, loading: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The passes of the forwards that were not chosen, or why they cannot run this model."""
    from hasten.bench.models import open_model
    from hasten.models.forwards.choose import FORWARDS

    found: dict[str, Any] = {}
    for name in FORWARDS:
        if name in ("auto", chosen):
            continue
        say(f"measuring passes of the {name} forward")
        try:
            opened = open_model(model, forward=name, **loading)
        except ConfigError as problem:
            found[name] = {"refused": str(problem)}
            continue
        cost = opened.language_model.target.measure_cost(seconds=_SECONDS)
        found[name] = {"cost_ms": _rounded(cost)}
    return found


def _rounded(cost: dict[int, float]) -> dict[str, float]:
    return {str(rows): round(spent, 4) for rows, spent in cost.items()}


def _draft_facts(draft: DraftLM | None, *, quick: bool) -> dict[str, Any] | None:
    if draft is None:
        return None
    exits = () if quick else draft.exits
    passes = {number: draft.at_exit(number).model.measure_cost(rows=(1,)) for number in exits}
    return {
        "model": draft.name,
        "same_tokenizer": draft.vocabulary.is_same,
        "shared_tokens": draft.vocabulary.num_shared,
        "proposable_tokens": draft.num_proposable,
        "dtype": str(draft.model.dtype).removeprefix("torch."),
        "device": str(draft.model.device),
        "weight_bytes": draft.model.num_bytes(),
        "exits": list(draft.exits),
        "pass_ms": {str(number): round(cost[1], 4) for number, cost in passes.items()},
    }


def _draft_rows(facts: dict[str, Any]) -> dict[str, str]:
    draft = facts["draft"]
    if draft is None:
        return {}
    tokenizer = "the same tokenizer" if draft["same_tokenizer"] else "another tokenizer"
    shared = f"{draft['shared_tokens']:,} of {facts['vocabulary']:,} tokens shared"
    costs = ", ".join(f"{spent:.2f} ms after {number}" for number, spent in draft["pass_ms"].items())
    rows = {
        "draft": f"{draft['model']}, {draft['dtype']} on {draft['device']}, "
        f"{draft['weight_bytes'] / 2**20:.1f} MiB",
        "draft tokens": f"{tokenizer}, {shared}, {draft['proposable_tokens']:,} of them may be proposed",
    }
    return rows | ({"draft pass": f"{costs} layers"} if costs else {})


def _print_facts(facts: dict[str, Any], note: str) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    rows = {
        "model": facts["model"],
        "architecture": f"{facts['architecture']}, {facts['parameters']:,} parameters",
        "vocabulary": f"{facts['vocabulary']:,} tokens, context {facts['context'] or 'not stated'}",
        "weights": f"{facts['dtype']} on {facts['device']}, {facts['weight_bytes'] / 2**20:.1f} MiB",
        **_found_rows(facts),
        **_draft_rows(facts),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if note:
        console.print(note)


def _found_rows(facts: dict[str, Any]) -> dict[str, str]:
    """What running the model told; nothing where it was not run."""
    probe, forward = facts["probe"], facts["forward"]
    if probe is None:
        return {}
    return {
        "probe": f"{probe['mode']}: {_MODES[probe['mode']]} ({_agreement(probe['noise'])})",
        **{f"not {mode}": reason for mode, reason in probe["rejected"].items()},
        "forward": f"{forward['chosen']}: {forward['reason']}",
    }


def _agreement(noise: float) -> str:
    """What the probe's largest error means (ProbeResult.noise)."""
    if not noise:
        return "its logits are those of plain passes"
    return (
        f"its logits differ from those of plain passes by {100 * noise:.2g} % of what a wrong token changes"
    )


def _print_costs(facts: dict[str, Any]) -> None:
    from hasten.bench.report import limit_sentence

    console, forward = Console(highlight=False), facts["forward"]
    costs = Table(title="milliseconds of a pass", title_justify="left")
    measured = {name: one["cost_ms"] for name, one in facts["forwards"].items() if "cost_ms" in one}
    for column in ("rows", *measured, "times one row"):
        costs.add_column(column, justify="right")
    for row_count, ratio in facts["cost_ratio"].items():
        spent = (f"{cost[row_count]:.2f}" if row_count in cost else "-" for cost in measured.values())
        costs.add_row(row_count, *spent, f"{ratio:.2f}")
    console.print(costs)
    for name, one in facts["forwards"].items():
        if "refused" in one:
            console.print(f"{name}: {one['refused']}")
    console.print(limit_sentence(facts["memory_limit"], forward["chosen"], forward["startup_seconds"]))
