"""How a study went: its trials over time, their learning curves, the rungs, and where the hours went."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunelab.errors import NothingToDrawError
from tunelab.journal import read_journal
from tunelab.noise import counted_epochs, full_length
from tunelab.record_checks import KINDS
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, proposed

from .canvas import COLOURS, SERIES, Rows, is_wide, log_axis, new_figure, percents, sample, save, thin, whole_numbers
from .rank import rung_table

MOST_CURVES = 90
"""So many learning curves are drawn at most: more cannot be told apart (our choice)."""
MOST_EPOCHS = 400
"""So many epochs of a learning curve are drawn at most, the highest and lowest of their neighbours (our choice)."""
MOST_POINTS = 3000
"""So many trials are drawn at most as points (our choice)."""
PAUSE = 60.0
"""Seconds without a line in the record that are a pause, if they are three times the longest epoch too (our choice)."""
BY_NORM = " / norm"
"""Behind the name of a schedule whose rate is divided by the norm of the weights."""
_SCORE = "validation accuracy (%)"


def history(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per configuration: its last score, and the best score of full length by then, by number and by time.

    `hours` is when the trial last reported, in hours of searching, pauses left out; None where the record has no times.

    Raises:
        NothingToDrawError: no trial has ended an epoch yet.
    """
    scored = _scored(proposed(trials))
    hours = working_hours(study)
    rows = [_history_row(trial, hours.get(trial.number)) for trial in scored]
    for order, column in (("trial", "best"), ("hours", "best_by_then")):
        best = None
        for row in sorted((one for one in rows if one[order] is not None), key=lambda one: one[order]):
            if row["status"] == "completed" and (best is None or row["score"] > best):
                best = row["score"]
            row[column] = best
    kept = {trial.number for trial in sample(scored, MOST_POINTS)}
    return [row for row in rows if row["trial"] in kept]


def _history_row(trial: Trial, hours: float | None) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "status": trial.status.value.lower(),
        "epochs": len(trial.epochs),
        "hours": hours,
        "score": trial.score,
        "best": None,
        "best_by_then": None,
    }


def working_hours(study: Study) -> dict[int, float]:
    """When each trial last reported, in hours of searching since the first line of the record; pauses do not count."""
    last: dict[int, float] = {}
    before: float | None = None
    worked = longest = 0.0
    for event in read_journal(study.path / "journal.jsonl"):
        if "time" not in event or event["event"] not in KINDS:
            continue
        longest = max(longest, event.get("metrics", {}).get("seconds", 0.0))
        step = 0.0 if before is None else event["time"] - before
        if 0 < step <= max(PAUSE, 3 * longest):
            worked += step
        before = event["time"]
        if event["event"] == "result":
            last[event["trial"]] = worked / 3600
    return last


def draw_history(rows: Rows, path: Path, title: str) -> None:
    """Draws all scores, and the best of full length so far, against the trial's number and against the time."""
    panels = [("trial", 1, "trial", "best")]
    latest = max((row["hours"] for row in rows if row["hours"] is not None), default=None)
    if latest is not None:
        unit, scale = ("hours", 1) if latest >= 1 else ("minutes", 60)
        panels.append(("hours", scale, f"{unit} of searching", "best_by_then"))
    figure, axes = new_figure(10, 3.6 * len(panels) + 0.4, len(panels))
    for panel, (column, scale, label, best) in zip(axes, panels, strict=True):
        placed = [row for row in rows if row[column] is not None]
        for status, colour in COLOURS.items():
            mine = [row for row in placed if row["status"] == status]
            if mine:
                values = percents(row["score"] for row in mine)
                panel.scatter(
                    [scale * row[column] for row in mine], values, s=18, color=colour, label=status, alpha=0.8
                )
        known = sorted((scale * row[column], 100 * row[best]) for row in placed if row[best] is not None)
        if known:
            panel.step(*zip(*known, strict=True), where="post", color="black", linewidth=1.3, label="best so far")
        panel.set(xlabel=label, ylabel=_SCORE)
    whole_numbers(axes[0].xaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path, title)


