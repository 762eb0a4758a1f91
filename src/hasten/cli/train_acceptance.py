"""``hasten train acceptance``: a head that says how long a draft model's chains shall be."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def train_acceptance(
    draft: Annotated[
        str, typer.Argument(help="The draft model: a bundled name, a local folder or a hub id.")
    ],
    *,
    target: Annotated[str, typer.Option(help="The model that it drafts for, with the same tokenizer.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help='Text files, .jsonl files with a "text" in every line, or folders; prompts are taken from '
            "them. Repeatable."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.")],
    texts: Annotated[int, typer.Option(help="How many prompts the target goes on with.")] = 256,
    epochs: Annotated[int, typer.Option(help="Times that every example is seen.")] = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the GPU if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, texts and weights.")] = 0,
) -> None:
    """Train a head that ends a draft model's chains where the target will likely reject them (SpecDec++)."""
    import numpy as np

    from hasten.cli.options import quiet_loading
    from hasten.drafters.corpus.corpus_texts import find_files, tokenised
    from hasten.drafters.trees.acceptance_head import HEAD_FILE, save_head
    from hasten.models.causal_lm import CausalLM
    from hasten.models.draft.draft_lm import load_draft
    from hasten.models.fingerprint import model_fingerprint
    from hasten.models.loading import load_pretrained
    from hasten.training.acceptance import AcceptanceTraining, train_acceptance_head

    options = AcceptanceTraining(num_texts=texts, epochs=epochs, seed=seed)
    files = find_files(data)
    quiet_loading()
    model, tokenizer = load_pretrained(target, "auto", device)
    loaded = CausalLM(model)
    small = load_draft(draft, target=loaded, target_tokenizer=tokenizer, forward="stock")
    token_ids = np.concatenate([np.zeros(0, np.int32), *tokenised(files, tokenizer)])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("writing")

        def show(done: int, total: int, metrics: dict[str, float]) -> None:
            name = f"training, loss {metrics['loss']:.3f}" if metrics else "writing"
            bar.update(task, completed=done, total=total, description=name)

        head, metrics = train_acceptance_head(small, loaded, token_ids, options, show)
    save_head(output, head, model_fingerprint(small.model.forward.model))
    typer.echo(
        f"{output}: {metrics['acceptance']:.1%} of the guesses are accepted, held-out loss "
        f"{metrics['held_out_loss']:.4f} ({metrics['untrained_loss']:.4f} without looking at them)"
    )
    typer.echo(
        f"as {HEAD_FILE} in the draft's folder, it is used by --draft {shlex.quote(draft)} "
        "--drafter draft-specdec"
    )
