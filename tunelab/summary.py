"""What a study writes for people beside its tables: `runs_summary.csv`, and templates of trials to edit and run again.

All of it is derived from the record, and from what retrainings found on the test images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.files import make_private, read_json
from tunelab.records import Trial
from tunelab.study import Study, write_csv

SUMMARY = "runs_summary.csv"
TEMPLATE = "experiment_template.json"
TEMPLATE_FORMAT = 1

OPTIONS = ("epochs", "max_params", "max_mflops")
"""Of the study's options those that a template has, beside the data."""

_STRATEGIES = {"constant": "fixed", "plateau": "reduce on plateau"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for one (OWASP, "CSV injection")


def write_summary(study: Study) -> None:
    """Writes `runs_summary.csv` anew, and the template of each trial that has none.

    Raises:
        OSError: they cannot be written.
    """
    trials = study.list_trials()
    write_csv(study.path / SUMMARY, [summary_row(study, trial, tested) for trial, tested in _tested(study, trials)])
    if study.info.get("kind") != "search":
        return
    for trial in trials:
        file = study.trial_folder(trial.number) / TEMPLATE
        if not file.exists():
            make_private(file.parent)
            temporary = file.with_name(f".{TEMPLATE}.tmp")  # not synced: it is made anew where it is lost
            temporary.write_text(json.dumps(template(study, trial), indent=2) + "\n", encoding="utf-8")
            temporary.replace(file)


def summary_row(study: Study, trial: Trial, test_accuracy: float | None) -> dict[str, Any]:
    """One row of `runs_summary.csv`; what was not measured is None.

    `best_val_accuracy` is the highest of all epochs; `seconds_per_epoch` is the mean, training and validation together,
    and `peak_memory_mib` the highest.
    """
    train = trial.config.get("train", {})
    scores = [metrics.val_accuracy for metrics in trial.epochs if metrics.val_accuracy is not None]
    count = len(trial.epochs)
    return {
        "name": _as_text(f"{study.name}/{trial.number:04d}"),
        "lr_strategy": _as_text(lr_strategy(train)),
        "lr": train.get("lr"),
        "epochs_trained": count,
        "best_val_accuracy": max(scores, default=None),
        "test_accuracy": test_accuracy,
        "seconds_per_epoch": sum(metrics.seconds for metrics in trial.epochs) / count if count else None,
        "peak_memory_mib": max((metrics.peak_memory_mib for metrics in trial.epochs), default=None),
        "status": trial.status.value,
    }


def lr_strategy(train: Mapping[str, Any]) -> str:
    """What a recipe does with its rate, in words: "fixed", "step", "reduce on plateau, early stopping", ..."""
    name = str(train.get("schedule", {}).get("name", ""))
    return _STRATEGIES.get(name, name.replace("_", " ")) + (", early stopping" if train.get("patience") else "")


def template(study: Study, trial: Trial) -> dict[str, Any]:
    """Everything that `tunelab search SPACE --grid experiment_template.json` needs to run a trial again.

    `params` are what is run; `config`, which the space makes of them, is there to be read, and `config_hash` tells
    whether it was changed by hand.
    """
    options = study.info["options"]
    return {
        "format": TEMPLATE_FORMAT,
        "space": study.info["space"],
        "params": trial.params,
        "options": {**{name: options.get(name) for name in OPTIONS}, "data": options.get("data", {})},
        "config": trial.config,
        "config_hash": config_hash(trial.config),
    }


def config_hash(config: Any) -> str:
    """A hash of a configuration as JSON values, the same where numbers and words were read as texts."""
    return hashlib.sha256(json.dumps(_texts(config), sort_keys=True).encode()).hexdigest()[:16]


def _texts(plain: Any) -> Any:
    if isinstance(plain, Mapping):
        return {name: _texts(value) for name, value in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [_texts(value) for value in plain]
    return plain if isinstance(plain, str) else json.dumps(plain)


def _tested(study: Study, trials: Sequence[Trial]) -> list[tuple[Trial, float | None]]:
    """Each trial with the test accuracy of its newest retraining, if it has one."""
    found: dict[int, float] = {}
    files = sorted(study.path.glob("retrain-*/metrics.json"), key=lambda file: file.stat().st_mtime)
    for file in files:
        content = _read(file)
        if isinstance(content.get("trial"), int) and isinstance(content.get("test_accuracy"), float):
            found[content["trial"]] = content["test_accuracy"]
    return [(trial, found.get(trial.number)) for trial in trials]


def _read(file: Path) -> dict[str, Any]:
    """What a `metrics.json` holds; nothing of one that is damaged."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_text(value: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if value.startswith(_FORMULA) else value
