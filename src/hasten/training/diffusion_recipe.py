"""What one training run of a masked-diffusion model is told. Trains nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.diffusion.list_tasks import MAX_SIZE
from hasten.errors import ConfigError
from hasten.training.recipe import RunConfig

SUBJECTS = ("text", "list-tasks")
WEIGHTINGS = ("likelihood", "even")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(RunConfig):
    """One run of `train_diffusion_model`. Raises ConfigError for a value that cannot work.

    ``subject`` "text" takes windows of ``files``, relative to ``data``; of those that hold an Assistant's
    turn, ``prompt_share`` keep what comes before it clean. "list-tasks" makes up questions about lists of
    ``min_size`` to ``max_size`` letters, the largest of them from ``curriculum_steps`` on, and brings its own
    tokenizer; a canvas has ``canvas_lengths`` positions, the first to the second number of them, and every
    ``long_canvas_every``-th batch one of ``long_canvas_lengths``.

    ``weighting`` "likelihood" divides the loss of a row by its chance of a mask, which bounds its likelihood
    (LLaDA); "even" counts every masked position alike, which has the same optimum. ``min_noise`` is the
    smallest chance of a mask. ``block_size`` trains block-causal attention.

    ``start_from`` is a model of the same shape to begin with, causal ones too; ``logits_shift`` 1 keeps their
    habit of predicting the next position. ``teacher`` is a masked-diffusion model whose own answers, to
    ``teacher_answers`` questions or pieces of text, are what is learnt, together with certainty (dParallel):
    ``certainty_weight`` of the entropy at ``certainty_temperature``, over blocks of ``certainty_block``
    positions. Without start_from, the run then starts from the teacher's weights.
    """

    subject: str = "text"
    files: tuple[str, ...] = ()
    data: str = "."
    prompt_share: float = 0.5
    min_size: int = 2
    max_size: int = MAX_SIZE
    curriculum_steps: int = 0
    canvas_lengths: tuple[int, ...] = (16, 32)
    long_canvas_lengths: tuple[int, ...] = ()
    long_canvas_every: int = 20
    weighting: str = "likelihood"
    min_noise: float = 1e-3
    initializer_range: float = 0.02
    block_size: int | None = None
    start_from: str | None = None
    logits_shift: int = 0
    teacher: str | None = None
    teacher_answers: int = 1024
    certainty_weight: float = 2.0
    certainty_temperature: float = 0.5
    certainty_block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.subject in SUBJECTS, "subject", " or ".join(SUBJECTS))
        self._require(self.weighting in WEIGHTINGS, "weighting", " or ".join(WEIGHTINGS))
        for name in ("long_canvas_every", "teacher_answers", "certainty_block"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("initializer_range", "certainty_temperature"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("curriculum_steps", "certainty_weight"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(0 < self.min_noise < 1, "min_noise", "between 0 and 1")
        self._require_between_0_and_1("prompt_share")
        if self.subject == "text":
            self._require_text(self.files)
        else:
            self._require_lists()
        self._require_attention()

    @property
    def origin(self) -> str | None:
        """The model whose weights the run starts with."""
        return self.start_from or self.teacher

    def _require_lists(self) -> None:
        for name in ("files", "tokenizer", "vocab_size"):
            self._require(not getattr(self, name), name, "left out with subject='list-tasks'")
        self._require(2 <= self.min_size <= self.max_size, "min_size", f"2 to max_size={self.max_size}")
        self._require(self.max_size <= MAX_SIZE, "max_size", f"at most {MAX_SIZE}")
        self._require(
            len(self.canvas_lengths) == 2 and MAX_SIZE < self.canvas_lengths[0] <= self.canvas_lengths[1],
            "canvas_lengths",
            f"two rising numbers above {MAX_SIZE}",
        )
        self._require(
            all(length > MAX_SIZE for length in self.long_canvas_lengths),
            "long_canvas_lengths",
            f"numbers above {MAX_SIZE}",
        )

    def _require_attention(self) -> None:
        self._require(self.logits_shift in {0, 1}, "logits_shift", "0 or 1")
        if self.block_size is None:
            return
        self._require(self.block_size >= 1, "block_size", "at least 1")
        if self.logits_shift:
            raise ConfigError(
                f"logits_shift=1 cannot work with block_size={self.block_size}: the first position of a block"
                " would be predicted by a block that does not see it; leave one of them out"
            )
        if self.teacher is not None:
            raise ConfigError(
                f"teacher={self.teacher!r} cannot work with block_size={self.block_size}; certainty is learnt"
                " with full attention"
            )
