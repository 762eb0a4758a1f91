# ruff: noqa: PLR0917
"""Is a drafted text ever slower than a plain one? Prompts counted, plain and drafted runs in turns.

python bench/never_slower.py MODEL --text FILE [--prompts 16,256,1024,2048,4096] [--answers 32,64]
    [--forwards stock,packed,compiled] [--dtypes float32,bfloat16] [--drafters auto,suffix,token-recycling]

Every set is one forward, dtype, prompt length, answer length and drafter; a set's figure is the median, over
its prompts, of plain seconds over drafted seconds. Prompts are pieces of the text, and of random tokens
(nothing repeats: the worst case). Each is written plainly, drafted, and plainly again, and judged by the mean
of the plain runs, so that a machine that slows down is not held against either. Exit code 1 if any set is
below --least.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import hasten

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_WARM_UP = hasten.SamplingParams(max_new_tokens=8, ignore_eos=True)


def main(
    model: str,
    text: Annotated[
        list[Path], typer.Option(help="files of text, or JSON lines whose strings are joined; repeatable")
    ],
    prompts: Annotated[str, typer.Option(help="prompt lengths in tokens")] = "16,256,1024,2048,4096",
    answers: Annotated[str, typer.Option(help="tokens to write")] = "32,64",
    forwards: str = "stock,packed,compiled",
    dtypes: str = "float32,bfloat16",
    drafters: str = "auto,suffix,token-recycling",
    count: Annotated[int, typer.Option(help="prompts of a set")] = 5,
    random: Annotated[bool, typer.Option(help="also prompts of random tokens")] = True,
    least: Annotated[float, typer.Option(help="of plain speed, for every set")] = 0.97,
    clock: Annotated[str, typer.Option(help="wall; or cpu, on a machine that others use too")] = "wall",
) -> None:
    now = CLOCKS[clock]
    words = "\n".join(_read(path) for path in text)
    below, records = [], []
    for forward in forwards.split(","):
        for dtype in dtypes.split(","):
            how = {"forward": forward, "dtype": dtype}
            for found in _measure_model(
                hasten.load(model, forward=forward, dtype=dtype, prefix_cache=0),
                words,
                [int(one) for one in prompts.split(",")],
                [int(one) for one in answers.split(",")],
                drafters.split(","),
                count,
                now,
                random=random,
            ):
                record = how | found
                records.append(record)
                if record["speed"] < least:
                    below.append(record)
                facts = ", ".join(f"{key} {value}" for key, value in record.items() if key != "all")
                print(f"{'BELOW' if record['speed'] < least else '     '} {facts}", flush=True)
    print(json.dumps({"model": model, "clock": clock, "least": least, "sets": records}))
    if below:
        print(f"{len(below)} of {len(records)} sets are below {least} times plain decoding")
        raise typer.Exit(1)
    print(f"no set of {len(records)} is below {least} times plain decoding")


def _measure_model(
    lm: hasten.LanguageModel,
    text: str,
    lengths: list[int],
    answers: list[int],
    drafters: list[str],
    count: int,
    now: Callable[[], float],
    *,
    random: bool,
) -> Iterator[dict[str, Any]]:
    sources = {"text": list(lm.tokenizer(text)["input_ids"])}  # longer than any context
    if random:
        rng = np.random.default_rng(0)
        sources["random"] = rng.integers(0, lm.target.vocab_size, count * max(lengths)).tolist()
    for drafter in ("off", *drafters):  # compiles what is compiled at first use
        lm.generate(sources["text"][:16], _WARM_UP, drafter=drafter)
    for length in lengths:
        for kind, token_ids in sources.items():
            if len(token_ids) < length:
                raise typer.BadParameter(f"the text has {len(token_ids)} tokens, a prompt {length}")
            starts = np.linspace(0, len(token_ids) - length, count).astype(int).tolist()
            pieces = [token_ids[start : start + length] for start in starts]
            for answer in answers:
                for drafter in drafters:
                    found = [_speed(lm, piece, answer, drafter, now) for piece in pieces]
                    yield {
                        "prompt": length,
                        "kind": kind,
                        "answer": answer,
                        "drafter": drafter,
                        "speed": round(statistics.median(found), 3),
                        "all": [round(one, 3) for one in found],
                    }


def _speed(
    lm: hasten.LanguageModel, prompt: list[int], answer: int, drafter: str, now: Callable[[], float]
) -> float:
    """Plain time over drafted time."""
    params = hasten.SamplingParams(max_new_tokens=answer, ignore_eos=True)
    spent = []
    for one in ("off", drafter, "off"):
        start = now()
        lm.generate(prompt, params, drafter=one)
        spent.append(now() - start)
    before, drafted, after = spent
    return (before + after) / 2 / drafted


def _read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return text
    return "\n".join("\n".join(_strings(json.loads(line))) for line in text.splitlines() if line.strip())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


if __name__ == "__main__":
    typer.run(main)
