"""The plot of an ablation: what each change did to the validation accuracy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tunelab.files import write_atomically

from .judging import HELPS, HURTS

_COLOURS: Final = {HELPS: "tab:green", HURTS: "tab:red"}
_OTHERS: Final = "tab:gray"


def effects(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per comparison, in the order given: label, change with low and high in points (percent), verdict, beyond.

    Comparisons without numbers are left out. `beyond` marks those of a configuration that diverged at times, if there
    are others: they lie so far off that they are drawn at the edge.
    """
    there = [row for row in rows if row["change"] is not None]
    sound = any(not row["diverged"] for row in there)
    return [
        {
            "label": f"{row['component']}, {row['change_made']}",
            "change": 100 * row["change"],
            "low": 100 * row["low"],
            "high": 100 * row["high"],
            "verdict": row["verdict"],
            "sure": row["sure"],
            "beyond": bool(row["diverged"]) and sound,
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
            panel.text(side * 0.96 * edge, place, f"{row['change']:+.1f}, diverged", ha=at, va="center", fontsize=8)
            continue
        spread = [[row["change"] - row["low"]], [row["high"] - row["change"]]]
        face = colour if row["sure"] else "white"
        panel.errorbar([row["change"]], [place], xerr=spread, color=colour, marker="o", markerfacecolor=face, capsize=3)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(-edge, edge)
    panel.set_xlabel(
        "change in validation accuracy (points, 95% interval)\n"
        "green: the component helps; red: it hurts; filled: also with all comparisons taken together"
    )
    panel.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
