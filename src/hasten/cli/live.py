"""Text on the terminal while it is written, each token in the colour of who proposed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from hasten.cli.console import print_json

if TYPE_CHECKING:
    from hasten.core import DecodeStats
    from hasten.text.requests import Output, Piece

_COLOURS = {
    "token-recycling": "green",
    "token-recycling-template": "green",
    "aded": "yellow",
    "suffix": "cyan",
    "copyspec": "magenta",
    "prompt-lookup": "blue",
}
_TARGET = "target"
_SEVERAL = "bold bright_magenta"
_OTHER = "bright_red"


def style_of(source: str) -> str:
    """Plain for the target's own tokens; one colour for tokens that several sources proposed."""
    if source == _TARGET:
        return ""
    return _SEVERAL if "+" in source else _COLOURS.get(source, _OTHER)


def legend(sources: tuple[str, ...]) -> Text:
    """One line that explains the colours."""
    text = Text("the model itself")
    for source in sources:
        text.append("  ")
        text.append(source, style_of(source))
    if len(sources) > 1:
        text.append("  ")
        text.append("several of them", _SEVERAL)
    return text


class LiveText:
    """Shows pieces as they come and remembers what was shown."""

    def __init__(self, console: Console, *, is_coloured: bool) -> None:
        self._console = console
        self._is_coloured = is_coloured
        self.shown = ""
        self.token_ids: list[int] = []

    def show(self, pieces: Iterator[Piece]) -> Output | None:
        """The finished output, or None if the pieces ended early."""
        output = None
        for piece in pieces:
            self.token_ids.append(piece.token_id)
            self.write(piece.text, style_of(piece.source) if self._is_coloured else "")
            output = piece.output
        return output

    def write(self, text: str, style: str = "") -> None:
        self.shown += text
        if style:
            self._console.print(Text(text, style), end="", soft_wrap=True)
        else:
            # As it is: rich would expand tabs, and nobody asked for that in a file.
            self._console.file.write(text)
            self._console.file.flush()

    def write_rest(self, text: str) -> None:
        """The end of ``text`` that was held back when the writing was interrupted."""
        if text.startswith(self.shown):
            self.write(text[len(self.shown) :])


def summary(stats: DecodeStats) -> str:
    """One line of numbers for a finished text."""
    seconds = stats.total_ms / 1000
    return (
        f"{stats.num_tokens} tokens in {stats.num_steps} steps, "
        f"{stats.mean_acceptance_length:.2f} tokens a step, "
        f"{stats.num_tokens / seconds if seconds else 0:.1f} tokens/s"
    )


def print_outputs(
    prompts: list[Any],
    outputs: list[Any],
    summary: Callable[[Any], str],
    as_dict: Callable[[Any, Any], dict[str, Any]] | None,
) -> None:
    """Finished texts: each under a line of numbers, or with ``as_dict`` as one JSON object a line."""
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if as_dict is not None:
            print_json(as_dict(prompt, output))
        else:
            typer.secho(f"--- prompt {index + 1}: {summary(output)}", err=True, dim=True)
            typer.echo(output.text)
