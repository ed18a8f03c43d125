"""What `tunelab compare` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import console, percent, print_rows


def print_comparison(shown: Mapping[str, Any]) -> None:
    """Studies side by side, for people: on what grounds, at equal epochs, at equal time, the winners."""
    out = console()
    out.print(f"compared on {', '.join(shown['grounds'])}", style="bold")
    for warning in shown["warnings"]:
        out.print(f"note: {warning}")
    print_rows(
        [
            {
                "study": one["study"],
                "space": one["space"],
                "sampler": one["sampler"],
                "scheduler": one["scheduler"],
                "full length": one["full_length"],
                "trials": one["trials"],
                "epochs trained": one["epochs_trained"],
                "seconds": round(one["seconds"]),
            }
            for one in shown["studies"]
        ]
    )
    names = [one["study"] for one in shown["studies"]]
    _print_budgets(out, "epochs", "at equal epochs", names, shown["by_epochs"])
    _print_budgets(out, "seconds", "at equal time", names, shown["by_seconds"])
    if shown["winners"]:
        _print_winners(out, shown["winners"])
    out.print(shown["verdict"])


def _print_budgets(
    out: Console, unit: str, title: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """The best score of each study by each budget."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(unit, justify="right")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in rows:
        table.add_row(f"{row['budget']:.4g}", *[percent(score) for score in row["scores"]])
    out.print(f"{title}: the best score measured until all trials together were trained for so many {unit}")
    out.print(table)


def _print_winners(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The winners side by side, each expected without the luck of having been chosen."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("winner of", "trial", "val acc", "expected", "runs", "tie", "what"):
        table.add_column(name, justify="left" if name in ("winner of", "what") else "right", overflow="fold")
    for row in rows:
        interval = f"{percent(row['expected'])} ({100 * max(0.0, row['low']):.1f} to {100 * min(1.0, row['high']):.1f})"
        tie = "=" if row["tied"] and len(rows) > 1 else ""
        cells = [str(row["trial"]), percent(row["score"]), interval, str(row["runs"]), tie]
        table.add_row(Text(row["study"]), *cells, Text(row["what"]))
    out.print(table)
