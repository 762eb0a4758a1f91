"""``hasten train diffusion``: small masked-diffusion models from text files or list tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.training_progress import training_bar


def train_diffusion(
    recipe: Annotated[Path, typer.Argument(help="A JSON recipe such as models/demo-lists.json.")],
    *,
    output: Annotated[Path, typer.Option(help="Where the model and its checkpoints go.")],
    data: Annotated[
        Path | None, typer.Option(help="The folder that the recipe's files are relative to, if it names any.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto. Default: the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A folder or bundled model to take it from.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Block-causal attention, in blocks of this many positions.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option(help="A folder or bundled model to begin with; it may be causal.")
    ] = None,
    logits_shift: Annotated[
        int | None, typer.Option(help="1: position i is predicted at i - 1, as causal models do.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A masked-diffusion model whose answers to learn, with certainty.")
    ] = None,
    teacher_answers: Annotated[int | None, typer.Option(help="How many answers it writes first.")] = None,
    certainty_weight: Annotated[float | None, typer.Option(help="Of the entropy beside the text.")] = None,
    certainty_block: Annotated[int | None, typer.Option(help="Positions that are learnt at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the recipe's.")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the last checkpoint in the output folder.")
    ] = False,
) -> None:
    """Train a small masked-diffusion Llama. Ctrl-C and --resume lose no more than since a checkpoint."""
    from hasten.training.diffusion import DiffusionConfig, train_diffusion_model

    config = DiffusionConfig.load(
        recipe,
        data=None if data is None else str(data),
        output=str(output),
        device=device,
        steps=steps,
        batch_size=batch_size,
        precision=precision,
        tokenizer=tokenizer,
        block_size=block_size,
        start_from=start_from,
        logits_shift=logits_shift,
        teacher=teacher,
        teacher_answers=teacher_answers,
        certainty_weight=certainty_weight,
        certainty_block=certainty_block,
        seed=seed,
        resume=resume or None,
    )
    with training_bar(config.steps) as show:
        folder = train_diffusion_model(config, show)
    typer.echo(f"the model is in {folder}")
