"""``hasten warmup``: compile and try out everything that a model's first text would otherwise wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli import options
from hasten.core import SamplingParams
from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.bench.models import OpenModel

_NUM_TOKENS = 24
_PERIOD = 8
_LENGTH = 64


def warmup(
    model: options.Model,
    *,
    dtypes: Annotated[
        str, typer.Option("--dtype", help="auto (the checkpoint's), or several joined by commas.")
    ] = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
    drafter: options.DrafterName = "auto",
    batch: Annotated[int, typer.Option(help="Also write so many texts side by side.")] = 2,
    draft: options.Draft = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
) -> None:
    """Compile what a model needs on this machine, and say what takes how long.

    Compiled code is kept on disk, so programs that come later start without the wait: worth it after an
    installation, and while a container image is built.
    """
    from hasten.bench.models import open_model
    from hasten.models.checkpoints import is_denoiser

    if batch < 1:
        raise ConfigError(f"batch={batch} cannot work; it must be at least 1")
    if is_denoiser(model):
        raise ConfigError(f"{model!r} is a diffusion model, for which nothing is compiled")
    choice = options.DraftChoice(draft, draft_device, draft_vocab)
    choice.require_use(drafter)
    options.quiet_loading()
    start = time.perf_counter()
    for dtype in dtypes.split(","):
        with _step(f"load {model}" + ("" if dtype == "auto" else f" in {dtype}")) as note:
            opened = open_model(
                model, dtype=dtype, device=device, forward=forward, drafter=drafter, **choice.arguments()
            )
            note.append(f"{opened.forward}: {opened.reason}")
        with _step("try what it can verify in one pass") as note:
            note.append(opened.language_model.target.probe.mode)
        _write(opened, drafter, batch)
    typer.echo(f"ready after {time.perf_counter() - start:.1f} s")


def _write(opened: OpenModel, drafter: str, batch: int) -> None:
    """Greedy and sampled, alone and side by side, by every drafter that will be asked.

    Any token ids do; they repeat themselves, so that every drafter finds something.
    """
    language_model = opened.language_model
    vocab_size = language_model.target.vocab_size
    prompt = [1 + number % _PERIOD % (vocab_size - 1) for number in range(_LENGTH)]
    greedy = SamplingParams(max_new_tokens=_NUM_TOKENS, ignore_eos=True)
    sampled = replace(greedy, temperature=1.0, top_p=0.9, seed=0)
    with _step("write plainly"):
        language_model.generate(prompt, greedy, drafter="off")
    with _step(f"write with {drafter}, greedy"):
        language_model.generate(prompt, greedy, drafter=drafter, num_draft_tokens=16)
        language_model.generate(prompt, greedy, drafter=drafter)
    with _step(f"write with {drafter}, sampled"):
        language_model.generate(prompt, sampled, drafter=drafter)
    if batch > 1:
        with _step(f"write {batch} texts side by side"):
            language_model.generate([prompt] * batch, sampled, drafter=drafter, batch_size=batch)
    language_model.forget()


@contextmanager
def _step(what: str) -> Iterator[list[str]]:
    """Says what begins, and how long it took; what is put into the list is said too."""
    typer.echo(f"{what} ... ", nl=False)
    start, note = time.perf_counter(), list[str]()
    yield note
    typer.echo("".join(f"{one}, " for one in note) + f"{time.perf_counter() - start:.1f} s")
