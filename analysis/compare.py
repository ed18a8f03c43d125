"""Studies side by side, like for like: at equal epochs, at equal time, and their winners."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tunelab.errors import InputError
from tunelab.journal import read_journal
from tunelab.noise import counted_epochs
from tunelab.record_checks import epoch_of
from tunelab.records import Trial, TrialStatus
from tunelab.standings import Place
from tunelab.study import Study, count_statuses, current, proposed

from .rank import describe_config

BUDGETS = 10
"""The common budgets are so many equal steps up to the smallest study's total (our choice)."""

Step = tuple[tuple[int, float], float | None]
"""Epochs and seconds of training by then, of all trials of a study together, and the best score by then."""


def compare(studies: Sequence[Study]) -> dict[str, Any]:
    """What `tunelab compare` tells.

    Scores are those after `epochs` epochs, the shortest full length of the studies. `by_epochs` and `by_seconds` have
    the best score found until a common budget was spent, one for each study, None before the first; the budget counts
    the epochs, or the seconds of training, of all trials of a study together, repeats included. `winners` are ranked as
    `tunelab best` ranks, `tied` where one cannot be told apart from the best of them.

    Raises:
        InputError: there are fewer than two studies, one is given twice, or scores are not of the same images.
    """
    grounds = _require_comparable(studies)
    epochs = min(_full_length(study) for study in studies)
    trials = [study.list_trials() for study in studies]
    courses = [_course(study, of, epochs) for study, of in zip(studies, trials, strict=True)]
    winners = [_winner(study, of, epochs) for study, of in zip(studies, trials, strict=True)]
    rows = _side_by_side([(study.name, winner) for study, winner in zip(studies, winners, strict=True)])
    return {
        "studies": [_about(study, of, course) for study, of, course in zip(studies, trials, courses, strict=True)],
        "epochs": epochs,
        "grounds": [*grounds, f"scores after {epochs} epochs"],
        "warnings": _warnings(studies),
        "by_epochs": _at_budgets(courses, 0),
        "by_seconds": _at_budgets(courses, 1),
        "winners": rows,
        "verdict": _verdict(rows),
    }


def _require_comparable(studies: Sequence[Study]) -> list[str]:
    """On what grounds the scores can be compared; InputError if they cannot."""
    if len(studies) < 2:
        raise InputError(f"two studies or more can be compared; given: {len(studies)}")
    paths = [study.path.resolve() for study in studies]
    for at, path in enumerate(paths):
        if path in paths[:at]:
            raise InputError(f"{studies[at].place} is given twice; a study is compared with others")
    first = studies[0]
    for study in studies[1:]:
        for what, one, other in (
            ("data", _data(first), _data(study)),
            ("validation images", _split(first), _split(study)),
        ):
            if one != other:
                raise InputError(
                    f"{first.place} and {study.place} cannot be compared, their scores are of different images: "
                    f"{what} {one} and {other}"
                )
    return [f"the same data ({_data(first)}) and validation images ({_split(first)})"]


def _data(study: Study) -> str:
    data = study.info["data"]
    return f"{data['name']}, fingerprint {data['fingerprint']}"


def _split(study: Study) -> str:
    """Which images the scores are of, beside the data that they are from."""
    asked = study.info["options"].get("data", {})
    seed = f", split {asked['split_seed']}" if "split_seed" in asked else ""
    return f"{study.val_images}{seed}"


def _full_length(study: Study) -> int:
    return int(study.info["options"]["epochs"])


def _warnings(studies: Sequence[Study]) -> list[str]:
    """In what the studies differ that a comparison of their scores must be read with."""
    lengths = [_full_length(study) for study in studies]
    images = [study.info["data"]["counts"].get("train") for study in studies]
    machines = [_machine(study) for study in studies]
    found = []
    if len(set(lengths)) > 1:
        found.append(
            f"the full lengths differ ({_listed(lengths)} epochs): the schedules of the longer trials have not ended "
            f"by epoch {min(lengths)}, which makes them look worse than they become"
        )
    if len(set(images)) > 1:
        found.append(f"the trials were trained on different numbers of images ({_listed(images)})")
    if len(set(machines)) > 1:
        found.append(f"the machines or their use differ ({_listed(machines)}): at equal time these are compared too")
    running = [study.name for study in studies if study.running]
    if running:
        found.append(f"still running: {', '.join(running)}")
    return found


def _machine(study: Study) -> str:
    """What the seconds of a study depend on."""
    hardware, slots = study.info.get("hardware", {}), study.info.get("slots", {})
    name = ", ".join(hardware.get("gpus", ())) or str(hardware.get("processor", "unknown"))
    at_once = f", {slots['concurrent']} at once with {slots['cpus']} CPUs" if slots else ""
    return f"{name}{at_once}"


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(str(value) for value in dict.fromkeys(values))


