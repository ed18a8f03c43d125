"""What `tunelab best --retrain` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .readings import describe
from .text import console, percent


def print_retrained(metrics: Mapping[str, Any]) -> None:
    """What a retraining came to."""
    out = console()
    for line in retrained_lines(metrics):
        out.print(line)


def retrained_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What a retraining came to, a line each; of a `metrics.json` from before it had intervals, what it has."""
    runs = len(metrics["seeds"])
    seen = "that were read before" if metrics["test_reads_before"] else "never seen before"
    lines = [
        f"test accuracy {percent(metrics['test_accuracy'])}{_spread(metrics)} on {metrics['test_images']} images "
        f"{seen} (trial {metrics['trial']}, {metrics['epochs']} epochs on {metrics['trained_on']}, "
        f"trained {'once' if runs == 1 else f'{runs} times'})"
    ]
    lines += _of_each(metrics["seeds"])
    lines += _ensemble(metrics.get("ensemble"))
    lines += _validation(metrics.get("validation"))
    lines += _search(metrics)
    if metrics["test_reads_before"]:
        past = metrics.get("test_readings_before") or []
        what = describe(past) or f"{metrics['test_reads_before']} other trainings have been scored on the test images"
        lines.append(f"note: {what}; choosing among what they were read for makes the best score too high")
    lines += [
        f"note: {note}" for note in dict.fromkeys(note for one in metrics["seeds"] for note in one.get("notes", ()))
    ]
    return [*lines, f"model: {metrics['folder']}"]


def _spread(metrics: Mapping[str, Any]) -> str:
    interval = metrics.get("test_interval")
    spread = metrics["test_accuracy_std"]
    if interval is None:
        return "" if spread is None else f" +- {100 * spread:.1f}"
    return f" ({_within(interval)}, {interval['method']})"


def _within(interval: Mapping[str, Any]) -> str:
    return f"{100 * interval['confidence']:.0f}% interval {100 * interval['low']:.1f} to {100 * interval['high']:.1f}"


def _of_each(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [one["test"]["accuracy"] for one in seeds if "test" in one]
    return [f"each seed: {', '.join(percent(accuracy) for accuracy in known)}"] if len(known) > 1 else []


def _ensemble(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"ensemble of the {found['models']}, the mean of their probabilities: {percent(found['accuracy'])} "
        f"({_within(found['interval'])}, {found['interval']['method']})"
    ]


def _validation(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"validation accuracy {percent(found['accuracy'])} ({_within(found['interval'])}) on {found['images']} images "
        "that were not trained on"
    ]


def _search(metrics: Mapping[str, Any]) -> list[str]:
    searched = metrics.get("search_runs", 1)
    mean = f", the mean of {searched} runs" if searched > 1 else ""
    lines = [
        f"the search had measured {percent(metrics['search_val_accuracy'])} on its validation images "
        f"after {metrics['search_epochs']} epochs{mean}"
    ]
    if metrics.get("search_expected") is None:
        return lines
    low, high, found = metrics["search_low"], metrics["search_high"], metrics["test_accuracy"]
    where = "below" if found < low else "above" if found > high else "within"
    lines[0] += (
        f", and expected {percent(metrics['search_expected'])} on new data "
        f"({100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}): the test accuracy lies {where} that interval"
    )
    return lines
