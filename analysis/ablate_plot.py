"""The plot of an ablation: what each change did to the validation accuracy."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunelab.files import write_atomically

from .judging import HELPS, HURTS

_COLOURS: Final = {HELPS: "tab:green", HURTS: "tab:red"}
_OTHERS: Final = "tab:gray"
_FAR: Final = 5.0  # a change of so many times what is usual here is drawn at the edge, with its value; our choice


def effects(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per comparison, in the order given: label, change with low and high in points (percent), verdict, beyond.

    Comparisons without numbers are left out. `beyond` marks changes that lie so far off that they are drawn at the
    edge, lest the others cannot be told apart beside them: the usual is the median of how far the intervals reach.
    """
    there = [row for row in rows if row["change"] is not None]
    usual = statistics.median(max(abs(row["low"]), abs(row["high"])) for row in there) if there else 0.0
    return [
        {
            "label": f"{row['component']}, {row['change_made']}",
            "change": 100 * row["change"],
            "low": 100 * row["low"],
            "high": 100 * row["high"],
            "verdict": row["verdict"],
            "sure": row["sure"],
            "diverged": row["diverged"],
            "beyond": abs(row["change"]) > _FAR * usual,
        }
        for row in there
    ]


def draw_effects(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the changes with their intervals to a PNG file, the first at the top; nothing where there are none.

    Args:
        rows: what `effects` gives.
        path: the file to write.
        title: the heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        return
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    edge = 1.15 * max(max(abs(row["low"]), abs(row["high"])) for row in rows if not row["beyond"])
    for place, row in enumerate(rows):
        colour = _COLOURS.get(row["verdict"], _OTHERS)
        if row["beyond"]:
            side = -1 if row["change"] < 0 else 1
            panel.plot([side * edge], [place], marker="<" if side < 0 else ">", color=colour, clip_on=False)
            at = "left" if side < 0 else "right"
            said = f"{row['change']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"
            said += f", {row['diverged']} diverged" if row["diverged"] else ""
            panel.text(side * 0.96 * edge, place, said, ha=at, va="center", fontsize=8)
            continue
        spread = [[row["change"] - row["low"]], [row["high"] - row["change"]]]
        face = colour if row["sure"] else "white"
        panel.errorbar([row["change"]], [place], xerr=spread, color=colour, marker="o", markerfacecolor=face, capsize=3)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(-edge, edge)
    figure.supxlabel(
        "change in validation accuracy (points, 95% interval)\n"
        "green: the component helps; red: it hurts; filled: also with all comparisons taken together",
        fontsize=9,
    )
    panel.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
