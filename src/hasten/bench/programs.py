"""Where baselines run and who judges texts: in this process, or each in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch

from hasten.bench.agreement import Judging, judge_of, own_judge
from hasten.bench.baselines import BASELINES, Given
from hasten.bench.methods import Method
from hasten.bench.models import load_stock
from hasten.errors import ConfigError
from hasten.models.causal_lm import CausalLM
from hasten.models.gguf_lm import is_gguf
from hasten.models.target import Target


class Programs(Protocol):
    """Makes what a benchmark compares hasten with."""

    def baseline(self, name: str) -> Method:
        """Raises MissingExtra if its package is not installed, and ModelError if it cannot run the model."""
        ...

    def judge(self, target: Target) -> Judging:
        """Who knows what the target's model writes. Raises ModelError."""
        ...

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """Milliseconds of passes with transformers' own layers; None where there are none."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class InThisProcess:
    """Baselines beside hasten, on one stock copy of the model: less memory, but they disturb each other.

    Args:
        stock: gives transformers' model and tokenizer, the layers untouched, which share nothing with
            hasten's; called when first needed.
        stock_draft: the same of a draft model, or None.
    """

    stock: Callable[[], tuple[Any, Any]]
    stock_draft: Callable[[], tuple[Any, Any]] | None = None
    _given: Given | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.stock = cache(self.stock)

    def baseline(self, name: str) -> Method:
        """See Programs."""
        if self._given is None:
            model, tokenizer = self.stock()
            draft = None if self.stock_draft is None else self.stock_draft()
            self._given = Given((model, tokenizer), draft, stop_tokens(model))
        return BASELINES[name].make(name, self._given)

    def judge(self, target: Target) -> Judging:
        """See Programs."""
        model, _ = self.stock()
        return judge_of(model, lambda dtype: copy.deepcopy(model).to(dtype))

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """See Programs."""
        return CausalLM(self.stock()[0]).measure_cost(rows=rows)

    def close(self) -> None:
        """Nothing to end."""


class WithoutTransformers:
    """No baselines, and a judge of the target's own passes, for models that transformers does not run."""

    def baseline(self, name: str) -> Method:
        """See Programs."""
        raise ConfigError(f"{name} starts from a transformers checkpoint; leave it out")

    def judge(self, target: Target) -> Judging:
        """See Programs."""
        return own_judge(target)

    def stock_passes(self, rows: tuple[int, ...]) -> dict[int, float] | None:
        """See Programs."""
        return None

    def close(self) -> None:
        """Nothing to end."""


def programs_here(name: str, *, dtype: torch.dtype, device: str | None, shape: str | None) -> Programs:
    """Those of a model by name, in this process; nothing is loaded yet."""
    if is_gguf(name):
        return WithoutTransformers()
    word = str(dtype).removeprefix("torch.")
    return InThisProcess(lambda: load_stock(name, dtype=word, device=device, shape=shape))


def stop_tokens(model: Any) -> frozenset[int]:
    """The end-of-text tokens of a transformers model's generation settings."""
    found = model.generation_config.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
