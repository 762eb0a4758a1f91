"""Options that several commands share, and loading a model quietly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from hasten.errors import ConfigError

if TYPE_CHECKING:
    from hasten.text.engine import LanguageModel

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="demo, demo-draft, demo-diffusion, demo-lists, a local folder or a hub id.",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Write at most this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Sample from the most likely tokens that hold this probability.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many most likely tokens.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens less likely than this share of the best one's.")]
Seed = Annotated[int | None, typer.Option(help="The same seed writes the same text. Default: a new one.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the text before this string. Repeatable.")]
DrafterName = Annotated[
    str,
    typer.Option(
        "--drafter",
        help="auto, off (plain decoding), a system's name, FILE.py:CLASS for one of "
        "your own, or several with +.",
    ),
]
NumDraftTokens = Annotated[
    int | None, typer.Option(help="A fixed size of the draft tree. Default: what pays on this machine.")
]
PolicyName = Annotated[
    str,
    typer.Option("--policy", help="How much to draft: cost (what pays), or the batch rules ems and bass."),
]
StrategyName = Annotated[
    str,
    typer.Option(
        "--strategy",
        help="How a diffusion model writes: auto, exact, or parts such as threshold:0.9+credit/dual; see "
        "`hasten systems`.",
    ),
]
Spec = Annotated[
    str | None,
    typer.Option(help="What a diffusion checkpoint does not say, as in mask_id=1,attention=full,eos_ids=0."),
]
Regex = Annotated[str | None, typer.Option(help="The text shall match it. Diffusion models.")]
JsonSchema = Annotated[
    Path | None, typer.Option(help="The text shall be JSON of the schema in this file. Diffusion models.")
]
Grammar = Annotated[
    Path | None, typer.Option(help="The text shall be in the grammar of this Lark file. Diffusion models.")
]
Guide = Annotated[
    str | None, typer.Option(metavar="MODEL", help="An autoregressive model for --strategy guided.")
]
FilterFile = Annotated[
    Path | None, typer.Option("--filter", help="A file of `hasten train filter`, for --strategy learn2pd.")
]
JointSampler = Annotated[
    Path | None, typer.Option(help="A file of `hasten train joint`, for --strategy joint.")
]
VerifyName = Annotated[
    str,
    typer.Option(
        "--verify",
        help="follow: the text of plain decoding. fastest, traversal, block, residual and others: its law. "
        "typical, tolerant, confident: approximate.",
    ),
]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, float64, bfloat16 or float16.")]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda:0. Default: the GPU where there is one.")
]
ForwardName = Annotated[
    str,
    typer.Option(
        "--forward",
        help="stock (transformers' own layers); on the CPU packed or compiled; on a GPU graphs; or auto "
        "(measure).",
    ),
]
Shape = Annotated[
    str | None, typer.Option(help="Put the small model inside a network of the cost of 135m, 360m, 1b or 7b.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's choice.")]
Store = Annotated[
    Path | None, typer.Option(help="Start with what this file holds, if it exists; save there afterwards.")
]

Index = Annotated[
    Path | None, typer.Option(help="A corpus index of `hasten index`, for the drafters rest and rasd.")
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="A smaller model that guesses for this one; auto uses it besides the others."
    ),
]
DraftDevice = Annotated[str | None, typer.Option(help="Where it runs. Default: where the model does.")]
DraftVocab = Annotated[
    Path | None,
    typer.Option(help="The tokens it may propose: a file of `hasten train trim`. Default: its own, if any."),
]


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft model as it is named on the command line.

    Raises ConfigError for options of a draft model that is not there.
    """

    model: str | None = None
    device: str | None = None
    vocab: Path | None = None

    def __post_init__(self) -> None:
        if self.model is None and (self.device is not None or self.vocab is not None):
            raise ConfigError(
                "--draft-device and --draft-vocab go with a draft model; give --draft MODEL too"
            )

    def require_use(self, *drafters: str) -> None:
        """Raises ConfigError where none of these drafters would ask the draft model."""
        from hasten.drafters import asks_draft, parts_of
        from hasten.drafters.own import is_own

        parts = {part for drafter in drafters for part in parts_of(drafter, has_draft=True)}
        if self.model is not None and not any(asks_draft(part) or is_own(part) for part in parts):
            raise ConfigError(
                f"drafter={','.join(drafters)!r} does not use a draft model; with --draft choose auto, draft "
                "or several with +"
            )

    def arguments(self) -> dict[str, Any]:
        """As ``hasten.load`` takes them."""
        return {"draft": self.model, "draft_device": self.device, "draft_vocab": self.vocab}


def load_model(
    model: str,
    *,
    dtype: str,
    device: str | None,
    forward: str,
    drafter: str,
    store: Path | None,
    index: Path | None,
    draft: DraftChoice,
) -> LanguageModel:
    """As ``hasten.load``; a store is loaded only if the file is there already.

    Raises ConfigError also for an index or a draft model that the drafter would not use.
    """
    import hasten

    if index is not None and not {"rest", "rasd", "draft-rasd"}.intersection(drafter.split("+")):
        raise ConfigError(
            f"drafter={drafter!r} does not use an index; with --index choose rest, rasd, or several with +"
        )
    draft.require_use(drafter)
    quiet_loading()
    known = store if store is not None and store.exists() else None
    with Console(stderr=True).status(f"loading {escape(model)} ...", spinner="line") as status:
        loaded = hasten.load(
            model,
            dtype=dtype,
            device=device,
            forward=forward,
            drafter=drafter,
            store=known,
            index=index,
            **draft.arguments(),
        )
        status.update("trying what it can verify in one pass ...")
        _ = loaded.target.probe  # the first text would wait for it, without a word
    return loaded


def quiet_loading() -> None:
    """No progress bar for a load of less than a second; warnings stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def set_threads(threads: int | None) -> None:
    """Raises ConfigError for fewer than one."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"threads={threads} cannot work; it must be at least 1")
    torch.set_num_threads(threads)


def require_default(context: typer.Context, names: set[str], what: str, model: str) -> None:
    """Raises ConfigError for an option that this kind of model would not hear."""
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = name.removesuffix("_file").replace("_", "-")
            raise ConfigError(f"--{option} {what}, and {model!r} is none; leave it out")
