"""``hasten check``: are hasten's texts on a model those of transformers?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hasten.cli import options

if TYPE_CHECKING:
    from hasten.bench.check import Finding


def check(
    model: options.Model,
    *,
    dtypes: Annotated[str, typer.Option(help="Precisions, joined by commas.")] = "float32,bfloat16",
    forwards: Annotated[str, typer.Option(help="Ways to run the model.")] = "stock,packed,compiled",
    drafters: Annotated[
        str, typer.Option(help="Drafters, joined by commas.")
    ] = "off,auto,suffix,token-recycling,lookahead",
    max_new_tokens: options.MaxNewTokens = 24,
) -> None:
    """Compare hasten's texts with those of transformers: every forward, drafter, batch; greedy and sampled.

    Exits with 1 where a text is wrong. Texts that part at a tie up to rounding are right; they are counted.
    """
    from hasten.bench.check import check as run
    from hasten.models.loading import resolve_source

    options.quiet_loading()
    console = Console(highlight=False, soft_wrap=True)
    found = run(
        resolve_source(model),
        dtypes=dtypes.split(","),
        forwards=forwards.split(","),
        drafters=drafters.split(","),
        max_new_tokens=max_new_tokens,
        report=lambda finding: _show(console, finding),
    )
    wrong = [finding for finding in found if finding.problem]
    num_texts = sum(finding.num_texts for finding in found)
    num_same = sum(finding.num_same for finding in found)
    console.print(
        f"{num_texts} texts: {num_same} equal to transformers', {num_texts - num_same} part; "
        f"{len(wrong)} of {len(found)} cases are wrong"
    )
    if wrong:
        raise typer.Exit(1)


def _show(console: Console, finding: Finding) -> None:
    case = finding.case
    texts = f"{finding.num_same}/{finding.num_texts} the same" if finding.num_texts else ""
    verdict = f"[red]WRONG: {finding.problem}[/red]" if finding.problem else "ok"
    console.print(
        f"{case.dtype:9} {case.forward:9} {case.drafter:16} {case.sampling:10} batch {case.batch}  "
        f"{texts:15} {finding.worst:6.2f}  {verdict}",
        no_wrap=True,
    )
