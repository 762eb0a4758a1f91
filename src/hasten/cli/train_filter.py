"""``hasten train filter``: a filter that says which candidates of a diffusion model are final."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from hasten.cli.options import Spec
from hasten.cli.training_canvases import (
    Data,
    DeviceName,
    DiffusionName,
    Lists,
    MaxNewTokens,
    OutputFile,
    PromptChoice,
    Prompts,
    Texts,
    load_canvases,
    writing_bar,
)


def train_filter(
    model: DiffusionName,
    *,
    output: OutputFile,
    prompts: Prompts = None,
    data: Data = None,
    lists: Lists = False,
    texts: Texts = 400,
    max_new_tokens: MaxNewTokens = 32,
    block_size: Annotated[int, typer.Option(help="The blocks that it will be used with.")] = 32,
    hidden_size: Annotated[int, typer.Option(help="Of the filter's hidden layer.")] = 32,
    epochs: Annotated[int, typer.Option(help="Times that all examples are seen.")] = 2000,
    device: DeviceName = None,
    spec: Spec = None,
    seed: Annotated[int, typer.Option(help="Of prompts and weights.")] = 0,
) -> None:
    """Train a filter on texts that the model writes, for the selector learn2pd (Learn2PD)."""
    from hasten.diffusion.confidence_filter import FILTER_FILE, save_filter
    from hasten.diffusion.trained import denoiser_fingerprint
    from hasten.training.confidence_filter import ACCEPT_LEVELS, FilterTraining, train_confidence_filter

    options = FilterTraining(block_size=block_size, hidden_size=hidden_size, epochs=epochs, seed=seed)
    choice = PromptChoice(prompts, data, lists, texts, seed)
    denoiser, canvases = load_canvases(model, device, spec, choice, max_new_tokens)
    fingerprint = denoiser_fingerprint(denoiser)
    with writing_bar() as show:
        made, metrics = train_confidence_filter(denoiser, canvases, options, show)
    save_filter(output, made, fingerprint)
    for level in ACCEPT_LEVELS:
        typer.echo(
            f"accepting above {level}: {metrics[f'false_positives_{level}']:.1%} of the wrong candidates and "
            f"{metrics[f'accepted_{level}']:.1%} of the right ones, in texts that were not trained on"
        )
    typer.echo(
        f"a text takes {metrics['forwards']:.1f} forwards one token at a time, and "
        f"{metrics['oracle_forwards']:.1f} if every right candidate were written"
    )
    typer.echo(
        f"{output}; try: hasten generate {shlex.quote(model)} --strategy learn2pd --filter "
        f"{shlex.quote(str(output))}; as {FILTER_FILE} in the model's folder it is used without --filter"
    )