def curves(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per trial and epoch: the score, how the trial stands, and what was decided there if it is a rung.

    Of a long training some epochs, and all rungs.

    Raises:
        NothingToDrawError: no trial has ended an epoch yet.
    """
    rows = []
    for trial in sample(_scored(trials), MOST_CURVES):
        decided = {int(one["epoch"]): one for one in trial.decisions}
        kept = {metrics.epoch for metrics in thin(trial.epochs, MOST_EPOCHS, lambda one: one.score)}
        rows += [
            {
                "trial": trial.number,
                "status": trial.status.value.lower(),
                "epoch": metrics.epoch,
                "score": metrics.score,
                "rung": _verdict(decided.get(metrics.epoch)),
            }
            for metrics in trial.epochs
            if metrics.epoch in decided or metrics.epoch in kept
        ]
    return rows


def _verdict(decision: dict[str, Any] | None) -> str:
    if decision is None:
        return ""
    return "stopped" if decision["stop"] else "paused" if decision.get("pause") else "went on"


def draw_curves(rows: Rows, path: Path, title: str) -> None:
    """Draws a line per trial in the colour of its status, an x where one was stopped, the rungs as vertical lines."""
    figure, (panel,) = new_figure(10, 5.2)
    by_trial: dict[int, Rows] = {}
    for row in rows:
        by_trial.setdefault(row["trial"], []).append(row)
    ends: set[str] = set()
    for mine in sorted(by_trial.values(), key=len):  # those that went far lie above the others
        status = mine[0]["status"]
        label = None if status in ends else status
        ends.add(status)
        points = [row["epoch"] for row in mine], percents(row["score"] for row in mine)
        panel.plot(*points, color=COLOURS[status], linewidth=1, alpha=0.75, label=label, marker=".", markersize=3)
    cut = [row for row in rows if row["rung"] == "stopped"]
    if cut:
        places = [row["epoch"] for row in cut], percents(row["score"] for row in cut)
        panel.scatter(*places, marker="x", s=26, color="black", linewidth=0.9, label="stopped at a rung", zorder=3)
    for number, rung in enumerate(sorted({row["epoch"] for row in rows if row["rung"]})):
        panel.axvline(rung, color="#666666", linestyle=":", linewidth=1.2, label=None if number else "rung")
    panel.set(xlabel="epoch", ylabel=_SCORE)
    whole_numbers(panel.xaxis)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path, title)


def survival(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per rung, and one for the full length: how many trials came there, went on, were stopped, and wait.

    Repeats do not count: no rung stops them.

    Raises:
        NothingToDrawError: no trial was compared at a rung.
    """
    own = proposed(trials)
    rows: Rows = [dict(row) for row in rung_table(own)]
    if not rows:
        raise NothingToDrawError("no trial was compared at a rung")
    whole = [trial for trial in own if trial.status is TrialStatus.COMPLETED]
    if whole:
        end = max(counted_epochs(trial) for trial in whole)
        count = sum(counted_epochs(trial) == end for trial in whole)
        rows.append({"epoch": end, "reached": count, "kept": count, "stopped": 0, "paused": 0})
    return rows


def draw_survival(rows: Rows, path: Path, title: str) -> None:
    """Draws a bar per rung, divided into the trials that went on, were stopped, and wait."""
    figure, (panel,) = new_figure(10, 1.6 + 0.55 * len(rows))
    names = [f"epoch {row['epoch']}" for row in rows]
    left = [0] * len(rows)
    parts = (("kept", "completed", "went on, or full length"), ("stopped", "stopped", "stopped"))
    for column, status, label in (*parts, ("paused", "paused", "waiting")):
        widths = [row[column] for row in rows]
        if not any(widths):
            continue
        bars = panel.barh(names, widths, left=left, color=COLOURS[status], label=label)
        panel.bar_label(bars, [str(width) if width else "" for width in widths], label_type="center", color="white")
        left = [one + width for one, width in zip(left, widths, strict=True)]
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set(xlabel="trials")
    whole_numbers(panel.xaxis)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path, title)


