"""``hasten infill``: write the gaps of a text with a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import options, sampling
from hasten.cli.canvases import ConstraintChoice, DiffusionChoice, as_dict, show, traced
from hasten.cli.console import print_json
from hasten.core import SamplingParams
from hasten.errors import ConfigError


def infill(
    model: options.Model,
    template: Annotated[
        str,
        typer.Argument(
            metavar="TEMPLATE", help="Text with gaps, as in 'def f(x):<gap:20>return y'.", show_default=False
        ),
    ],
    *,
    strategy: options.StrategyName = "auto",
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = None,
    min_p: options.MinP = 0.0,
    typical_p: sampling.TypicalP = 1.0,
    seed: options.Seed = None,
    regex: options.Regex = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with statistics.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write one JSON line a decoding step.")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    spec: options.Spec = None,
    guide: options.Guide = None,
    filter_file: options.FilterFile = None,
    joint_sampler: options.JointSampler = None,
) -> None:
    """Fill the gaps of a text; what stands around them stays as it is."""
    from hasten.diffusion.prompts import parse_template
    from hasten.models.checkpoints import is_denoiser

    if not is_denoiser(model, spec):
        raise ConfigError(f"{model!r} is no diffusion model, and others cannot infill; try demo-diffusion")
    pieces = parse_template(template)
    params = SamplingParams(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, typical_p=typical_p, seed=seed
    )
    diffusion = DiffusionChoice(model, dtype, device, spec, guide, filter_file, joint_sampler).load()
    constraint = ConstraintChoice(regex).constraint(diffusion.tokenizer)
    with traced(trace, diffusion) as tracer:
        if as_json:
            output = diffusion.infill(pieces, params, strategy=strategy, constraint=constraint, trace=tracer)
            print_json(as_dict(template, output))
        else:
            show(
                diffusion,
                diffusion.stream(pieces, params, strategy=strategy, constraint=constraint, trace=tracer),
            )
