"""The progress bar of the training commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def training_bar(num_steps: int) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Yields what to call with (steps done, number of steps, metrics)."""
    columns = (
        TextColumn("step"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=num_steps, numbers="preparing")

        def show(step: int, total: int, metrics: dict[str, float]) -> None:
            bar.update(task, completed=step, total=total, numbers=_numbers(metrics))

        yield show


def _numbers(metrics: dict[str, float]) -> str:
    parts = [f"loss {metrics['loss']:.3f}"]
    if "held_out_loss" in metrics:
        parts.append(f"held out {metrics['held_out_loss']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