def hours(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per way to end: how many trials, their epochs and their hours of training; repeats are counted apart.

    Raises:
        NothingToDrawError: no trial has ended an epoch yet.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in _scored(trials):
        name = trial.status.value.lower() if trial.repeat_of is None else "repeats"
        groups.setdefault(name, []).append(trial)
    return [
        {
            "trials_that": name,
            "trials": len(groups[name]),
            "epochs": sum(len(trial.epochs) for trial in groups[name]),
            "hours": sum(metrics.seconds for trial in groups[name] for metrics in trial.epochs) / 3600,
        }
        for name in (*COLOURS, "repeats")
        if name in groups
    ]


def draw_hours(rows: Rows, path: Path, title: str) -> None:
    """Draws the hours of training as a bar per way to end, with their share."""
    figure, (panel,) = new_figure(10, 1.4 + 0.5 * len(rows))
    whole = sum(row["hours"] for row in rows)
    colours = [COLOURS.get(row["trials_that"], "#666666") for row in rows]
    bars = panel.barh([f"{row['trials_that']} ({row['trials']})" for row in rows], percents_of(rows, whole))
    for bar, colour, row in zip(bars, colours, rows, strict=True):
        bar.set_color(colour)
        told = f" {100 * row['hours'] / whole:.0f}%, {duration(row['hours'])}" if whole else " 0 s"
        panel.text(bar.get_width(), bar.get_y() + bar.get_height() / 2, told, va="center")
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set(xlabel="share of the time of training (%)", xlim=(0, 125), xticks=range(0, 101, 20))
    save(figure, path, title)


def percents_of(rows: Rows, whole: float) -> list[float]:
    """The hours of rows as percentages of the whole."""
    return [100 * row["hours"] / whole if whole else 0.0 for row in rows]


def duration(hours: float) -> str:
    """A time in the unit that suits it: "12 s", "3.4 min", "5.6 h"."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def effort(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per trial: its cost on paper, and the seconds per epoch (the median) and peak memory that it took.

    Raises:
        NothingToDrawError: no trial has ended an epoch yet, or none has its multiply-adds counted.
    """
    counted = [trial for trial in _scored(trials) if trial.stats.get("mflops") is not None]
    if not counted:
        raise NothingToDrawError("the multiply-adds of no trial are known")
    return [
        {
            "trial": trial.number,
            "status": trial.status.value.lower(),
            "mflops": trial.stats["mflops"],
            "params": trial.stats.get("params"),
            "seconds_per_epoch": statistics.median(metrics.seconds for metrics in trial.epochs),
            "peak_memory_mib": max(metrics.peak_memory_mib for metrics in trial.epochs),
        }
        for trial in sample(counted, MOST_POINTS)
    ]


def draw_effort(rows: Rows, path: Path, title: str) -> None:
    """Draws the seconds per epoch and the peak memory against the multiply-adds."""
    figure, axes = new_figure(10, 4, 1, 2)
    labels = {"seconds_per_epoch": "seconds per epoch", "peak_memory_mib": "peak memory (MiB)"}
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        for status, colour in COLOURS.items():
            mine = [row for row in rows if row["status"] == status]
            if mine:
                values = [row["mflops"] for row in mine], [row[column] for row in mine]
                panel.scatter(*values, s=18, color=colour, label=status, alpha=0.8)
        panel.set(xlabel="million multiply-adds per image", ylabel=label)
        if is_wide(row["mflops"] for row in rows):
            log_axis(panel.xaxis)
        if is_wide(row[column] for row in rows):
            log_axis(panel.yaxis)
        else:
            panel.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save(figure, path, title)


def schedules(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per schedule and epoch: the median score of the trials of full length, and the best one's learning rate.

    `lr_share` is the rate as a share of the trial's peak rate. Only the longest full length counts, and of a long one
    some epochs.

    Raises:
        NothingToDrawError: the trials of full length have one schedule, or there are none.
    """
    groups: dict[str, list[Trial]] = {}
    whole = [trial for trial in trials if trial.status is TrialStatus.COMPLETED and trial.epochs]
    end = max((full_length(trial) for trial in whole), default=0)
    for trial in whole:
        if full_length(trial) == counted_epochs(trial) == end and "schedule" in trial.config.get("train", {}):
            schedule = trial.config["train"]["schedule"]
            name = str(schedule["name"]) + (BY_NORM if schedule.get("by_norm") else "")
            groups.setdefault(name, []).append(trial)
    if len(groups) < 2:
        only = f"all trials of full length have the schedule {next(iter(groups))}" if groups else "none ran in full"
        raise NothingToDrawError(f"there are no two schedules to compare: {only}")
    rows: Rows = []
    for name, mine in sorted(groups.items(), key=lambda one: -max(trial.score or 0 for trial in one[1])):
        best = max(mine, key=lambda trial: trial.score or 0)
        rates = [metrics.lr for metrics in best.epochs]
        rates += rates[-1:] * (end - len(rates))  # of one that ended early the last goes on, as do scores
        peak = max(rates) if name.endswith(BY_NORM) else float(best.config["train"]["lr"])
        for place in thin(range(end), MOST_EPOCHS, rates.__getitem__):
            scores = [trial.epochs[: place + 1][-1].score for trial in mine]
            rows.append(
                {
                    "schedule": name,
                    "epoch": place + 1,
                    "trials": len(mine),
                    "median_score": statistics.median(scores),
                    "best_trial": best.number,
                    "lr_share": rates[place] / peak,
                }
            )
    return rows


def draw_schedules(rows: Rows, path: Path, title: str) -> None:
    """Draws the median score and the learning rate of each schedule against the epoch."""
    figure, axes = new_figure(10, 4.4, 1, 2)
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    shapes = list(dict.fromkeys(name.removesuffix(BY_NORM) for name in names))
    for name in names:
        mine = [row for row in rows if row["schedule"] == name]
        epochs = [row["epoch"] for row in mine]
        style: dict[str, Any] = {
            "color": SERIES[shapes.index(name.removesuffix(BY_NORM)) % len(SERIES)],
            "linestyle": "--" if name.endswith(BY_NORM) else "-",
            "marker": "o" if len(mine) < 3 else None,
        }
        label = f"{name} ({mine[0]['trials']})"
        axes[0].plot(epochs, percents(row["median_score"] for row in mine), label=label, **style)
        axes[1].plot(epochs, percents(row["lr_share"] for row in mine), **style)
    axes[0].set(xlabel="epoch", ylabel="median " + _SCORE)
    axes[1].set(xlabel="epoch", ylabel="learning rate (% of its peak)")
    for panel in axes:
        whole_numbers(panel.xaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path, title)


def _scored(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with at least one epoch."""
    found = [trial for trial in trials if trial.epochs]
    if not found:
        raise NothingToDrawError("no trial has ended an epoch yet")
    return found
