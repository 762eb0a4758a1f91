# ruff: noqa: PLR0917
"""Milliseconds a step and bytes of cache for n samples after one prefix, with the prefix shared and without.

python bench/shared_prefix.py [--shape 135m] [--prefix 1024] [--rows 8 --rows 16] [--nodes 0 --nodes 7]
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
from hasten.core import Acceptance
from hasten.models.forwards.forward import Forward
from hasten.models.sessions.session import Session
from hasten.models.sessions.shared_prefix import SharedPrefixSession, can_share_prefixes
from hasten.models.sessions.tree_session import TreeSession
from hasten.tree import DraftTree


def main(
    shape: Annotated[
        str, typer.Option(help="the sizes of a published model; none for demo as it is")
    ] = "135m",
    prefix: int = 1024,
    rows: Annotated[list[int], typer.Option(help="samples side by side")] = [8, 16],  # noqa: B006
    nodes: Annotated[list[int], typer.Option(help="draft nodes of each sample")] = [0, 7],  # noqa: B006
    repeats: int = 7,
    dtype: str = "",
) -> None:
    dtype = dtype or fastest_dtype()
    opened = open_model("demo", dtype=dtype, shape=None if shape == "none" else shape)
    forward = opened.language_model.target.forward
    if not can_share_prefixes(forward):
        raise SystemExit("this model cannot share prefixes")
    print(
        f"{shape}, {dtype}, {opened.forward} linear layers, {torch.get_num_threads()} threads; "
        f"prefix of {prefix} tokens"
    )
    print(" rows  nodes    own ms  shared ms  ratio    own MB  shared MB")
    results = [measure(forward, prefix, count, size, repeats) for count in rows for size in nodes]
    print(json.dumps({"shape": shape, "dtype": dtype, "prefix": prefix, "results": results}))


def measure(forward: Forward, prefix: int, rows: int, nodes: int, repeats: int) -> dict[str, float]:
    """One line of the table: steps of both sessions in turn, each row with ``nodes`` rejected nodes."""
    prompt = np.random.default_rng(0).integers(0, forward.vocab_size, prefix + 1).tolist()
    own, shared = TreeSession(forward), SharedPrefixSession(forward, lambda: True, min_prefix=1, min_saved=1)
    own.prefill([prompt] * rows)
    shared.prefill([prompt] * rows)
    times: dict[str, list[float]] = {"own": [], "shared": []}
    for _ in range(repeats + 1):
        times["own"].append(step(own, rows, nodes, forward))
        times["shared"].append(step(shared, rows, nodes, forward))
    milliseconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    own_bytes, shared_bytes = own.num_bytes(), shared.num_bytes()
    print(
        f"{rows:5} {nodes:6} {milliseconds['own']:9.1f} {milliseconds['shared']:10.1f} "
        f"{milliseconds['own'] / milliseconds['shared']:6.2f} "
        f"{own_bytes / 1e6:9.1f} {shared_bytes / 1e6:10.1f}",
        flush=True,
    )
    return {
        "rows": rows,
        "nodes": nodes,
        **milliseconds,
        "own_bytes": own_bytes,
        "shared_bytes": shared_bytes,
    }


def step(session: Session, rows: int, nodes: int, forward: Forward) -> float:
    tree = DraftTree.chain([1 + node for node in range(nodes)])
    start = time.perf_counter()
    session.forward([tree] * rows)
    if forward.device.type == "cuda":
        torch.cuda.synchronize(forward.device)
    session.keep([Acceptance([], [5])] * rows)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
