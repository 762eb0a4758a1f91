"""Draws accuracy against parallelism; needs matplotlib, the extra "plot"."""

from __future__ import annotations

import math
from pathlib import Path

from hasten.bench.parallel import LIMITS, Point, closed_form
from hasten.errors import ConfigError, MissingExtra

FORMATS = (".png", ".svg", ".pdf")
_COLUMNS = 4
_TICKS = (1, 2, 4, 8)


def require_plot(path: Path) -> None:
    """Raises ConfigError for a file that cannot be drawn, MissingExtra without matplotlib."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"plot={str(path)!r} cannot be drawn; choose a file ending in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise MissingExtra("drawing needs matplotlib: pip install 'hasten[plot]'") from problem


def draw_points(points: list[Point], size: int, path: Path, title: str) -> None:
    """One small plot a task, the mean over all first; dashed: the closed-form limits."""
    from matplotlib.figure import Figure

    tasks = ["mean", *dict.fromkeys(point.task for point in points if point.task != "mean")]
    rows = math.ceil((len(tasks) + 1) / _COLUMNS)  # the last place is the legend's
    figure = Figure(figsize=(3.6 * _COLUMNS, 3.1 * rows), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for family in dict.fromkeys(point.family for point in points):
            own = [one for one in points if (one.family, one.task) == (family, task)]
            own.sort(key=lambda one: one.tokens_per_forward)
            speeds, rights = [one.tokens_per_forward for one in own], [one.accuracy for one in own]
            axis.plot(speeds, rights, marker="o", markersize=3, linewidth=1, label=family)
        if task in LIMITS:
            limit = closed_form(task, size)
            axis.plot(*zip(*limit, strict=True), "k--", linewidth=1, label="ideal, random order")
        axis.set(title=task, xscale="log", ylim=(-0.03, 1.03))
        axis.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(tasks) :]:
        axis.set_axis_off()
    figure.supxlabel("tokens a forward")
    figure.supylabel("share of right answers")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    axes.flat[-1].legend(lines.values(), lines.keys(), loc="center")
    figure.savefig(path, dpi=140)
