"""``hasten index``: a corpus on disk that drafters look texts up in, with progress bars."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def index(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help='Text files (UTF-8), .jsonl files with a "text" in every line, or folders of .txt, .md, .py '
            "and .jsonl files.",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="The folder to make.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="The model that the index is for; its tokenizer is used.")
    ] = "demo",
) -> None:
    """Index text files, so that drafters can look up what followed the last tokens there."""
    from hasten.cli.options import quiet_loading
    from hasten.drafters.corpus.corpus_index import write_index
    from hasten.drafters.corpus.corpus_texts import find_files, tokenised
    from hasten.models.loading import load_tokenizer
    from hasten.models.vocabulary import vocabulary_fingerprint

    start = time.perf_counter()
    found = find_files(files)
    quiet_loading()
    loaded = load_tokenizer(tokenizer)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        reading = bar.add_task("tokenising", total=None)
        sorting = bar.add_task("sorting", total=None, start=False)

        def show_reading(done: int, total: int) -> None:
            bar.update(reading, completed=done, total=total)

        def show_sorting(done: int, total: int) -> None:
            bar.start_task(sorting)
            bar.update(sorting, completed=done, total=total)

        texts = tokenised(found, loaded, show_reading)
        made = write_index(output, texts, vocabulary_fingerprint(loaded, len(loaded)), show_sorting)
    megabytes = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    documents = f"{made.num_documents:,} document" + ("s" if made.num_documents > 1 else "")
    seconds = time.perf_counter() - start
    typer.echo(
        f"{output}: {documents}, {made.num_tokens:,} tokens, {megabytes:,.1f} MB, {seconds:.1f} seconds"
    )
    model, place = shlex.quote(tokenizer), shlex.quote(str(output))
    typer.echo(f"try: hasten generate {model} -p 'Once upon a time' --drafter rasd --index {place}")
