"""Calls of both loops: which texts they ask for, what ends them, what Ctrl-C leaves."""

from __future__ import annotations

import pytest

from hasten.calls import (
    answer,
    asked_texts,
    interruptible,
    require_one_output,
    require_one_sample,
    stop_token_ids,
)
from hasten.core import SamplingParams, prompt_seeds
from hasten.errors import ConfigError, GenerationInterrupted, PromptError


def test_prompts_share_params_or_bring_their_own() -> None:
    shared = asked_texts(["a", "b"], SamplingParams(seed=5, n=2))
    seeds = prompt_seeds(5, 2)
    keys = [(one.prompt, one.seed, one.sample) for one in shared]
    assert keys == [("a", seeds[0], 0), ("a", seeds[0], 1), ("b", seeds[1], 0), ("b", seeds[1], 1)]
    own = asked_texts(["a", "b"], [SamplingParams(seed=5), SamplingParams(seed=5, n=2)])
    assert [(one.prompt, one.seed, one.sample) for one in own] == [("a", 5, 0), ("b", 5, 0), ("b", 5, 1)]
    with pytest.raises(PromptError, match="no prompts"):
        asked_texts([], SamplingParams())


def test_what_ends_a_text() -> None:
    params = SamplingParams(stop_token_ids=[7])
    assert stop_token_ids(params, None, 10, (2, 3)) == {2, 3, 7}
    assert stop_token_ids(SamplingParams(stop_token_ids=[7], ignore_eos=True), None, 10, (2, 3)) == {7}
    with pytest.raises(ConfigError, match="10 is outside the vocabulary of 10 tokens"):
        stop_token_ids(SamplingParams(stop_token_ids=[10]), None, 10, ())
    with pytest.raises(ConfigError, match="need a tokenizer"):
        stop_token_ids(SamplingParams(stop="."), None, 10, ())


def test_an_interrupt_carries_what_is_written_then() -> None:
    written: list[str] = []

    def write() -> None:
        written.append("half")
        raise KeyboardInterrupt

    with pytest.raises(GenerationInterrupted) as caught, interruptible(lambda: written):
        write()
    assert caught.value.outputs == ["half"]


def test_one_prompt_and_one_sample_is_one_output() -> None:
    assert answer(["a"], is_single=True) == "a"
    assert answer(["a"], is_single=False) == ["a"]
    with pytest.raises(ConfigError, match="n=2 cannot be streamed; use generate"):
        require_one_sample(SamplingParams(n=2), "streamed", "use generate")
    with pytest.raises(ConfigError, match="n=2 cannot be written for a single prompt; give it in a list"):
        require_one_output([SamplingParams(n=2)])
