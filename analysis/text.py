"""What the commands print: tables and short summaries for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunelab.errors import TunelabError
from tunelab.records import Trial
from tunelab.study import Study, count_statuses, rank

from .rank import describe_config, ranking, rung_table

_PLAIN_WIDTH = 10_000


def console() -> Console:
    """Standard output; wide where it is not a terminal, so that no row is folded in a file."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table whose columns are the rows' keys."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*[Text(_cell(value)) for value in row.values()])
    console().print(table)


def print_best(shown: Mapping[str, Any]) -> None:
    """What `tunelab best` says: the ranking, and how the other trials ended."""
    out = console()
    state = " (running)" if shown["running"] else ""
    out.print(f"{shown['study']}{state}: {_ends(shown['statuses'], shown['asked'])}", style="bold")
    if not shown["ranking"]:
        out.print("no trial has run its full length yet")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rank", "trial", "val acc", "epochs", "params", "Mflops", "seconds", "what"):
        table.add_column(name, justify="left" if name == "what" else "right", overflow="fold")
    for row in shown["ranking"]:
        table.add_row(
            str(row["rank"]),
            str(row["trial"]),
            percent(row["score"]),
            str(row["epochs"]),
            count(row["params"]),
            f"{row['mflops']:.1f}",
            f"{row['seconds']:.0f}",
            Text(row["what"]),
        )
    out.print(table)
    out.print(f"trials of full length only; {_rungs(shown['rungs'])}")
    out.print(f"next: tunelab best {shown['study']} --retrain --epochs 150")


def print_retrained(metrics: Mapping[str, Any]) -> None:
    """What a retraining came to."""
    out = console()
    runs = len(metrics["seeds"])
    spread = f" +- {100 * metrics['test_accuracy_std']:.1f}" if metrics["test_accuracy_std"] is not None else ""
    seen = "that earlier trainings were scored on too" if metrics["test_reads_before"] else "never seen before"
    times = "once" if runs == 1 else f"{runs} times"
    out.print(
        f"test accuracy {percent(metrics['test_accuracy'])}{spread} on {metrics['test_images']} images "
        f"{seen} (trial {metrics['trial']}, {metrics['epochs']} epochs on {metrics['trained_on']}, "
        f"trained {times})"
    )
    out.print(
        f"the search had measured {percent(metrics['search_val_accuracy'])} on its validation images "
        f"after {metrics['search_epochs']} epochs"
    )
    if metrics["test_reads_before"]:
        out.print(
            f"note: {metrics['test_reads_before']} other trainings of this study have been scored on the test images; "
            "choosing among them makes the best one's score too high"
        )
    out.print(f"model: {metrics['folder']}")


def study_rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """One row per study for `tunelab list`."""
    rows = []
    for study in studies:
        trials, damaged = _trials_or_damage(study)
        ranked = rank(trials)
        rows.append(
            {
                "study": study.name,
                "space": study.info["space"]["name"] if "space" in study.info else study.info["kind"],
                "data": study.info["data"]["name"],
                "created": study.info["created"],
                "state": damaged or _state(study, trials),
                "trials": f"{sum(trial.status.ended for trial in trials)}/{study.info['options']['trials']}",
                "best": ranked[0].score if ranked else None,
            }
        )
    return rows


def _trials_or_damage(study: Study) -> tuple[list[Trial], str]:
    """The trials, and a word if their record is damaged: a list goes on with the next study."""
    try:
        return study.list_trials(), ""
    except TunelabError:
        return [], "damaged"


def study_summary(study: Study) -> dict[str, Any]:
    """What `tunelab show STUDY` tells: what was asked for, on what, and how it stands."""
    trials = study.list_trials()
    return {
        **study.info,
        "path": str(study.path),
        "state": _state(study, trials),
        "statuses": {status.value: number for status, number in count_statuses(trials).items()},
        "rungs": rung_table(trials),
        "trials": [
            {"trial": trial.number, "status": trial.status.value, "epochs": len(trial.epochs), "score": trial.score}
            for trial in trials
        ],
        "best": next(iter(ranking(trials, 1)), None),
    }


def print_study(study: Study, shown: Mapping[str, Any]) -> None:
    """A study for people."""
    out = console()
    data, options, hardware = shown["data"], shown["options"], shown["hardware"]
    out.print(f"{shown['path']}, {shown['state']}: {_ends(shown['statuses'], options['trials'])}", style="bold")
    if "space" in shown:
        out.print(f"space     {shown['space']['name']} (version {shown['space']['version']})")
    counts = ", ".join(f"{number} {split}" for split, number in data["counts"].items())
    height, width = data["image_size"]
    out.print(
        f"data      {data['name']}, {height}x{width}x{data['channels']}, {len(data['classes'])} classes, {counts}"
    )
    out.print(f"options   {_options(options)}")
    out.print(
        f"machine   {hardware['processor']}, {hardware['cpus']} CPUs, GPUs: {', '.join(hardware['gpus']) or 'none'}"
    )
    out.print(f"rungs     {_rungs(shown['rungs'])}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "status", "epochs", "val acc", "what", "reason"):
        table.add_column(name, overflow="fold")
    for trial in study.list_trials():
        table.add_row(
            str(trial.number),
            trial.status.value.lower(),
            str(len(trial.epochs)),
            percent(trial.score),
            Text(describe_config(trial.config)),
            Text(trial.reason),
        )
    out.print(table)


def print_trial(study: Study, trial: Trial) -> None:
    """A trial for people: what it was made of, every epoch, every decision."""
    out = console()
    ending = f" ({trial.reason})" if trial.reason else ""
    out.print(f"trial {trial.number} of {study.path}: {trial.status.value.lower()}{ending}", style="bold")
    out.print(describe_config(trial.config))
    size = f"{count(trial.stats.get('params'))} parameters, {trial.stats.get('mflops', 0):.1f} million multiply-adds"
    out.print(f"{size}, architecture {trial.arch_id}, files in {study.trial_folder(trial.number)}")
    if trial.params:
        out.print(", ".join(f"{name}={_cell(value)}" for name, value in trial.params.items()))
    if trial.epochs:
        print_rows([metrics.to_json() for metrics in trial.epochs])
    for decision in trial.decisions:
        verdict = "stopped" if decision["stop"] else "went on"
        out.print(
            f"rung at epoch {decision['epoch']}: {verdict} with {percent(decision['score'])} "
            f"({decision['why']}; the last that goes on has {percent(decision['cutoff'])})"
        )


def percent(score: float | None) -> str:
    """A score in percent with one decimal, or a dash."""
    return "-" if score is None else f"{100 * score:.1f}%"


def count(number: int | None) -> str:
    """A number of parameters in thousands or millions."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.1f}k"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _state(study: Study, trials: Sequence[Trial]) -> str:
    if study.running:
        return "running"
    ended = sum(trial.status.ended for trial in trials)
    return "finished" if ended >= int(study.info["options"]["trials"]) else "paused"


def _ends(statuses: Mapping[str, int], asked: int) -> str:
    said = ", ".join(f"{number} {status.lower()}" for status, number in statuses.items())
    return f"{sum(statuses.values())} of {asked} trials begun ({said or 'none'})"


def _rungs(rungs: Sequence[Mapping[str, int]]) -> str:
    if not rungs:
        return "no trial was compared at a rung"
    return "; ".join(f"{rung['kept']} of {rung['reached']} went on at epoch {rung['epoch']}" for rung in rungs)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None and name != "data")
