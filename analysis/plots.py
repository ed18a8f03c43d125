"""Plots: each a pure data function and a function that draws it to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunelab.records import EpochMetrics


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


def _draw_runs(panel: Any, rows: Sequence[dict[str, Any]], column: str, colour: str) -> None:
    """One line per run, one legend entry for all; nothing if the column was never measured."""
    label: str | None = column.replace("_", " ")
    for run in sorted({row["run"] for row in rows}):
        points = [(row["epoch"], row[column]) for row in rows if row["run"] == run and row[column] is not None]
        if points:
            panel.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if len(points) < 3 else None)
            label = None
