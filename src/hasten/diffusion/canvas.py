"""The nouns of masked diffusion; knows no model, no policy and no tokenizer.

Glossary (used in names, docs and reports)
    canvas      the tokens of one text, all positions at once: given (the prompt), written, or open
    open        still to be written; holds the mask token, or noise where a model has no mask
    commit      to write a token at an open position
    denoiser    a model that predicts every open position of a canvas in one forward pass
    block       the range of positions that is being written; positions after it wait
    rows        the positions that a forward pass computes
    reference   one token a forward pass, nothing cached: what every other way is measured against
"""

from __future__ import annotations

import json
from collections.abc import Sequence as AbstractSequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.core import SPEC_FILE
from hasten.errors import ConfigError, ModelError, PromptError
from hasten.files import write_text

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

Attention = Literal["full", "block-causal", "encoder-decoder", "any-order"]
NoiseKind = Literal["absorbing", "uniform"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserSpec:
    """What a checkpoint's weights do not tell: how it was trained to denoise.

    Raises ConfigError for values that contradict each other.
    """

    mask_id: int | None
    """the token of open positions; None for uniform noise"""
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    logits_shift: int = 0
    """1: the logits of position i - 1 predict position i (Dream and others warmed up from causal models)"""
    attention: Attention = "full"
    """"any-order": a causal model over any permutation, which also answers chains (sigma-GPT)"""
    block_size: int | None = None
    """of block-causal attention: blocks are counted from position 0; of an encoder-decoder: what its decoder
    writes at a time, counted from the end of the prompt"""
    noise: NoiseKind = "absorbing"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
        if self.noise == "absorbing" and self.mask_id is None:
            raise ConfigError("a denoiser with absorbing noise needs its mask token: give mask_id=")
        if self.mask_id is not None and self.mask_id in self.eos_ids:
            raise ConfigError(f"mask_id={self.mask_id} is also an end-of-text id; the two must differ")
        if self.logits_shift not in {0, 1}:
            raise ConfigError(f"logits_shift={self.logits_shift} cannot work; it must be 0 or 1")
        if self.attention not in get_args(Attention) or self.noise not in get_args(NoiseKind):
            raise ConfigError(
                f"attention={self.attention!r}, noise={self.noise!r} is unknown; choose from "
                f"{', '.join(get_args(Attention))} and {', '.join(get_args(NoiseKind))}"
            )
        in_blocks = self.attention in {"block-causal", "encoder-decoder"}
        if in_blocks != (self.block_size is not None):
            raise ConfigError(
                f"attention={self.attention!r} with block_size={self.block_size}: a block size goes with "
                "block-causal and encoder-decoder attention, and only with them"
            )
        if self.block_size is not None and self.block_size < 1:
            raise ConfigError(f"block_size={self.block_size} cannot work; it must be at least 1")

    @classmethod
    def load(cls, folder: Path) -> DenoiserSpec:
        """Read the spec file of a model folder. Raises ModelError where it is missing or unusable."""
        place = folder / SPEC_FILE
        try:
            entries = json.loads(place.read_text(encoding="utf-8"))
            return cls(**entries)
        except (OSError, ValueError, TypeError, ConfigError) as problem:
            raise ModelError(f"cannot use {place}: {problem}") from problem

    def save(self, folder: Path) -> None:
        """Write the spec file into a model folder."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_text(folder / SPEC_FILE, text, "facts of the denoiser")

    def changed(self, text: str) -> DenoiserSpec:
        """With values of a text such as "mask_id=1,attention=full". Raises ConfigError."""
        return replace(self, **parse_spec(text))


def parse_spec(text: str) -> dict[str, Any]:
    """The fields of a spec in a text such as "mask_id=1,eos_ids=0 2,logits_shift=1". Raises ConfigError."""
    known = {one.name for one in fields(DenoiserSpec)}
    values: dict[str, Any] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = entry.partition("=")
        if name not in known:
            raise ConfigError(f"spec={entry!r} is unknown; choose from {', '.join(sorted(known))}")
        try:
            if name == "eos_ids":
                values[name] = tuple(int(one) for one in value.split())
            elif name in {"attention", "noise"}:
                values[name] = value
            else:
                values[name] = None if value == "none" else int(value)
        except ValueError:
            raise ConfigError(f"spec={entry!r} cannot work; {name} is a whole number") from None
    return values


class Block(NamedTuple):
    """Positions start .. end - 1."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(slots=True, eq=False)
class Canvas:
    """One text, all its positions at once. Invariant: a position is given, open or committed."""

    token_ids: Ids
    """int64 [length]; open positions hold noise"""
    is_open: Mask
    """bool [length]"""
    is_given: Mask
    """bool [length]: the prompt, and in an infill what stands around the gaps"""
    committed_at: NDArray[np.int32] = field(init=False)
    """int32 [length]: the forward pass after which a position was last written; -1 where it never was"""

    def __post_init__(self) -> None:
        self.committed_at = np.full(len(self.token_ids), -1, dtype=np.int32)

    @classmethod
    def after(cls, prompt_ids: AbstractSequence[int], noise: Ids) -> Canvas:
        """A prompt and, after it, open positions holding ``noise`` int64 [num_open].

        Raises PromptError where nothing is open.
        """
        given = np.asarray(prompt_ids, dtype=np.int64)
        is_open = np.arange(len(given) + len(noise)) >= len(given)
        return cls.with_gaps(np.concatenate([given, noise]), is_open)

    @classmethod
    def with_gaps(cls, token_ids: Ids, is_open: Mask) -> Canvas:
        """Open positions anywhere, holding noise. Raises PromptError where nothing is open."""
        if not is_open.any():
            raise PromptError("the canvas has nothing to write; leave at least one position open")
        return cls(token_ids.copy(), is_open.copy(), ~is_open)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_open(self) -> int:
        return int(self.is_open.sum())

    @property
    def first_open(self) -> int:
        """The first open position. Raises IndexError where none is."""
        return int(np.flatnonzero(self.is_open)[0])

    @property
    def prompt_length(self) -> int:
        """How many given positions stand before the first that was not."""
        return int((~self.is_given).argmax())

    @property
    def last_given(self) -> int:
        """The last given position, -1 where nothing is: a text may only be cut after it."""
        given = np.flatnonzero(self.is_given)
        return int(given[-1]) if len(given) else -1

    def open_in(self, block: Block) -> Ids:
        """The open positions of a block, ascending."""
        return np.flatnonzero(self.is_open[block.start : block.end]) + block.start

    def commit(self, positions: Ids, token_ids: Ids, forward: int = 0) -> None:
        """Write tokens at open positions. Raises ValueError for one that is not open."""
        if not self.is_open[positions].all():
            raise ValueError(f"positions {positions} are not all open")
        self._write(positions, token_ids, forward)
        self.is_open[positions] = False

    def edit(self, positions: Ids, token_ids: Ids, forward: int = 0) -> None:
        """Replace tokens that were written before. Raises ValueError for a given or open position."""
        if self.is_given[positions].any() or self.is_open[positions].any():
            raise ValueError(f"positions {positions} were not all written")
        self._write(positions, token_ids, forward)

    def _write(self, positions: Ids, token_ids: Ids, forward: int) -> None:
        self.token_ids[positions] = token_ids
        self.committed_at[positions] = forward

    def reopen(self, positions: Ids, noise: Ids) -> None:
        """Take tokens back. Raises ValueError for a given position."""
        if self.is_given[positions].any():
            raise ValueError(f"positions {positions} hold given tokens")
        self.token_ids[positions] = noise
        self.is_open[positions] = True

    def truncate(self, length: int) -> None:
        """Cut the end off. Raises ValueError where a given token would go."""
        if length <= self.last_given:
            raise ValueError(f"a cut at {length} would remove the given token {self.last_given}")
        self.token_ids = self.token_ids[:length]
        self.is_open = self.is_open[:length]
        self.is_given = self.is_given[:length]
        self.committed_at = self.committed_at[:length]

    def fork(self) -> Canvas:
        """A copy that may be written on without changing this one."""
        copy = Canvas(self.token_ids.copy(), self.is_open.copy(), self.is_given)
        copy.committed_at = self.committed_at.copy()
        return copy

    @property
    def key(self) -> bytes:
        """Equal for canvases that a denoiser cannot tell apart."""
        return self.token_ids.tobytes() + self.is_open.tobytes()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """What one forward pass shall do for one canvas."""

    sequence: int
    """which canvas of the session this is about: its cached rows are read"""
    token_ids: Ids
    """int64 [length]"""
    wanted: Ids
    """the positions whose logits come back, ascending; each among the computed ones"""
    computed: Ids | None = None
    """the positions that are run through the model, ascending; the others count with the keys and values that
    were stored last. None: all, nothing is read from the cache"""
    stores: bool = False
    """whether the keys and values of the computed rows are kept for later queries"""
    chain: Ids | None = None
    """any-order models only: the order in which the tokens at these positions are revealed. Row k of the
    prediction then is about position chain[k], given what is not in the chain and chain[:k]"""
    wants_hidden: bool = False
    """whether the last hidden states of all positions come back too; only where all are computed"""
    previous: Prediction | None = None
    """the canvas's last prediction in the same block, as it was decided on, for models that read it"""

    @property
    def num_rows(self) -> int:
        return len(self.token_ids) if self.computed is None else len(self.computed)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser expects at some positions of a canvas."""

    positions: Ids
    """int64 [rows], ascending"""
    logits: torch.Tensor
    """float32 or float64 [rows, vocab], on the model's device; the mask token has -inf"""
    hidden: torch.Tensor | None = None
    """[length, width]: last hidden states of the whole canvas, where they were wanted"""
    drawn: Ids | None = None
    """int64 [rows]: the candidate of each position where it was drawn with noise; greedy without"""

    @cached_property
    def token_ids(self) -> Ids:
        """int64 [rows]: the candidate of each position."""
        if self.drawn is not None:
            return self.drawn
        return np.asarray(self.logits.argmax(-1).cpu().numpy(), dtype=np.int64)

    @cached_property
    def probs(self) -> torch.Tensor:
        """[rows, vocab]"""
        return self.logits.softmax(-1)

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """float64 [rows]: the probability of the candidate."""
        index = torch.from_numpy(self.token_ids).to(self.logits.device)
        return _numpy(self.probs.gather(-1, index[:, None])[:, 0])

    @cached_property
    def entropy(self) -> NDArray[np.float64]:
        """float64 [rows], nats."""
        return _numpy(torch.special.entr(self.probs).sum(-1))

    @cached_property
    def margin(self) -> NDArray[np.float64]:
        """float64 [rows]: how much likelier the best token is than the second."""
        best = self.probs.topk(2).values
        return _numpy(best[:, 0] - best[:, 1])

    @cached_property
    def gap(self) -> NDArray[np.float64]:
        """float64 [rows]: the best logit minus the second."""
        best = self.logits.topk(2).values
        return _numpy(best[:, 0] - best[:, 1])

    def rows_of(self, positions: Ids) -> NDArray[np.int64]:
        """The row of each position. Raises KeyError for one that was not predicted."""
        rows = np.searchsorted(self.positions, positions)
        known = rows < len(self.positions)
        if not (known.all() and (self.positions[rows] == positions).all()):
            missing = sorted(set(positions.tolist()) - set(self.positions.tolist()))
            raise KeyError(f"positions {missing} were not predicted")
        return rows

    def at(self, positions: Ids) -> Prediction:
        """Only these positions, ascending. Raises KeyError for one that was not predicted."""
        if len(positions) == len(self.positions) and (positions == self.positions).all():
            return self
        rows = self.rows_of(positions)
        index = torch.from_numpy(rows).to(self.logits.device)
        return Prediction(
            positions,
            self.logits[index],
            self.hidden,
            None if self.drawn is None else self.drawn[rows],
        )

    def with_logits(self, logits: torch.Tensor) -> Prediction:
        """Other logits for the same positions; candidates have to be drawn again."""
        return Prediction(self.positions, logits, self.hidden)

    def with_tokens(self, token_ids: Ids) -> Prediction:
        """The same logits with these candidates."""
        return Prediction(self.positions, self.logits, self.hidden, token_ids)


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy())


class DenoiserSession(Protocol):
    """A denoiser at work on some canvases, with the rows it keeps of each."""

    def forward(self, queries: AbstractSequence[Query]) -> list[Prediction]:
        """One forward pass over all queries, which may belong to several canvases, or several to one."""
        ...


class Denoiser(Protocol):
    """A model that predicts open positions."""

    @property
    def spec(self) -> DenoiserSpec: ...

    @property
    def model(self) -> Any:
        """The torch module behind it."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int | None:
        """The longest canvas, prompt included; None for any."""
        ...

    def open(self, lengths: AbstractSequence[int], *, keeps_rows: bool) -> DenoiserSession:
        """Start on canvases of these lengths. Without ``keeps_rows`` no query may read or store rows."""
        ...
