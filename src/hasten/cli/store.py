"""``hasten store``: what is in a file of ``--store``, and how to get rid of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.console import print_json

if TYPE_CHECKING:
    from hasten.drafters.store import StoreContents


def store(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A file of --store.")],
    *,
    texts: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also show the texts that are kept, read with its tokenizer."),
    ] = None,
    forget: Annotated[bool, typer.Option(help="Delete it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """What is in a store: texts that were written, and traces of prompts. Keep it as private as they are."""
    from hasten.drafters.store import forget_store, read_store

    contents = read_store(file)
    facts = _facts(file, contents)
    if texts is not None:
        facts["kept_texts"] = _texts(contents, texts)
    if forget:
        forget_store(file)
    if as_json:
        print_json(facts | {"forgotten": forget}, indent=2)
        return
    _print(file, facts)
    if forget:
        typer.echo(f"{file} is deleted")


def _facts(file: Path, contents: StoreContents) -> dict[str, Any]:
    kept = contents.texts()
    return {
        "drafter": contents.drafter,
        "tokenizer": contents.tokenizer,
        "bytes": file.stat().st_size,
        "texts": len(kept),
        "text_tokens": sum(map(len, kept)),
        "arrays": {key: f"{array.dtype} {list(array.shape)}" for key, array in contents.arrays.items()},
    }


def _texts(contents: StoreContents, model: str) -> list[str]:
    from hasten.cli.options import quiet_loading
    from hasten.detokenising import Detokeniser
    from hasten.errors import IncompatibleModels
    from hasten.models.loading import load_tokenizer
    from hasten.models.vocabulary import vocabulary_fingerprint

    quiet_loading()
    tokenizer = load_tokenizer(model)
    found = vocabulary_fingerprint(tokenizer, len(tokenizer))
    if found != contents.tokenizer:
        raise IncompatibleModels(
            f"the store was learnt with tokenizer {contents.tokenizer!r}, {model!r} has {found!r}; name the "
            "model that wrote it"
        )
    return [Detokeniser(tokenizer).text(token_ids) for token_ids in contents.texts()]


def _print(file: Path, facts: dict[str, Any]) -> None:
    typer.echo(
        f"{file}: learnt by {facts['drafter']}, {facts['bytes']:,} bytes, tokenizer {facts['tokenizer']}"
    )
    count = "1 text" if facts["texts"] == 1 else f"{facts['texts']:,} texts"
    typer.echo(
        f"{count} word for word, {facts['text_tokens']:,} tokens; else tables of which tokens followed which"
    )
    for key, shape in facts["arrays"].items():
        typer.echo(f"  {key}: {shape}")
    for text in facts.get("kept_texts", ()):
        typer.echo(f"---\n{json.dumps(text, ensure_ascii=False)[1:-1]}")
