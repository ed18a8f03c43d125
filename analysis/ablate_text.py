"""What `tunelab ablate` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunelab.tuning.progress import duration

from .text import console, percent

_COLUMNS = (
    "component",
    "change",
    "what",
    "train loss",
    "train acc",
    "val loss",
    "val acc",
    "change in val acc",
    "verdict",
)
_WORDS = 3  # so many of the columns are words


def print_ablation(found: Mapping[str, Any]) -> None:
    """The comparisons, the largest loss first, and how they were judged."""
    out = console()
    winner, runs = found["winner"], len(found["seeds"])
    out.print(
        f"trial {found['trial']} of {found['study']}, {found['epochs']} epochs, seeds: {runs}; "
        f"put back to: {found['baseline']}",
        style="bold",
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(_COLUMNS):
        words = place < _WORDS or name == "verdict"
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    table.add_row("(none)", "", "", *_figures(winner), "", Text(_troubles(winner)))
    for row in found["variants"]:
        verdict = row["verdict"] + (" *" if row["sure"] else "") + _troubles(row, own=row["own_spread"])
        names = (Text(row[name]) for name in ("component", "change_made", "what"))
        table.add_row(*names, *_figures(row), _interval(row), Text(verdict))
    out.print(table)
    for line in _notes(found):
        out.print(line)
    _print_rest(out, found)
    out.print(f"files: {found['folder']}/ablation.csv, ablation.json, ablation.png")


def print_listing(found: Mapping[str, Any]) -> None:
    """What would be trained."""
    out = console()
    seeds = len(found["seeds"])
    out.print(
        f"trial {found['trial']} of {found['study']} and {len(found['variants'])} variants of it, {found['epochs']} "
        f"epochs; put back to: {found['baseline']}",
        style="bold",
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS[:_WORDS]:
        table.add_column(name, overflow="fold")
    for row in found["variants"]:
        table.add_row(*(Text(row[name]) for name in ("component", "change_made", "what")))
    out.print(table)
    _print_rest(out, found)
    each = found["seconds_each"]
    time = "" if each is None else f", about {duration(each * found['trainings'])} of training if each is like trial "
    time += "" if each is None else str(found["trial"])
    done = f"; {found['trained']} of them are there already" if found["trained"] else ""
    out.print(f"{found['trainings']} trainings with {seeds} {'seed' if seeds == 1 else 'seeds'} each{time}{done}")


def _print_rest(out: Console, found: Mapping[str, Any]) -> None:
    """What there is no variant of."""
    if found["same"]:
        out.print(f"the same already: {', '.join(found['same'])}")
    for name, reason in found["left_out"].items():
        out.print(f"left out: {name}: {reason}")


def _notes(found: Mapping[str, Any]) -> list[str]:
    noise, compared = found["noise"], sum(row["change"] is not None for row in found["variants"])
    sure = sum(row["sure"] for row in found["variants"])
    judged = noise["source"] if noise["repeats"] else f"guessed from {noise['source']}"
    lines = [
        "helps: as it is, the component is better than without it or as in the baseline; means over the seeds, "
        f"95% intervals of the change in points (run-to-run noise {100 * noise['sd']:.2g}%, {judged})",
        f"of {compared} comparisons about {found['by_chance']:.1f} would be decided by chance alone; "
        f"* {sure} stand when all are taken together (Holm)",
    ]
    if any(row["diverged"] for row in (found["winner"], *found["variants"])):
        lines.append("a run that diverged counts as an accuracy of 0 and is in no loss")
    if any(row["own_spread"] for row in found["variants"]):
        lines.append("own spread: judged by that of its own runs, because it or the first row is far from the others'")
    if any(row["component"] in ("crop", "flip", "cutout", "mixup", "augmentation") for row in found["variants"]):
        lines.append("train loss and accuracy are of the images as they were augmented: without it they look better")
    return lines


def _figures(row: Mapping[str, Any]) -> list[str]:
    losses = {name: "-" if row[name] is None else f"{row[name]:.3f}" for name in ("train_loss", "val_loss")}
    return [losses["train_loss"], percent(row["train_accuracy"]), losses["val_loss"], percent(row["val_accuracy"])]


def _interval(row: Mapping[str, Any]) -> str:
    """The change and its interval in points: "-1.2 (-1.9 to -0.5)"."""
    if row["change"] is None:
        return "-"
    return f"{100 * row['change']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def _troubles(row: Mapping[str, Any], *, own: bool = False) -> str:
    said = [f"{row[name]} of {len(row['trials'])} {name}" for name in ("diverged", "failed") if row[name]]
    said += ["own spread"] if own and not said else []
    return f" ({', '.join(said)})" if said else ""
