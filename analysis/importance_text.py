"""What `tunelab importance` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import console, percent

SHOWN = 15
"""So many parameters of the importance are shown; `--json` has all (our choice)."""


def print_importance(shown: Mapping[str, Any]) -> None:
    """What mattered, for people: how it was compared, the importance, the answers, and what they are worth."""
    out = console()
    state = " (running)" if shown["running"] else ""
    out.print(f"{shown['study']}{state}: {_how(shown)}", style="bold")
    if not shown["compared"]:
        return
    _print_shares(out, shown)
    _print_answers(out, "answers", shown["answers"])
    if shown["own_space"]:
        _print_answers(out, "parameters of the space", shown["parameters"])
    for line in notes(shown):
        out.print(line)


def notes(shown: Mapping[str, Any]) -> list[str]:
    """What the data tell, in a sentence, and what is to be kept in mind with it."""
    asked = [*shown["answers"], *(shown["parameters"] if shown["own_space"] else ())]
    told = [f"{one['question']} ({one['verdict']})" for one in asked if one["tells"]]
    lines = [f"the data tell of: {'; '.join(told)}" if told else "the data cannot tell of any question"]
    if len(asked) > 1:
        sure = f"{100 * shown['confidence']:.0f}%"
        lines.append(
            f"each answer is at {sure} confidence by itself; of {len(asked)} questions some may seem answered by chance"
        )
    if shown["sampler"] not in (None, "random"):
        lines.append(
            f"the trials were chosen (sampler {shown['sampler']}), not drawn at random, and groups differ in other "
            "values too: take an answer for a hint, and test it with `tunelab search --grid`"
        )
    if shown["epochs"] < shown["full_length"]:
        lines.append(
            f"after {shown['epochs']} of {shown['full_length']} epochs: what is best early need not be best in the end "
            "(full length: how many of a group ran to the end; --epochs compares after others)"
        )
    return lines


def _how(shown: Mapping[str, Any]) -> str:
    """Which trials are compared, in one line."""
    if not shown["compared"]:
        return "no trial has been trained for an epoch yet"
    diverged = f", {shown['diverged']} of them diverged and count as 0%" if shown["diverged"] else ""
    return (
        f"{shown['compared']} of {shown['trials']} configurations compared after {shown['epochs']} of "
        f"{shown['full_length']} epochs{diverged}"
    )


def _print_shares(out: Console, shown: Mapping[str, Any]) -> None:
    """The importance of the parameters, what is farthest above chance first."""
    rows = [row for row in shown["importance"] if row["share"] is not None]
    if not rows:
        out.print(f"importance: too few configurations to tell ({shown['compared']}; {shown['fewest']} are needed)")
        return
    table = _table(("parameter", "importance", "above chance", "trials", "beyond"), left=("parameter",))
    for row in rows[:SHOWN]:
        clear = "yes" if row["beyond_chance"] else ""
        cells = percent(row["share"]), f"{row['above_chance']:+.1f} sd", str(row["trials"]), clear
        table.add_row(Text(row["parameter"]), *cells)
    out.print(table)
    more = f"; {len(rows) - SHOWN} more in --json" if len(rows) > SHOWN else ""
    few = len(shown["importance"]) - len(rows)
    left_out = f"; {few} parameters of fewer than {shown['fewest']} trials are left out" if few else ""
    out.print(f"importance for being among the best (PED-ANOVA, all together 100%){more}{left_out}")
    beyond = shown["beyond_chance"]
    found = f"{beyond['found']} of {len(rows)} parameters exceed all shuffles of the scores (beyond)"
    judged = "" if beyond["tells"] else ": the data cannot tell what was important"
    out.print(f"{found}, where chance alone would give {beyond['by_chance']:.1f}{judged}")


def _print_answers(out: Console, title: str, answers: Sequence[Mapping[str, Any]]) -> None:
    """One line for each value of each question; the verdict stands beside the first."""
    if not answers:
        return
    table = _table(
        (title, "value", "trials", "val acc", "95% interval", "full length", "verdict"), left=(title, "verdict")
    )
    for one in answers:
        for at, row in enumerate(one["values"]):
            table.add_row(
                Text("" if at else one["question"]),
                Text(row["value"]),
                str(row["trials"]),
                percent(row["mean"]),
                _interval(row),
                str(row["full_length"]),
                Text("" if at else one["verdict"]),
            )
    out.print(table)


def _table(names: Iterable[str], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table


def _interval(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "-"
    return f"{100 * max(0.0, row['low']):.1f} to {100 * min(1.0, row['high']):.1f}"
