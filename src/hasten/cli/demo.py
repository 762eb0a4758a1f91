"""``hasten demo``: in under a minute, plain decoding against hasten, live, on the bundled model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from hasten.cli import options
from hasten.cli.live import LiveText, legend
from hasten.core import SamplingParams
from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.bench.models import OpenModel
    from hasten.bench.prompts import Conversation
    from hasten.requests import Output, Piece

_SHAPES = ("none", "135m", "360m")


@dataclass(frozen=True, slots=True)
class _Round:
    """One prompt, written twice."""

    domain: str
    plain: Output
    plain_seconds: float
    hasten: Output
    hasten_seconds: float
    verdict: str

    @property
    def speedup(self) -> float:
        return (self.plain_seconds / len(self.plain.token_ids)) / (
            self.hasten_seconds / len(self.hasten.token_ids)
        )


def demo(
    shape: Annotated[
        str, typer.Option(help="Cost of the network around the small model: none, 135m or 360m.")
    ] = "135m",
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 0.0,
    dtype: Annotated[str, typer.Option(help="auto is bfloat16 where this machine has it.")] = "auto",
    threads: options.Threads = None,
) -> None:
    """Watch a bundled model write the same text plainly and with hasten."""
    from hasten.bench.models import fastest_dtype, open_model
    from hasten.bench.prompts import load_prompt_set

    if shape not in _SHAPES:
        raise ConfigError(f"shape={shape!r} is unknown; choose {', '.join(_SHAPES)}")
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=0)
    options.set_threads(threads)
    options.quiet_loading()
    console = Console(file=sys.stdout, highlight=False)
    with console.status("loading the bundled model ..."):
        opened = open_model(
            "demo",
            dtype=fastest_dtype() if dtype == "auto" else dtype,
            shape=None if shape == "none" else shape,
            drafter="auto",
        )
        _warm_up(opened, params)
    _introduce(console, opened)
    prompts = load_prompt_set("demo", opened.language_model.target.vocab_size).conversations
    rounds = [_play(console, opened, params, prompt) for prompt in prompts]
    _conclude(console, rounds)
    if any(one.verdict == "different" for one in rounds):
        raise typer.Exit(1)


def _warm_up(opened: OpenModel, params: SamplingParams) -> None:
    """Compile and allocate; what the drafter learns of this text is thrown away."""
    from hasten.drafters import make_drafter

    language_model = opened.language_model
    prompt = "User: Good morning!\nAssistant:"
    for name in ("off", "auto"):
        language_model.generate(prompt, params, drafter=make_drafter(name, language_model.resources))


def _introduce(console: Console, opened: OpenModel) -> None:
    import torch

    from hasten.bench.conditions import processor_name
    from hasten.bench.models import shape_sentence
    from hasten.drafters import AUTO

    target = opened.language_model.target
    console.print(
        f"{str(target.dtype).removeprefix('torch.')} on {processor_name(target.device)}, "
        f"{torch.get_num_threads()} threads. {shape_sentence(opened)}"
    )
    console.print(
        "Every prompt is answered twice: plainly, a token a pass, and then, as you see it, by hasten."
    )
    console.print("Who guessed a token: ", legend(AUTO))


def _play(console: Console, opened: OpenModel, params: SamplingParams, prompt: Conversation) -> _Round:
    [text] = prompt.turns
    console.print(Rule(prompt.domain, align="left", style="dim"))
    console.print(text, style="dim", end="", markup=False)
    language_model = opened.language_model
    with console.status("plain decoding ..."):
        start = time.perf_counter()
        plain = language_model.generate(text, params, drafter="off")
        plain_seconds = time.perf_counter() - start
    clock = _Stopwatch()
    hasten = LiveText(console, is_coloured=True).show(clock.time(language_model.stream(text, params)))
    assert hasten is not None
    console.print()
    verdict = _verdict(opened, params, plain, hasten)
    done = _Round(prompt.domain, plain, plain_seconds, hasten, clock.seconds, verdict)
    console.print(f"plain {plain_seconds:.1f} s, hasten {clock.seconds:.1f} s", style="bold", justify="right")
    return done


class _Stopwatch:
    """Time spent in an iterator, not in who consumes it: a slow terminal is nobody's fault."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            self.seconds += time.perf_counter() - start
            if piece is None:
                return
            yield piece


def _verdict(opened: OpenModel, params: SamplingParams, plain: Output, hasten: Output) -> str:
    from hasten.bench.agreement import OWN_ROWS, compare, replay
    from hasten.bench.programs import Checkpoint, programs_for

    target = opened.language_model.target
    if plain.token_ids == hasten.token_ids:
        return "same"
    word = str(target.dtype).removeprefix("torch.")
    stock = programs_for(Checkpoint(opened.name, word, str(target.device), opened.shape))
    return compare(
        plain.prompt_ids,
        plain.token_ids,
        hasten.token_ids,
        judge=stock.judge(target),
        own=[replay(target, num_rows) for num_rows in OWN_ROWS],
        params=params,
        seed=plain.seed,
    ).verdict


def _conclude(console: Console, rounds: list[_Round]) -> None:
    from hasten.bench.records import geometric_mean

    table = Table(title="tokens a second", title_justify="left")
    table.add_column("domain")
    for column in ("plain", "hasten", "speed-up", "tokens a step"):
        table.add_column(column, justify="right")
    table.add_column("identical")
    for one in rounds:
        table.add_row(*_cells(one))
    mean = geometric_mean(one.speedup for one in rounds)
    table.add_section()
    table.add_row("geometric mean", "", "", f"{mean:.2f}×", "", "", style="bold")
    console.print(table)
    console.print(
        "Time of the whole answer, prompt included, after one warm-up answer. hasten learns from prompt to "
        "prompt, starting with nothing. tokens a step: gained per pass, the model's own token included."
    )
    if any(one.verdict == "near tie" for one in rounds):
        console.print(
            "near tie: two tokens scored the same up to bfloat16's rounding, which differs with the "
            "number of rows; --dtype float32 has none."
        )
    console.print("Your own model: hasten generate MODEL -p 'Once upon a time', MODEL a folder or a hub id.")


def _cells(one: _Round) -> tuple[Any, ...]:
    words = {"same": "yes", "near tie": "up to a near tie", "different": "[bold red]NO[/]"}
    return (
        one.domain,
        f"{len(one.plain.token_ids) / one.plain_seconds:.1f}",
        f"{len(one.hasten.token_ids) / one.hasten_seconds:.1f}",
        f"{one.speedup:.2f}×",
        f"{one.hasten.stats.mean_acceptance_length:.2f}",
        words[one.verdict],
    )
