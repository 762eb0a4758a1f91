# ruff: noqa: PLR0917
"""Milliseconds to cache the prompts of a batch, padded to the longest and packed end to end.

python bench/prefill.py [--shape 135m] [--prompts 32] [--shortest 8] [--longest 512] [--repeats 3]
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Annotated

import numpy as np
import torch
import typer

from hasten.bench.models import fastest_dtype, open_model
from hasten.models.forwards.forward import Forward
from hasten.models.sessions.tree_session import TreeSession

MODES = ("padded", "packed")


def main(
    shape: Annotated[
        str, typer.Option(help="the sizes of a published model; none for demo as it is")
    ] = "135m",
    prompts: int = 32,
    shortest: int = 8,
    longest: int = 512,
    repeats: int = 3,
    dtype: str = "",
    seed: int = 0,
) -> None:
    dtype = dtype or fastest_dtype()
    opened = open_model("demo", dtype=dtype, shape=None if shape == "none" else shape)
    forward = opened.language_model.target.forward
    print(f"{shape}, {dtype}, {opened.forward} linear layers, {torch.get_num_threads()} threads")
    rng = np.random.default_rng(seed)
    lengths = draw_lengths(rng, prompts, shortest, longest)
    print(f"{prompts} prompts, {sum(lengths)} tokens: {sorted(lengths)}")
    batch = [rng.integers(0, forward.vocab_size, length).tolist() for length in lengths]
    prefill(forward, [batch[0][:16]], "padded")  # warm-up
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(repeats):
        for mode in MODES if repeat % 2 else reversed(MODES):
            times[mode].append(prefill(forward, batch, mode))
    medians = {mode: statistics.median(values) for mode, values in times.items()}
    for mode in MODES:
        print(f"{mode}: {medians[mode]:.0f} ms, of {', '.join(f'{value:.0f}' for value in times[mode])}")
    print(f"padded / packed: {medians['padded'] / medians['packed']:.2f}")
    print(json.dumps({"shape": shape, "dtype": dtype, "lengths": lengths, "milliseconds": times}))


def draw_lengths(rng: np.random.Generator, count: int, shortest: int, longest: int) -> list[int]:
    """Most are short: log-normal around 37 tokens, cut to the bounds."""
    return np.clip(np.exp(rng.normal(3.6, 1.0, count)), shortest, longest).astype(int).tolist()


def prefill(forward: Forward, batch: list[list[int]], mode: str) -> float:
    session = TreeSession(forward, prefill=mode)
    start = time.perf_counter()
    session.prefill(batch)
    if forward.device.type == "cuda":
        torch.cuda.synchronize(forward.device)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
