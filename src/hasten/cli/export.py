"""``hasten export``: a model in the file format of another engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli import options


def export(
    model: options.Model,
    *,
    gguf: Annotated[
        Path, typer.Option("--gguf", metavar="FILE", help="The GGUF file to write, for llama.cpp.")
    ],
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16 or q8_0 (8 bits).")
    ] = "auto",
    shape: options.Shape = None,
) -> None:
    """Write a model as a GGUF file: Llama, Mistral, Qwen2 and Qwen3 with a byte-level tokenizer."""
    from hasten.bench.models import load_stock
    from hasten.models.llamacpp.export import export_gguf

    options.quiet_loading()
    exact = dtype if dtype in ("auto", "bfloat16") else "float32"  # nothing is rounded twice
    loaded, tokenizer = load_stock(model, dtype=exact, device="cpu", shape=shape)
    counts = export_gguf(loaded, tokenizer, gguf, dtype=dtype)
    tensors = ", ".join(f"{count} tensors in {kind}" for kind, count in counts.items())
    typer.echo(f"{gguf}: {gguf.stat().st_size / 1e6:,.1f} MB, {tensors}")
    typer.echo(f"try: hasten generate {shlex.quote(str(gguf))} -p 'Once upon a time'")
