"""``hasten autocomplete``: several short suggestions for how a text goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options
from hasten.cli.console import print_json
from hasten.errors import ConfigError
from hasten.files import read_text

if TYPE_CHECKING:
    from hasten.models.superposed import NgramTables
    from hasten.text.engine import LanguageModel


def autocomplete(
    model: options.Model,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text so far.")],
    k: Annotated[int, typer.Option("-k", help="How many suggestions.")] = 3,
    max_new_tokens: options.MaxNewTokens = 10,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="A text file whose n-grams the suggestions lean on. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a suggestion.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
) -> None:
    """Suggest how a text goes on: several short drafts for the passes of one. Approximate, not exact."""
    import hasten

    options.quiet_loading()
    language_model = hasten.load(model, dtype=dtype, device=device, forward=forward, drafter="off")
    if language_model.tokenizer is None:
        raise ConfigError("this model has no tokenizer, so there is no text to suggest; load one that has")
    ngrams = _learn(corpus, language_model) if corpus else None
    for completion in language_model.autocomplete(prompt, k=k, max_new_tokens=max_new_tokens, ngrams=ngrams):
        if as_json:
            print_json(dataclasses.asdict(completion))
        else:
            typer.echo(repr(completion.text))


def _learn(files: list[Path], language_model: LanguageModel) -> NgramTables:
    from hasten.models.superposed import NgramTables
    from hasten.prompts import tokenised

    tables = NgramTables()
    for path in files:
        tables.learn(tokenised(read_text(path), language_model.tokenizer))
    return tables
