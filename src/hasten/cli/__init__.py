"""The command line: ``hasten COMMAND``. Parses options and shows results; all work is done below it.

Heavy imports wait inside the commands, so that ``hasten --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from hasten import __version__
from hasten.cli.autocomplete import autocomplete
from hasten.cli.bench import bench
from hasten.cli.chat import chat
from hasten.cli.check import check
from hasten.cli.compare import compare
from hasten.cli.console import FAILED, finish_output, prepare_streams, report
from hasten.cli.demo import demo
from hasten.cli.export import export
from hasten.cli.generate import generate
from hasten.cli.index import index
from hasten.cli.infill import infill
from hasten.cli.info import info, systems
from hasten.cli.parallelbench import parallelbench
from hasten.cli.store import store
from hasten.cli.train import train_app
from hasten.cli.verify_lab import verify_lab
from hasten.cli.warmup import warmup
from hasten.errors import HastenError, WriteError

WRONG_INPUT = 2
INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""


class _Commands(TyperGroup):
    """Turns hasten's errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HastenError as problem:
            typer.echo(f"error: {problem}", err=True)
            raise typer.Exit(FAILED if isinstance(problem, WriteError) else WRONG_INPUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="hasten",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Makes the language models you already run write several times faster, and write the same text.",
)
app.command()(demo)
app.command()(generate)
app.command()(infill)
app.command()(chat)
app.command()(autocomplete)
app.command()(info)
app.command()(warmup)
app.command()(systems)
app.command()(bench)
app.command()(compare)
app.command()(check)
app.command()(parallelbench)
app.command()(index)
app.command()(store)
app.command()(export)
app.command()(verify_lab)
app.add_typer(train_app, name="train", help="Train small models on text files.")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Version."),
) -> None:
    """Runs before every command."""


def main() -> None:
    """The entry point."""
    prepare_streams()
    code: Any = 0
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except OSError as problem:
        code = report(problem)
    sys.exit(finish_output() or code)
