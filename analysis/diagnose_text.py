"""What `tunelab diagnose` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from .diagnose import describe_divergence
from .text import console, print_rows

_NAMED = 12  # trials of a finding that are listed by number


def print_trial_diagnosis(shown: Mapping[str, Any]) -> None:
    """The story of one trial for people."""
    out = console()
    ending = f" ({shown['reason']})" if shown["reason"] else ""
    out.print(f"trial {shown['trial']} of {shown['study']}: {shown['status'].lower()}{ending}", style="bold")
    out.print(shown["curve"])
    if shown["healthy"]:
        out.print("nothing is wrong with it")
    elif not shown["watched"]:
        out.print("it was trained without being looked at: only its curve is known")
    _print_findings(out, shown["findings"])
    for text in shown["change"]:
        out.print(f"what to change first: {text}")
    for remark in shown["remarks"]:
        out.print(f"remark, epoch {remark['epoch']}: {remark['what']}: {remark['suggestion']}")
    if shown["layers"]:
        at = shown["looked_at"]
        out.print(f"its layers in epoch {at['epoch']}, step {at['step']} of {at['steps']}:", style="bold")
        print_rows(shown["layers"])


def _print_findings(out: Console, findings: Sequence[Mapping[str, Any]]) -> None:
    for epoch in sorted({finding["epoch"] for finding in findings}):
        out.print(f"found in epoch {epoch}, causes first:", style="bold")
        for finding in findings:
            if finding["epoch"] == epoch:
                at = f"step {finding['step']}: " if finding["step"] else ""
                hope = "; hopeless" if finding["hopeless"] else ""
                out.print(f"  {at}{finding['what']}{hope}")
                out.print(f"    {finding['suggestion']}")


def print_study_diagnosis(shown: Mapping[str, Any]) -> None:
    """Which findings occurred in which trials, for people."""
    out = console()
    well = f"nothing is wrong with {len(shown['well'])} of {shown['trials']} trials"
    out.print(f"{shown['study']}: {well}", style="bold")
    if shown["unknown"]:
        out.print(f"not looked at while they were trained: {name_trials(shown['unknown'])}")
    if shown["diverged"]:
        out.print(describe_divergence(shown["diverged"]))
    if not shown["findings"]:
        return
    rows = [
        {
            "finding": row["finding"] + (" (remark)" if row["remark"] else ""),
            "trials": name_trials(row["trials"]),
            "for example": row["example"],
            "what to do": row["suggestion"],
        }
        for row in shown["findings"]
    ]
    print_rows(rows)
    out.print(f"next: tunelab diagnose {shown['study']} TRIAL")


def name_trials(numbers: Sequence[int]) -> str:
    """The numbers of trials, the first of many: "3, 7, 12 and 5 more"."""
    listed = ", ".join(map(str, numbers[:_NAMED]))
    more = len(numbers) - _NAMED
    return f"{listed} and {more} more" if more > 0 else listed
