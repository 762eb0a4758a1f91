"""What a type checker says of public calls; `make check` reads it, nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import hasten
from hasten import DiffusionModel, DiffusionOutput, LanguageModel, Output, Piece, SamplingParams


def texts(lm: LanguageModel, params: SamplingParams) -> None:
    assert_type(lm.generate("a"), Output)
    assert_type(lm.generate("a", params, drafter="off"), Output)
    assert_type(lm.generate([1, 2], params), Output)
    assert_type(lm.generate((1, 2)), Output)
    assert_type(lm.generate(["a", "b"], params, batch_size=2), list[Output])
    assert_type(lm.generate([[1, 2], [3]], [params, params]), list[Output])
    assert_type(lm.generate(["a", [1]]), list[Output])
    assert_type(lm.stream("a", params), Iterator[Piece])
    assert_type(lm.generate("a").text, str)
    assert_type(lm.generate("a").logprobs, list[hasten.TokenLogprob] | None)


def arrays(lm: LanguageModel, ids: NDArray[np.int64], features: torch.Tensor) -> None:
    assert_type(lm.generate(features), Output | list[Output])
    assert_type(lm.generate([features]), list[Output])
    assert_type(lm.generate({"input_ids": ids}), Output | list[Output])


def conversations(lm: LanguageModel) -> None:
    turns = [{"role": "user", "content": "Hello!"}]
    assert_type(lm.chat(turns), Output)
    assert_type(lm.stream_chat(turns, drafter="auto"), Iterator[Piece])
    assert_type(lm.chat_prompt(turns), list[int])


def canvases(dlm: DiffusionModel, params: SamplingParams) -> None:
    assert_type(dlm.generate("a", params), DiffusionOutput)
    assert_type(dlm.generate(["a"], params), list[DiffusionOutput])


def loaded() -> None:
    assert_type(hasten.load("demo"), LanguageModel)
    assert_type(hasten.load_diffusion("demo-diffusion"), DiffusionModel)


def wrong(lm: LanguageModel) -> None:
    lm.generate("a", speed=3)  # type: ignore[call-overload]
    lm.generate("a", drafter=3)  # type: ignore[call-overload]
    lm.chat("Hello!")  # type: ignore[arg-type]
