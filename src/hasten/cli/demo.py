"""``hasten demo``: plain decoding against hasten, live, on the bundled model or one of yours."""

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
    from hasten.text.requests import Output, Piece

BUNDLED = "demo"
_SHAPES = ("none", "135m", "360m")
_TEXTS = {"same": "the same text", "near tie": "the same text up to a near tie", "different": "ANOTHER TEXT"}


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
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A local folder, a hub id, or a GGUF file.")
    ] = BUNDLED,
    *,
    shape: Annotated[
        str | None,
        typer.Option(help="Cost of the network around the bundled model: none, 135m (the default) or 360m."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl as for bench. Default: some that suit the model, chats for one with a template."
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 0.0,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto: the checkpoint's; of the bundled model, bfloat16 where this machine has it."
        ),
    ] = "auto",
    forward: options.ForwardName = "auto",
    threads: options.Threads = None,
) -> None:
    """Watch a model write the same text plainly and with hasten."""
    from hasten.bench.models import fastest_dtype, open_model
    from hasten.bench.prompts import load_prompt_set
    from hasten.models.checkpoints import is_denoiser

    if shape is not None and model != BUNDLED:
        raise ConfigError(f"--shape is for the bundled model, and {model!r} is another; leave it out")
    if shape not in (None, *_SHAPES):
        raise ConfigError(f"shape={shape!r} is unknown; choose {', '.join(_SHAPES)}")
    if is_denoiser(model):
        raise ConfigError(f"{model!r} is a diffusion model; watch it with `hasten generate {model} -p TEXT`")
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=0)
    options.set_threads(threads)
    options.quiet_loading()
    console = Console(file=sys.stdout, highlight=False)
    with console.status("loading the model, and trying how it runs best ...", spinner="line") as status:
        if model == BUNDLED:
            shape = None if shape == "none" else shape or "135m"
            dtype = fastest_dtype() if dtype == "auto" else dtype
        opened = open_model(model, dtype=dtype, forward=forward, shape=shape, drafter="auto")
        source = prompts or _suitable_prompts(opened)
        asked = load_prompt_set(source, opened.language_model.target.vocab_size).conversations
        if opened.language_model.tokenizer is None:
            raise ConfigError(f"{model!r} has no tokenizer, so there is no text to show")
        status.update("one answer each to warm up ...")
        _warm_up(opened, params, asked[-1])
    _introduce(console, opened)
    rounds = [
        _play(console, opened, params, prompt, plain_first=number % 2 == 0)
        for number, prompt in enumerate(asked)
    ]
    _conclude(console, rounds, model)
    if any(one.verdict == "different" for one in rounds):
        raise typer.Exit(1)


def _suitable_prompts(opened: OpenModel) -> str:
    """A bundled set: what the bundled model was trained on, chats, or texts to go on with."""
    if opened.name == BUNDLED:
        return BUNDLED
    return "chat" if getattr(opened.language_model.tokenizer, "chat_template", None) else "base"


def _warm_up(opened: OpenModel, params: SamplingParams, prompt: Conversation) -> None:
    """Compile, allocate and measure; what the drafter learns of this text is thrown away."""
    language_model = opened.language_model
    for name in ("off", "auto"):
        language_model.generate(_text(opened, prompt), params, drafter=name)
    language_model.forget()


def _text(opened: OpenModel, prompt: Conversation) -> Any:
    from hasten.chat import chat_prompt

    if len(prompt.turns) != 1:
        raise ConfigError(f"a prompt of {len(prompt.turns)} turns is for hasten bench; the demo asks once")
    [text] = prompt.turns
    messages = [{"role": "user", "content": text}]
    return chat_prompt(opened.language_model.tokenizer, messages) if prompt.is_chat else text


def _introduce(console: Console, opened: OpenModel) -> None:
    import torch

    from hasten.bench.conditions import processor_name
    from hasten.bench.models import shape_sentence
    from hasten.drafters import AUTO

    target = opened.language_model.target
    console.print(
        f"{str(target.dtype).removeprefix('torch.')} on {processor_name(target.device)}, "
        f"{torch.get_num_threads()} threads. {shape_sentence(opened)}".rstrip()
    )
    console.print(
        f"Passes: {opened.forward}, for both. Every prompt is answered twice: plainly, a token a pass, and "
        "as you see it by hasten; who goes first alternates."
    )
    console.print("Who guessed a token: ", legend(AUTO))


def _play(
    console: Console, opened: OpenModel, params: SamplingParams, prompt: Conversation, *, plain_first: bool
) -> _Round:
    console.print(Rule(prompt.domain, align="left", style="dim"))
    console.print(prompt.turns[0], style="dim", end="\n" if prompt.is_chat else "", markup=False)
    asked = _text(opened, prompt)
    if plain_first:
        plain, plain_seconds = _write_plainly(console, opened, params, asked)
    clock = _Stopwatch()
    pieces = opened.language_model.stream(asked, params)
    hasten = LiveText(console, is_coloured=True).show(clock.time(pieces))
    assert hasten is not None
    console.print()
    if not plain_first:
        plain, plain_seconds = _write_plainly(console, opened, params, asked)
    verdict = _verdict(opened, params, plain, hasten)
    done = _Round(prompt.domain, plain, plain_seconds, hasten, clock.seconds, verdict)
    console.print(
        f"plain {plain_seconds:.1f} s, hasten {clock.seconds:.1f} s, {_TEXTS[verdict]}",
        style="bold",
        justify="right",
    )
    return done


def _write_plainly(
    console: Console, opened: OpenModel, params: SamplingParams, asked: Any
) -> tuple[Output, float]:
    """The text, of which only the number of tokens is shown while it is written, and its seconds."""
    clock, output, written = _Stopwatch(), None, 0
    with console.status("plain decoding ...", spinner="line", refresh_per_second=4) as status:
        for piece in clock.time(opened.language_model.stream(asked, params, drafter="off")):
            written += 1
            status.update(f"plain decoding ... {written} tokens, {written / clock.seconds:.1f} tokens/s")
            output = piece.output
    assert output is not None
    return output, clock.seconds


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


def _conclude(console: Console, rounds: list[_Round], model: str) -> None:
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
    if model == BUNDLED:
        console.print("Your own model: hasten demo MODEL, or hasten generate MODEL -p 'Once upon a time'.")


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