def _course(study: Study, trials: Sequence[Trial], epochs: int) -> list[Step]:
    """How a study went: a step for each epoch that any trial was trained for, in the order of the record.

    The best score is of configurations that are part of the search now, each in the trial that it was proposed in: a
    second run of the same is another try of luck. Early stopping leaves a trial its last score. The epochs of all
    trials are counted.
    """
    last = {
        trial.number: min(len(trial.epochs), epochs)
        for trial in proposed(current(study.info, trials))
        if counted_epochs(trial) >= epochs
    }
    steps: list[Step] = []
    seconds, best = 0.0, None
    for event in read_journal(study.path / "journal.jsonl"):
        if event["event"] != "result":
            continue
        metrics = epoch_of(event["metrics"])
        seconds += metrics.seconds
        if last.get(event["trial"]) == metrics.epoch:
            best = metrics.score if best is None else max(best, metrics.score)
        steps.append(((len(steps) + 1, seconds), best))
    return steps


def _at_budgets(courses: Sequence[Sequence[Step]], unit: int) -> list[dict[str, Any]]:
    """The best score of each study at equal budgets, counted in epochs (unit 0) or seconds (1)."""
    if not all(courses):
        return []
    most = min(course[-1][0][unit] for course in courses)
    budgets = [most * part / BUDGETS for part in range(1, BUDGETS + 1)]
    if unit == 0:
        budgets = sorted({math.ceil(budget) for budget in budgets})
    return [{"budget": budget, "scores": [_best_by(course, unit, budget) for course in courses]} for budget in budgets]


def _best_by(course: Sequence[Step], unit: int, budget: float) -> float | None:
    within = [step for step in course if step[0][unit] <= budget]
    return within[-1][1] if within else None


def _winner(study: Study, trials: Sequence[Trial], epochs: int) -> Place | None:
    """The first of the ranking after so many epochs; None if no trial has come so far."""
    cut = [_cut(trial, epochs) for trial in current(study.info, trials)]
    return next((place for place in study.places_of(cut) if place.epochs == epochs), None)


def _cut(trial: Trial, epochs: int) -> Trial:
    """The trial as it was after so many epochs; one that early stopping had ended by then keeps its last score."""
    has_come = counted_epochs(trial) >= epochs
    known = trial.epochs[:epochs]
    if has_come:
        known += [dataclasses.replace(known[-1], epoch=epoch) for epoch in range(len(known) + 1, epochs + 1)]
    status = trial.status
    if has_come and status not in (TrialStatus.DIVERGED, TrialStatus.FAILED):
        status = TrialStatus.COMPLETED
    elif status is TrialStatus.COMPLETED:
        status = TrialStatus.STOPPED
    train = {**trial.config.get("train", {}), "patience": None}  # which says of a part of the epochs what it did of all
    return dataclasses.replace(trial, epochs=known, status=status, config={**trial.config, "train": train})


def _side_by_side(winners: Sequence[tuple[str, Place | None]]) -> list[dict[str, Any]]:
    """A row for each winner, the best first; studies without one are left out.

    Two are tied if their expected scores differ by no more than both intervals together allow: the root of the sum of
    the squares of their half widths, as of independent runs on the same validation images.
    """
    there = [(name, place) for name, place in winners if place is not None]
    there.sort(key=lambda pair: -pair[1].standing.expected)
    rows = []
    for name, place in there:
        mine, best = place.standing, there[0][1].standing
        margin = math.hypot(mine.high - mine.low, best.high - best.low) / 2
        rows.append(
            {
                "study": name,
                "trial": place.trial.number,
                "score": mine.mean,
                "expected": mine.expected,
                "low": mine.low,
                "high": mine.high,
                "runs": mine.runs,
                "tied": best.expected - mine.expected <= margin,
                "what": describe_config(place.trial.config),
            }
        )
    return rows


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Which winner is better, or that it cannot be told."""
    if len(rows) < 2:
        return "nothing to compare yet: fewer than two studies have a trial of that length"
    tied = [row["study"] for row in rows if row["tied"]]
    if len(tied) > 1:
        return f"the winners of {', '.join(tied[:-1])} and {tied[-1]} cannot be told apart"
    return f"the winner of {rows[0]['study']} is better than every other at 95% confidence"


def _about(study: Study, trials: Sequence[Trial], course: Sequence[Step]) -> dict[str, Any]:
    """What a study is and what it cost: epochs and seconds of training of all its trials together."""
    options, own = study.info["options"], proposed(current(study.info, trials))
    return {
        "study": study.name,
        "path": study.place,
        "space": study.info.get("space", {}).get("name", study.info["kind"]),
        "sampler": options.get("sampler"),
        "scheduler": options.get("scheduler"),
        "full_length": _full_length(study),
        "trials": len(own),
        "statuses": {status.value: number for status, number in count_statuses(own).items()},
        "epochs_trained": course[-1][0][0] if course else 0,
        "seconds": course[-1][0][1] if course else 0.0,
    }
