"""``hasten train joint``: a layer that lets a diffusion model write tokens that agree with each other."""

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


def train_joint(
    model: DiffusionName,
    *,
    output: OutputFile,
    prompts: Prompts = None,
    data: Data = None,
    lists: Lists = False,
    texts: Texts = 400,
    max_new_tokens: MaxNewTokens = 32,
    unroll: Annotated[int, typer.Option(help="Tokens after the first that it learns to follow.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 1000,
    temperature: Annotated[float, typer.Option(help="Of the texts that it learns from.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Constant after a short warm-up.")] = 1e-3,
    device: DeviceName = None,
    spec: Spec = None,
    seed: Annotated[int, typer.Option(help="Of prompts, texts and steps.")] = 0,
) -> None:
    """Train a one-layer sampler on texts that the model writes, for the selector joint (ADJUST)."""
    from hasten.diffusion.denoisers.joint_sampler import JointSampler
    from hasten.diffusion.sampler_file import save_sampler
    from hasten.diffusion.trained import denoiser_fingerprint
    from hasten.training.joint_sampler import JointTraining, train_joint_sampler

    options = JointTraining(
        unroll=unroll, steps=steps, temperature=temperature, learning_rate=learning_rate, seed=seed
    )
    choice = PromptChoice(prompts, data, lists, texts, seed)
    denoiser, canvases = load_canvases(model, device, spec, choice, max_new_tokens)
    fingerprint = denoiser_fingerprint(denoiser)
    sampler = JointSampler(denoiser.model, denoiser.spec)
    with writing_bar() as show:
        metrics = train_joint_sampler(denoiser, sampler, canvases, options, show)
    save_sampler(output, sampler, fingerprint)
    typer.echo(
        f"{output}: its laws are {metrics['divergence']:.4f} nats from the model's in texts that were not "
        f"trained on, where the first prediction for all tokens is {metrics['untrained_divergence']:.4f} off"
    )
    typer.echo(
        f"try: hasten generate {shlex.quote(model)} --strategy joint:{unroll + 1} --joint-sampler "
        f"{shlex.quote(str(output))}"
    )
