"""A call of ``generate``, whichever loop writes its texts: which texts, where they end, what Ctrl-C leaves.

Knows parameters, seeds and outputs; knows no model and no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as AbstractSequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hasten.core import SamplingParams, prompt_seeds
from hasten.errors import ConfigError, GenerationInterrupted, PromptError
from hasten.stopping import special_stops

Prompt = TypeVar("Prompt")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True, eq=False)
class Asked(Generic[Prompt]):
    """One text of a call. Its noise is that of (seed, sample)."""

    prompt: Prompt
    params: SamplingParams
    seed: int
    sample: int


def asked_texts(
    prompts: AbstractSequence[Prompt], params: SamplingParams | AbstractSequence[SamplingParams]
) -> list[Asked[Prompt]]:
    """The texts of a call, the samples of a prompt side by side.

    With one SamplingParams for all prompts each prompt has a seed of its own, see ``prompt_seeds``; with a
    list, one a prompt, each has that of its own params, as if it were asked for alone.

    Raises PromptError where nothing is asked.
    """
    if not len(prompts):
        raise PromptError("no prompts were given")
    if isinstance(params, SamplingParams):
        seeds = prompt_seeds(params.seed, len(prompts))
        params = [params] * len(prompts)
    else:
        seeds = [prompt_seeds(own.seed, 1)[0] for own in params]
    return [
        Asked(prompt, own, seed, sample)
        for prompt, own, seed in zip(prompts, params, seeds, strict=True)
        for sample in range(own.n)
    ]


def require_one_sample(params: SamplingParams, done: str, remedy: str) -> None:
    """Raises ConfigError for params of several samples: "n=2 cannot be streamed; use generate"."""
    if params.n != 1:
        raise ConfigError(f"n={params.n} cannot be {done}; {remedy}")


def stop_token_ids(
    params: SamplingParams, tokenizer: Any, vocab_size: int, own: AbstractSequence[int] | frozenset[int]
) -> frozenset[int]:
    """The caller's, special tokens among the stop strings, and the model's ``own`` where they count.

    Raises ConfigError for a stop or a biased token that no text could ever hold, and for stop strings without
    a tokenizer.
    """
    if params.stop_strings and tokenizer is None:
        raise ConfigError("stop strings need a tokenizer; use stop_token_ids, or load with tokenizer=")
    for name, token_ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        outside = next((token_id for token_id in token_ids if token_id >= vocab_size), None)
        if outside is not None:
            raise ConfigError(
                f"{name}={list(token_ids)} cannot work: {outside} is outside the vocabulary of {vocab_size} "
                "tokens, so no text would ever hold it; leave it out"
            )
    special = special_stops(tokenizer, params.stop_strings) if params.stop_strings else frozenset()
    return frozenset(() if params.ignore_eos else own) | special | frozenset(params.stop_token_ids)


def require_one_output(params: SamplingParams | AbstractSequence[SamplingParams]) -> None:
    """Raises ConfigError where a prompt outside of a list would get several outputs."""
    for own in [params] if isinstance(params, SamplingParams) else params:
        require_one_sample(
            own, "written for a single prompt", "give it in a list, which gets a list of outputs"
        )


@contextmanager
def interruptible(outputs: Callable[[], AbstractSequence[Any]]) -> Iterator[None]:
    """Ctrl-C inside raises GenerationInterrupted with the outputs as far as they are."""
    try:
        yield
    except KeyboardInterrupt:
        raise GenerationInterrupted(outputs()) from None


def answer(outputs: list[Output], *, is_single: bool) -> Output | list[Output]:
    """What a call returns: the output of a single prompt, or the list of those of several."""
    return outputs[0] if is_single else outputs
