"""Plots: each a pure data function and a function that draws it to a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunelab.records import EpochMetrics
from tunelab.standings import Place
from tunelab.tuning.objectives import COSTS, costs_of

from .canvas import log_axis

if TYPE_CHECKING:  # it loads torch, and these plots are drawn where nothing else does
    from tunelab.tuning.profile import Point

_WIDE = 20  # values that lie further apart than this are drawn on a logarithmic axis; our choice


def learning_curve(histories: Sequence[Sequence[EpochMetrics]]) -> list[dict[str, Any]]:
    """One row per run and epoch: run, epoch, losses, accuracies, lr. Values that were not measured are None."""
    return [
        {
            "run": run,
            "epoch": metrics.epoch,
            "train_loss": metrics.train_loss,
            "val_loss": metrics.val_loss,
            "train_accuracy": metrics.train_accuracy,
            "val_accuracy": metrics.val_accuracy,
            "lr": metrics.lr,
        }
        for run, history in enumerate(histories)
        for metrics in history
    ]


def draw_learning_curve(rows: Sequence[dict[str, Any]], path: Path, title: str, test_accuracy: float | None) -> None:
    """Draws loss, accuracy and learning rate against the epoch to a PNG file.

    Args:
        rows: what `learning_curve` gives.
        path: the file to write.
        title: the heading.
        test_accuracy: a dashed line in the accuracy panel, None for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for panel, (name, names) in zip(
        panels,
        {
            "loss": ("train_loss", "val_loss"),
            "accuracy": ("train_accuracy", "val_accuracy"),
            "learning rate": ("lr",),
        }.items(),
        strict=True,
    ):
        for column, colour in zip(names, ("tab:blue", "tab:orange"), strict=False):
            _draw_runs(panel, rows, column, colour)
        if name == "accuracy" and test_accuracy is not None:
            panel.axhline(test_accuracy, color="tab:green", linestyle="--", label=f"test {100 * test_accuracy:.1f}%")
        panel.set(xlabel="epoch", ylabel=name)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def pareto(
    ranked: Sequence[Place], front: Sequence[Mapping[str, Any]], objectives: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per cost and configuration of the longest full length: cost, value, accuracy, whether it is on the front.

    Args:
        ranked: the ranking of a study.
        front: the configurations that no other beats; each has a `trial`.
        objectives: the accuracy, then names of costs.
    """
    on_front = {row["trial"] for row in front}
    return [
        {
            "cost": name,
            "trial": place.trial.number,
            "value": costs_of(place.trial)[name],
            "accuracy": place.standing.expected,
            "low": place.standing.low,
            "high": place.standing.high,
            "front": place.trial.number in on_front,
        }
        for name in objectives[1:]
        for place in ranked
        if place.epochs == ranked[0].epochs and name in costs_of(place.trial)
    ]


def draw_pareto(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draws accuracy against each cost to a PNG file: all configurations, and those that no other beats with intervals.

    Args:
        rows: what `pareto` gives.
        path: the file to write.
        title: the heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["cost"] for row in rows))
    figure = Figure(figsize=(1 + 4.5 * len(names), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = [row for row in rows if row["cost"] == name]
        best = sorted((row for row in mine if row["front"]), key=lambda row: row["value"])
        heights = [100 * row["accuracy"] for row in mine]
        panel.scatter([row["value"] for row in mine], heights, s=12, color="tab:gray")
        values, heights = [row["value"] for row in best], [100 * row["accuracy"] for row in best]
        spread = (  # no accuracy lies outside 0 to 100%
            [100 * (row["accuracy"] - max(0.0, row["low"])) for row in best],
            [100 * max(0.0, min(1.0, row["high"]) - row["accuracy"]) for row in best],
        )
        panel.errorbar(values, heights, yerr=spread, color="tab:blue", marker="o", markersize=4, capsize=2)
        for row in _apart(best):
            place = (row["value"], 100 * row["accuracy"])
            panel.annotate(str(row["trial"]), place, xytext=(4, -11), textcoords="offset points", fontsize=8)
        panel.set(xlabel=f"{name} ({COSTS[name]})", ylabel="validation accuracy (%)")
        log_axis(panel.xaxis)
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _apart(best: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a front that have room for a label: the dearest, then each that is a tenth of the axis away."""
    named: list[dict[str, Any]] = []
    least = (best[-1]["value"] / best[0]["value"]) ** 0.1 if best else 1.0
    for row in reversed(best):
        if not named or row["value"] * least <= named[-1]["value"]:
            named.append(row)
    return named


def epoch_time(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per measured point: line (device and threads), batch_size, value (seconds per epoch)."""
    return [
        {"line": point.setting.line, "batch_size": point.setting.batch_size, "value": point.figures.epoch}
        for point in points
        if point.figures is not None
    ]


def peak_memory(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One row per measured point and memory: line, batch_size, value (MiB); on a GPU its memory and the host's."""
    rows = []
    for point in points:
        if point.figures is None:
            continue
        line, size = point.setting.line, point.setting.batch_size
        device = point.figures.device_memory
        if device is not None:
            rows.append({"line": f"{line}: on the GPU", "batch_size": size, "value": device})
        host = line if device is None else f"{line}: on the host"
        rows.append({"line": host, "batch_size": size, "value": point.figures.host_memory})
    return rows


def draw_by_batch_size(rows: Sequence[dict[str, Any]], path: Path, title: str, label: str) -> None:
    """Draws one line for each device and number of threads against the batch size to a PNG file.

    Args:
        rows: what `epoch_time` or `peak_memory` gives.
        path: the file to write.
        title: the heading.
        label: what the values are, with their unit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for line, marker in zip(dict.fromkeys(row["line"] for row in rows), itertools.cycle("osD^v")):
        mine = sorted((row["batch_size"], row["value"]) for row in rows if row["line"] == line)
        panel.plot(*zip(*mine, strict=True), marker=marker, markersize=5, label=line)
    sizes = sorted({row["batch_size"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    values = [row["value"] for row in rows]
    if min(values) * _WIDE < max(values):
        panel.set_yscale("log")
    else:
        panel.set_ylim(0, 1.08 * max(values))
    panel.set(xlabel="batch size (images)", ylabel=label)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw_runs(panel: Any, rows: Sequence[dict[str, Any]], column: str, colour: str) -> None:
    """One line per run, one legend entry for all; nothing if the column was never measured."""
    label: str | None = column.replace("_", " ")
    for run in sorted({row["run"] for row in rows}):
        points = [(row["epoch"], row[column]) for row in rows if row["run"] == run and row[column] is not None]
        if points:
            panel.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if len(points) < 3 else None)
            label = None
