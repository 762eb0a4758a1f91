"""A diffusion model and the canvases that ``train filter`` and ``train joint`` let it write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hasten.cli.options import quiet_loading
from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.diffusion.canvas import Canvas, Denoiser

DiffusionName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="The diffusion model: a bundled name, a local folder or a hub id."),
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.")]
DeviceName = Annotated[str | None, typer.Option(help="cpu or cuda. Default: the GPU if there is one.")]
Prompts = Annotated[
    Path | None, typer.Option(help="A .jsonl of prompts as for bench, each of which is answered.")
]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Text files, .jsonl files or folders that prompts are cut from. Repeatable."),
]
Lists = Annotated[bool, typer.Option("--lists", help="Questions about lists, for a model that knows them.")]
Texts = Annotated[int, typer.Option(help="How many texts the model writes.")]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens of a text.")]

_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """Where prompts come from. Raises ConfigError unless it is one place."""

    prompts: Path | None
    data: list[Path] | None
    lists: bool
    num_texts: int
    seed: int

    def __post_init__(self) -> None:
        if sum((self.prompts is not None, bool(self.data), self.lists)) != 1:
            raise ConfigError("give one of --prompts, --data and --lists to write texts from")
        if self.num_texts < 1:
            raise ConfigError(f"--texts {self.num_texts} cannot work; it must be at least 1")

    def read(self, tokenizer: Any, vocab_size: int) -> list[Any]:
        """Texts, or token ids; at most ``num_texts``. Raises PromptError or ConfigError."""
        if self.lists:
            return self._questions()
        if self.prompts is not None:
            from hasten.bench.prompts import spread
            from hasten.cli.prompt_files import read_prompts

            return spread(read_prompts(self.prompts, tokenizer, vocab_size), self.num_texts)
        return self._cuts(tokenizer)

    def _questions(self) -> list[Any]:
        from hasten.diffusion.list_tasks import TASKS, sample_questions

        each = -(-self.num_texts // len(TASKS))
        asked = [sample_questions(task, each, self.seed) for task in TASKS]
        turns = [question.prompt for questions in zip(*asked, strict=True) for question in questions]
        return turns[: self.num_texts]

    def _cuts(self, tokenizer: Any) -> list[Any]:
        import numpy as np

        from hasten.drafters.corpus.corpus_texts import find_files, tokenised

        token_ids = np.concatenate(
            [np.zeros(0, np.int32), *tokenised(find_files(self.data or []), tokenizer)]
        )
        if len(token_ids) <= _PROMPT_TOKENS:
            raise ConfigError(f"--data holds {len(token_ids)} tokens, too few for prompts; add text")
        random = np.random.default_rng(self.seed)
        starts = random.integers(0, len(token_ids) - _PROMPT_TOKENS, self.num_texts)
        return [token_ids[start : start + _PROMPT_TOKENS].tolist() for start in starts]


def load_canvases(
    model: str, device: str | None, spec: str | None, choice: PromptChoice, max_new_tokens: int
) -> tuple[Denoiser, list[Canvas]]:
    """The model and a canvas for each prompt. Raises what loading and reading prompts raise."""
    from hasten.diffusion.denoisers.loading import load_denoiser
    from hasten.diffusion.drawing import noise_source
    from hasten.diffusion.prompts import CanvasReader

    quiet_loading()
    denoiser, tokenizer = load_denoiser(model, "auto", device, spec=spec)
    reader = CanvasReader(tokenizer, denoiser.spec, denoiser.vocab_size, denoiser.max_length)
    noise = noise_source(denoiser.spec, denoiser.vocab_size, choice.seed, 0)
    prompts = choice.read(tokenizer, denoiser.vocab_size)
    return denoiser, [reader.after(prompt, max_new_tokens, noise) for prompt in prompts]


@contextmanager
def writing_bar() -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Yields what to call with (steps done, number of steps, metrics); without metrics texts are written."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("writing")

        def show(done: int, total: int, metrics: dict[str, float]) -> None:
            name = f"training, loss {metrics['loss']:.3f}" if metrics else "writing"
            bar.update(task, completed=done, total=total, description=name)

        yield show
