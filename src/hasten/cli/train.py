"""``hasten train``: small models from text files, with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

train_app = typer.Typer(no_args_is_help=True)


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
        seed=seed,
        resume=resume or None,
    )
    columns = (
        TextColumn("step"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=config.steps, numbers="reading the text")

        def show(step: int, num_steps: int, metrics: dict[str, float]) -> None:
            bar.update(task, completed=step, total=num_steps, numbers=_numbers(metrics))

        folder = train_language_model(config, show)
    typer.echo(f"the model is in {folder}; try: hasten generate {folder} -p 'Once upon a time'")


def _numbers(metrics: dict[str, float]) -> str:
    parts = [f"loss {metrics['loss']:.3f}"]
    if "held_out_loss" in metrics:
        parts.append(f"held out {metrics['held_out_loss']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
