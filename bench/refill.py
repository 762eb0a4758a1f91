# ruff: noqa: PLR0917
"""Batches that are refilled: drafted against plain, the same prompts, the same batch, both refilled.

python bench/refill.py MODEL --prompts FILE.jsonl [--prompts ...] [--batch 1,4,8,16] [--count 32]
    [--tokens 128] [--drafter auto] [--repeat 2] [--forward auto] [--dtype auto] [--clock wall]

All prompts of a set are given in one call, so that a place which gets free is taken by the next one. Plain
and drafted calls take turns after a short one of each; a figure is the plain seconds over the drafted ones,
of all repetitions together. How many texts are the same is counted: in 16 bits they may part at near ties.
Exit code 1 if any of them is below --least.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

import hasten
from hasten.bench.prompts import load_prompt_sets, spread
from hasten.chat import chat_prompt

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main(
    model: str,
    prompts: Annotated[list[str], typer.Option(help="a .jsonl file, a bundled name, random:N; repeatable")],
    batch: Annotated[str, typer.Option(help="how many are written side by side")] = "1,4,8,16",
    count: Annotated[int, typer.Option(help="prompts of a set")] = 32,
    tokens: Annotated[int, typer.Option(help="new tokens of each at most")] = 128,
    drafter: str = "auto",
    repeat: int = 2,
    forward: str = "auto",
    dtype: str = "auto",
    temperature: float = 0.0,
    least: Annotated[float, typer.Option(help="of plain speed, for every set and batch")] = 1.0,
    clock: Annotated[str, typer.Option(help="wall; or cpu, on a machine that others use too")] = "wall",
) -> None:
    lm = hasten.load(model, forward=forward, dtype=dtype, prefix_cache=0)
    params = hasten.SamplingParams(max_new_tokens=tokens, temperature=temperature, seed=0)
    records = []
    for found in load_prompt_sets(prompts, lm.target.vocab_size):
        texts = [_prompt_ids(lm, one) for one in spread(found.conversations, count)]
        limit = (lm.target.max_length or 2**30) - tokens
        texts = [text for text in texts if len(text) <= limit]
        for size in (int(one) for one in batch.split(",")):
            record = _measure(lm, texts, params, size, drafter, repeat, CLOCKS[clock])
            records.append({"set": found.name, "prompts": len(texts), "batch": size, **record})
            print(", ".join(f"{key} {value}" for key, value in records[-1].items()), flush=True)
    print(json.dumps({"model": model, "drafter": drafter, "tokens": tokens, "clock": clock, "sets": records}))
    if any(record["speed"] < least for record in records):
        raise typer.Exit(1)


def _prompt_ids(lm: hasten.LanguageModel, conversation: Any) -> list[int]:
    """Of the first turn."""
    if conversation.token_ids:
        return list(conversation.token_ids)
    asked = conversation.turns[0]
    if conversation.is_chat:
        asked = chat_prompt(lm.tokenizer, [{"role": "user", "content": asked}])
    return list(lm.tokenizer(asked)["input_ids"]) if isinstance(asked, str) else list(asked)


def _measure(
    lm: hasten.LanguageModel,
    texts: list[list[int]],
    params: hasten.SamplingParams,
    size: int,
    drafter: str,
    repeat: int,
    now: Callable[[], float],
) -> dict[str, Any]:
    spent = {"off": 0.0, drafter: 0.0}
    written: dict[str, Any] = {}
    passes = dict.fromkeys(spent, 0)

    def count_pass(step: Any) -> None:
        passes[name] += 1

    for name in spent:  # prices of the batch, and what is compiled at first use
        lm.generate(texts[:size], hasten.SamplingParams(max_new_tokens=16), drafter=name, batch_size=size)
    for repetition in range(repeat):
        for name in list(spent)[:: 1 - 2 * (repetition % 2)]:
            lm.forget()
            start = now()
            written[name] = lm.generate(texts, params, drafter=name, batch_size=size, trace=count_pass)
            spent[name] += now() - start
    num_tokens = sum(len(output.token_ids) for output in written["off"])
    same = sum(
        one.token_ids == other.token_ids for one, other in zip(written["off"], written[drafter], strict=True)
    )
    return {
        "speed": round(spent["off"] / spent[drafter], 3),
        "plain_tokens_per_second": round(repeat * num_tokens / spent["off"], 1),
        "drafted_tokens_per_second": round(repeat * num_tokens / spent[drafter], 1),
        "passes": [passes["off"] // repeat, passes[drafter] // repeat],
        "same_texts": f"{same}/{len(texts)}",
    }


if __name__ == "__main__":
    typer.run(main)
