"""What one training run is told: every option, its limits, and how a JSON recipe is read. Trains nothing."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from hasten.errors import ConfigError

_ACCEPTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "tuple[str, ...]": (tuple, list),
    "tuple[int, ...]": (tuple, list),
}

_LISTS: dict[str, type] = {"tuple[str, ...]": str, "tuple[int, ...]": int}

_FREE_TO_CHANGE = {"data", "output", "device", "resume", "checkpoint_every", "evaluate_every", "report_every"}
"""Options that may differ when a run is resumed, since they do not decide what is learnt."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run of a small Llama is told. Raises ConfigError for a value that cannot work.

    ``tokenizer`` is a folder, a bundled model or a hub name; ``vocab_size`` in its place trains one of that
    many tokens on the files.
    """

    output: str
    tokenizer: str | None = None
    vocab_size: int | None = None
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    steps: int = 1000
    batch_size: int = 32
    sequence_length: int = 256
    learning_rate: float = 1e-3
    final_learning_rate_ratio: float = 0.1
    warmup_steps: int = 100
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    held_out_fraction: float = 0.01
    num_held_out_windows: int = 128
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: bool = False
    checkpoint_every: int = 500
    evaluate_every: int = 250
    report_every: int = 10

    @classmethod
    def load(cls, recipe_path: str | Path, **overrides: object) -> Self:
        """The recipe of a JSON file, with options that are given here instead; None leaves the recipe's.

        A tokenizer given here takes the place of the recipe's vocab_size, and the other way round.
        """
        options = _read_object(Path(recipe_path))
        given = {name: value for name, value in overrides.items() if value is not None}
        known = {field.name for field in fields(cls)}
        for source, names in ((str(recipe_path), options), ("the overrides", overrides)):
            if unknown := sorted(set(names) - known):
                raise ConfigError(
                    f"{source}: unknown option {', '.join(unknown)}; the options are"
                    f" {', '.join(sorted(known))}"
                )
        for name, other in (("tokenizer", "vocab_size"), ("vocab_size", "tokenizer")):
            if name in given:
                options.pop(other, None)
        options |= given
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := sorted(needed - set(options)):
            raise ConfigError(f"{recipe_path}: {' and '.join(missing)} must be given")
        return cls(**options)

    def __post_init__(self) -> None:
        for field in fields(self):
            self._require_kind(field.name, str(field.type))
        # A JSON list or a CLI list is as good as a tuple, but a frozen config holds nothing that can change.
        for name in self._lists():
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._require_limits()
        self._require_shape()

    @classmethod
    def _lists(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.type in _LISTS]

    def _require_kind(self, name: str, kind: str) -> None:
        value = getattr(self, name)
        is_wrong = not isinstance(value, _ACCEPTED[kind]) or (isinstance(value, bool) and kind != "bool")
        if is_wrong or (kind in _LISTS and not all(type(item) is _LISTS[kind] for item in value)):
            raise ConfigError(f"{name}={value!r} cannot work; it must be of type {kind}")

    def _require_limits(self) -> None:
        at_least_one = (
            "hidden_size intermediate_size num_layers num_heads num_kv_heads head_dim steps batch_size"
            " sequence_length num_held_out_windows checkpoint_every evaluate_every report_every"
        )
        for name in at_least_one.split():
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "gradient_clip", "rms_norm_eps", "rope_theta"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("warmup_steps", "weight_decay"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require_between_0_and_1("final_learning_rate_ratio")
        self._require(0 <= self.held_out_fraction < 1, "held_out_fraction", "at least 0 and below 1")
        self._require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1")

    def _require_shape(self) -> None:
        self._require(
            self.precision in ("auto", "float32", "bfloat16"), "precision", "auto, float32 or bfloat16"
        )
        self._require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            f"a divisor of num_heads={self.num_heads}",
        )
        self._require(self.hidden_size % self.num_heads == 0, "hidden_size", "a multiple of num_heads")
        self._require(self.head_dim % 2 == 0, "head_dim", "even")
        self._require(
            self.sequence_length <= self.max_position_embeddings,
            "sequence_length",
            f"at most max_position_embeddings={self.max_position_embeddings}",
        )

    def _require_text(self, files: tuple[str, ...]) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ConfigError(
                f"tokenizer={self.tokenizer!r} and vocab_size={self.vocab_size!r} cannot work; give either a"
                " tokenizer to use or the vocab_size of one to train"
            )
        self._require(len(files) > 0, "files", "one or more text files")

    def _require_between_0_and_1(self, *names: str) -> None:
        for name in names:
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")

    def _require(self, condition: bool, name: str, remedy: str) -> None:
        if not condition:
            raise ConfigError(f"{name}={getattr(self, name)!r} cannot work; it must be {remedy}")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {name: list(getattr(self, name)) for name in self._lists()}

    def require_same_run(self, earlier: dict[str, Any]) -> None:
        """Raises ConfigError when a run started with the options `earlier` cannot be resumed with these."""
        now = self.as_dict()
        for name in sorted((set(now) | set(earlier)) - _FREE_TO_CHANGE):
            if now.get(name) != earlier.get(name):
                raise ConfigError(
                    f"cannot resume: {name} was {earlier.get(name)!r} and is {now.get(name)!r} now; give the"
                    " earlier value, or start again in another output folder"
                )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """One run of `train_language_model`. Raises ConfigError for a value that cannot work.

    ``files`` are relative to ``data``; one that is named twice counts twice.
    ``held_out_fraction`` of the tokens is kept from training, whole documents at a time; 0 keeps none.
    ``distill_weight`` is the share of the loss that follows ``distill_from`` instead of the text.
    ``start_from`` is a model to begin with, of the same shape but for its depth; ``keep_layers`` are those of
    its layers that stay, counted from 0. ``exits`` are numbers of layers after which the model learns to
    predict, besides its full depth; each has ``exit_weight`` of the full depth's weight. Before training,
    ``distill_from`` writes ``teacher_text_tokens``, each row after ``teacher_prompt_length`` tokens of the
    text; they fill ``teacher_text_share`` of each batch.
    """

    files: tuple[str, ...]
    data: str = "."
    distill_from: str | None = None
    distill_weight: float = 0.5
    start_from: str | None = None
    keep_layers: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    exit_weight: float = 0.3
    teacher_text_tokens: int = 0
    teacher_text_share: float = 0.5
    teacher_prompt_length: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_text(self.files)
        self._require(self.teacher_prompt_length >= 1, "teacher_prompt_length", "at least 1")
        for name in ("exit_weight", "teacher_text_tokens"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require_between_0_and_1("distill_weight", "teacher_text_share")
        self._require_layers()
        self._require_teacher_text()

    def _require_layers(self) -> None:
        if self.keep_layers and self.start_from is None:
            raise ConfigError(
                f"keep_layers={list(self.keep_layers)} cannot work without start_from; name the model to cut"
            )
        if self.start_from is not None:
            self._require(
                len(self.keep_layers) == self.num_layers and min(self.keep_layers) >= 0,
                "keep_layers",
                f"num_layers={self.num_layers} layers of start_from, counted from 0",
            )
        self._require(
            list(self.exits) == sorted(set(self.exits))
            and all(1 <= layers < self.num_layers for layers in self.exits),
            "exits",
            f"rising numbers of layers below num_layers={self.num_layers}, which is always trained",
        )

    def _require_teacher_text(self) -> None:
        if not self.teacher_text_tokens:
            return
        self._require(
            self.distill_from is not None and self.distill_weight > 0,
            "teacher_text_tokens",
            "0 without distill_from and a distill_weight",
        )
        self._require(
            self.teacher_prompt_length <= self.sequence_length,
            "teacher_prompt_length",
            f"at most sequence_length={self.sequence_length}",
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {error.strerror}; name an existing JSON file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"recipe {path} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"recipe {path} must be a JSON object of options, not a {type(options).__name__}")
    return options
