"""``hasten train``: small models from text files, with a progress bar."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hasten.cli.train_acceptance import train_acceptance
from hasten.cli.train_diffusion import train_diffusion
from hasten.cli.train_filter import train_filter
from hasten.cli.train_joint import train_joint
from hasten.cli.training_progress import training_bar
from hasten.errors import ConfigError

train_app = typer.Typer(no_args_is_help=True)
train_app.command("acceptance")(train_acceptance)
train_app.command("diffusion")(train_diffusion)
train_app.command("filter")(train_filter)
train_app.command("joint")(train_joint)


@train_app.callback()
def _train() -> None:
    """One command for each kind of model."""


@train_app.command("lm")
def train_lm(
    recipe: Annotated[Path, typer.Argument(help="A JSON recipe such as models/demo.json.")],
    *,
    data: Annotated[Path, typer.Option(help="The folder that the recipe's files are relative to.")],
    output: Annotated[Path, typer.Option(help="Where the model and its checkpoints go.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto. Default: the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A folder or bundled model to take it from.")] = None,
    start_from: Annotated[str | None, typer.Option(help="A folder or bundled model to cut.")] = None,
    distill_from: Annotated[str | None, typer.Option(help="A folder or bundled model to learn from.")] = None,
    teacher_text: Annotated[
        int | None, typer.Option(help="Tokens that the model to learn from writes first, to train on.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the last checkpoint in the output folder.")
    ] = False,
) -> None:
    """Train a small Llama on text files. Ctrl-C and --resume lose no more than since the last checkpoint."""
    from hasten.training.lm import train_language_model
    from hasten.training.recipe import TrainingConfig

    config = TrainingConfig.load(
        recipe,
        data=str(data),
        output=str(output),
        device=device,
        steps=steps,
        batch_size=batch_size,
        precision=precision,
        tokenizer=tokenizer,
        start_from=start_from,
        distill_from=distill_from,
        teacher_text_tokens=teacher_text,
        seed=seed,
        resume=resume or None,
    )
    with training_bar(config.steps) as show:
        folder = train_language_model(config, show)
    typer.echo(f"the model is in {folder}; try: hasten generate {folder} -p 'Once upon a time'")


@train_app.command("trim")
def train_trim(
    draft: Annotated[
        str, typer.Argument(help="The draft model: a bundled name, a local folder or a hub id.")
    ],
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            help='Text files, .jsonl files with a "text" in every line (as `hasten generate --json` writes '
            "them; best are texts of the target), or folders. Repeatable."
        ),
    ],
    keep: Annotated[int, typer.Option(help="How many tokens the draft may still propose.")] = 2048,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default: vocab_trim.safetensors in the draft's folder."
        ),
    ] = None,
) -> None:
    """Choose the tokens that a draft model's head keeps: a smaller head is a faster draft."""
    from hasten.cli.options import quiet_loading
    from hasten.models.draft.trimmed_vocabulary import TRIM_FILE
    from hasten.models.loading import load_tokenizer
    from hasten.training.trim import trim_vocabulary

    if output is None and not Path(draft).expanduser().is_dir():
        raise ConfigError(f"{draft!r} is no local folder to put {TRIM_FILE} into; give --output FILE")
    place = output or Path(draft).expanduser() / TRIM_FILE
    quiet_loading()
    columns = (TextColumn("counting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("counting", total=None)
        made = trim_vocabulary(
            load_tokenizer(draft),
            data,
            keep,
            place,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(
        f"{place}: {len(made.kept_ids):,} tokens, {made.coverage:.2%} of the {made.num_tokens:,} in the texts"
    )
    typer.echo(f"try: --draft {shlex.quote(draft)} --draft-vocab {shlex.quote(str(place))}")
