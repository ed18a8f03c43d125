"""What is wrong with a trial, or with the trials of a study, as plain data: from the record and health.json."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunelab.files import read_json
from tunelab.records import EpochMetrics, Finding, Trial, TrialStatus
from tunelab.study import Study

FILE = "health.json"
_UNKNOWN = "a loss or a weight was not finite"  # why trials diverged in studies that have no findings
_LOST = (TrialStatus.DIVERGED, TrialStatus.FAILED)
_FLAT = 0.02  # of the first loss: a curve that has moved less is flat; our choice


def diagnose_trial(study: Study, trial: Trial) -> dict[str, Any]:
    """The whole story of one trial.

    `curve` says how it went, `findings` what is wrong, the cause first, then what it leads to, `remarks` how it learns.
    `looked_at` is the step of the newest vital signs, `layers` are these: norms of gradients, changes of weights as a
    share of them, shares of dead units and of saturated values, None where they are not known. `watched` is False for
    a trial that was trained without being looked at, by an earlier version of tunelab.
    """
    looks, names = _looks(study, trial)
    findings = [finding for finding in trial.findings if not finding.is_remark]
    watched = bool(looks) or not _unwatched(trial)
    last = looks[-1] if looks else None
    return {
        "study": study.place,
        "trial": trial.number,
        "status": trial.status.value,
        "reason": trial.reason,
        "curve": describe_curve(trial.epochs),
        "watched": watched,
        "healthy": bool(trial.epochs) and watched and not findings and trial.status not in _LOST,
        "findings": [_told(finding) for finding in findings],
        "remarks": [_told(finding) for finding in trial.findings if finding.is_remark],
        "change": list(dict.fromkeys(finding.suggestion for finding in findings))[:1],
        "looked_at": None if last is None else {name: last.get(name) for name in ("epoch", "step", "steps")},
        "layers": [] if last is None else _layers(names, last),
    }


def diagnose_study(study: Study) -> dict[str, Any]:
    """Which findings occurred in which trials, the most frequent first, and how many trials diverged, why.

    Of equally frequent ones a cause comes before what it leads to, as it does in a trial's findings.
    `well` are the trials that nothing is wrong with, `unknown` those that were not looked at.
    """
    trials = study.list_trials()
    by_name: dict[str, dict[int, Finding]] = {}
    places: dict[str, list[int]] = {}
    for trial in trials:
        for place, finding in enumerate(trial.findings):
            by_name.setdefault(finding.name, {}).setdefault(trial.number, finding)
            places.setdefault(finding.name, []).append(place)
    rows: list[dict[str, Any]] = [
        {
            "finding": name,
            "remark": next(iter(found.values())).is_remark,
            "trials": sorted(found),
            "example": next(iter(found.values())).what,
            "suggestion": next(iter(found.values())).suggestion,
        }
        for name, found in by_name.items()
    ]
    rows.sort(key=lambda row: (row["remark"], -len(row["trials"]), statistics.fmean(places[row["finding"]])))
    return {
        "study": study.place,
        "trials": len(trials),
        "findings": rows,
        "diverged": divergence(trials),
        "well": [trial.number for trial in trials if _is_well(trial)],
        "unknown": [trial.number for trial in trials if _unwatched(trial)],
    }


def divergence(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """How many of these trials diverged, and what was most often wrong with them; None if none did."""
    lost = [trial for trial in trials if trial.status is TrialStatus.DIVERGED]
    if not lost:
        return None
    causes = Counter(_UNKNOWN if trial.diagnosis is None else trial.diagnosis.name for trial in lost)
    cause, times = causes.most_common(1)[0]
    return {"count": len(lost), "cause": cause, "times": times}


def describe_divergence(found: Mapping[str, Any]) -> str:
    """The same in one line."""
    count, times = found["count"], found["times"]
    most = f"all of them: {found['cause']}" if times == count > 1 else f"{found['cause']}"
    often = "" if times == count else f"most often ({times}): "
    return f"{count} {'trial' if count == 1 else 'trials'} diverged, {often}{most}; `tunelab diagnose` tells more"


def describe_curve(epochs: Sequence[EpochMetrics]) -> str:
    """How a training went, in a sentence or two."""
    if not epochs:
        return "no epoch was trained to its end"
    first, last = epochs[0], epochs[-1]
    if len(epochs) == 1:
        return f"1 epoch: training loss {last.train_loss:.3g}, {_accuracy(last)}"
    fall = (first.train_loss - last.train_loss) / max(abs(first.train_loss), 1e-9)
    moved = "falls" if fall > _FLAT else "rises" if fall < -_FLAT else "stays"
    said = f"{len(epochs)} epochs: the training loss {moved} from {first.train_loss:.3g} to {last.train_loss:.3g}"
    best = max(epochs, key=lambda one: one.score)
    said += f"; {_accuracy(last)}"
    if best.score > last.score:
        said += f", the best {100 * best.score:.1f}% after epoch {best.epoch}"
    return said


def _accuracy(epoch: EpochMetrics) -> str:
    trained = f"accuracy {100 * epoch.train_accuracy:.1f}% in training"
    return trained if epoch.val_accuracy is None else f"{trained}, {100 * epoch.val_accuracy:.1f}% in validation"


def _watched(trial: Trial) -> bool:
    """True if it was looked at while it was trained; a version of tunelab that did not left no norms either.

    Of a trial without an epoch nobody knows, and it is not said.
    """
    return bool(trial.findings) or any(epoch.update_ratio is not None for epoch in trial.epochs)


def _unwatched(trial: Trial) -> bool:
    return bool(trial.epochs) and not _watched(trial)


def _is_well(trial: Trial) -> bool:
    return _watched(trial) and trial.diagnosis is None and trial.status not in _LOST


def _told(finding: Finding) -> dict[str, Any]:
    return {**finding.to_json(), "what": finding.what}


def _looks(study: Study, trial: Trial) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The steps that were looked at and the names of the layers; nothing where the file is gone or damaged."""
    try:
        content = read_json(study.trial_folder(trial.number) / FILE)
        looks, names = list(content["looks"]), list(content["layers"])
        for look in looks:
            _layers(names, look)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], []
    return looks, names


def _layers(names: Sequence[str], look: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = look["layers"]
    rows = zip(names, *(columns[name] for name in ("weight", "gradient", "update", "dead", "saturated")), strict=True)
    return [
        {
            "layer": name,
            "gradient_norm": gradient,
            "update_ratio": update / weight if weight and update is not None else None,
            "dead_share": dead,
            "saturated_share": saturated,
        }
        for name, weight, gradient, update, dead, saturated in rows
    ]
