"""A trial trained again from its record, with the same seed, and how equal the two trainings are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import from_json
from tunelab.errors import InputError, TunelabError
from tunelab.files import write_atomically
from tunelab.noise import Noise, full_length, half_width, noise_at
from tunelab.records import EpochMetrics, Trial, TrialStatus
from tunelab.study import Study, load
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.hardware import count_gpus, usable_cpus
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.site import Site

from .text import console, percent, print_rows

IDENTICAL, WITHIN_NOISE, DIFFERENT = "identical", "within noise", "different"
COMPARED = "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"
"""The metrics of an epoch that must be the same to the last bit where it is identical; the others are times."""
_HARDWARE = "platform", "processor", "cpus", "gpus"
_SLOTS = {
    "device": "device", "cpus": "threads", "precision": "precision", "channels_last": "channels_last",
    "compile": "compile",
}  # fmt: skip
_NOT_RECORDED = "not recorded"


def reproduce(
    study: Study | str | Path, number: int, *, address: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Trains a trial again from its record and returns what `reproduce.json` holds: how equal the result is.

    It is trained in `reproduce-trialNNNN` inside the study, for as many epochs as it had, with the schedule of its full
    length, the threads, precision and memory order of the search where this machine allows them. One that was
    interrupted goes on; one that has ended is compared again and not trained again.

    Each epoch is "identical" (all COMPARED are the same to the bit), "within noise" (its score differs by no more than
    two runs of one configuration do with other seeds, at 95% confidence), or "different". The whole is "identical" if
    all epochs are; else what its last epoch is.

    Args:
        study: the study, or its folder; it may be the folder of a retraining.
        number: the trial.
        address: the Ray cluster to train on, as for `search`; by default this machine alone.
        progress: shows the progress on standard error.

    Raises:
        InputError: there is no such trial, it has no epoch to compare with, or the data is gone or has changed.
        PausedError: a signal stopped it; the same call goes on.
        TunelabError: the training failed.
    """
    opened = study if isinstance(study, Study) else load(study)
    trial = opened.trial(number)
    if not trial.epochs:
        why = f" ({trial.reason})" if trial.reason else ""
        raise InputError(
            f"trial {number} of {opened.path} has no epoch to compare with: it is {trial.status.value.lower()}{why}"
        )
    folder = opened.path / f"reproduce-trial{number:04d}"
    options, compute = as_recorded(opened, trial)
    wanted = _epochs_to_train(trial)
    runs = run_configs(
        folder,
        [opened.config(trial)],
        from_json(SearchOptions, options),
        like=opened,
        compile=opened.info.get("slots", {}).get("compile", "off"),
        compute=compute,
        stop_after=wanted if wanted < full_length(trial) else None,
        split=trial.split,
        kind="reproduce",
        title=f"trial {number} of {opened.name} again: {wanted} epochs -> {folder}",
        about={"study": str(opened.path), "trial": number},
        show_progress=progress,
        site=Site(address),
    )
    (again,) = runs.list_trials()
    if again.status is TrialStatus.FAILED:
        raise TunelabError(f"trial {number} failed when it was trained again: {again.reason}; remove {folder} to retry")
    content = compare(opened, trial, again, differences(opened.info, runs.info))
    content["folder"] = str(folder)
    write_atomically(folder / "reproduce.json", json.dumps(content, indent=2) + "\n")
    return content


def compare(study: Study, trial: Trial, again: Trial, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How equal two trainings of one configuration are, epoch by epoch; `found` are the `differences` around them."""
    known = study.list_trials()
    rows = [
        compare_epoch(then, now, noise_at(known, then.epoch, study.val_images))
        for then, now in zip(trial.epochs, again.epochs, strict=False)
    ]
    ended = {"then": _ending(trial), "now": _ending(again)}
    one_diverged = (trial.status is TrialStatus.DIVERGED) != (again.status is TrialStatus.DIVERGED)
    if one_diverged or not rows:
        verdict = DIFFERENT
    elif all(row["verdict"] == IDENTICAL for row in rows):
        verdict = IDENTICAL
    else:
        verdict = WITHIN_NOISE if rows[-1]["verdict"] != DIFFERENT else DIFFERENT
    return {
        "study": str(study.path),
        "trial": trial.number,
        "verdict": verdict,
        "epochs": len(trial.epochs),
        "compared": len(rows),
        "identical": sum(row["verdict"] == IDENTICAL for row in rows),
        "different": sum(row["verdict"] == DIFFERENT for row in rows),
        "ended": ended,
        "differences": [dict(one) for one in found],
        "rows": rows,
    }


def compare_epoch(then: EpochMetrics, now: EpochMetrics, noise: Noise) -> dict[str, Any]:
    """One epoch of both: scores, difference, by how much two runs may differ by chance, and what that makes it."""
    equal = all(getattr(then, name) == getattr(now, name) for name in COMPARED)
    margin = half_width(noise, 2.0)  # of the difference of two single runs
    difference = now.score - then.score
    verdict = IDENTICAL if equal else WITHIN_NOISE if abs(difference) <= margin else DIFFERENT
    return {
        "epoch": then.epoch,
        "then": then.score,
        "now": now.score,
        "difference": difference,
        "margin": margin,
        "noise": noise.source,
        "verdict": verdict,
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is not the same around two trainings, from their `study.json`: rows of what, then, now."""
    pairs = [
        (
            "tunelab's commit" if name == "tunelab_commit" else f"version of {name}",
            then.get("versions", {}).get(name),
            now.get("versions", {}).get(name),
        )
        for name in {**then.get("versions", {}), **now.get("versions", {})}
    ]
    pairs += [(name, then.get("hardware", {}).get(name), now.get("hardware", {}).get(name)) for name in _HARDWARE]
    pairs += [(said, then.get("slots", {}).get(name), now.get("slots", {}).get(name)) for name, said in _SLOTS.items()]
    return [
        {"what": what, "then": _NOT_RECORDED if before is None else before, "now": after}
        for what, before, after in pairs
        if before != after
    ]


def print_reproduced(content: Mapping[str, Any]) -> None:
    """What `tunelab reproduce` says."""
    out = console()
    compared, rows = content["compared"], content["rows"]
    said = {
        IDENTICAL: f"identical to the last bit ({compared} of {compared} epochs)",
        WITHIN_NOISE: f"equal within the noise of runs (identical: {content['identical']} of {compared} epochs)",
        DIFFERENT: f"different beyond the noise of runs (identical: {content['identical']} of {compared} epochs)",
    }[content["verdict"]]
    out.print(f"trial {content['trial']} of {content['study']} again: {said}", style="bold")
    if content["verdict"] != IDENTICAL and rows:
        print_rows(
            [
                {
                    "epoch": row["epoch"],
                    "then": percent(row["then"]),
                    "now": percent(row["now"]),
                    "points": f"{100 * row['difference']:+.2f}",
                    "by chance": f"{100 * row['margin']:.2f}",
                    "": row["verdict"],
                }
                for row in rows
            ]
        )
        out.print(f"by chance: two runs with other seeds differ by less in 95% of cases; noise {rows[-1]['noise']}")
    if content["ended"]["then"] != content["ended"]["now"]:
        out.print(f"then it {content['ended']['then']}, now it {content['ended']['now']}")
    if compared < content["epochs"]:
        out.print(f"compared are {compared} of {content['epochs']} epochs; remove {content['folder']} to train it anew")
    for one in content["differences"]:
        out.print(f"not the same: {one['what']}: then {one['then']}, now {one['now']}")
    if not content["differences"]:
        out.print("versions, hardware, threads, precision and data are the same")
    out.print(f"files: {content['folder']}")


def as_recorded(study: Study, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options, and how to compute, as the study was computed, as far as this machine can.

    A trial that diverged may be given up for its health again; one that did not is to go as far as it went.
    """
    slots = study.info.get("slots", {})
    options = {**study.info["options"], "concurrent": 1, "cpus_per_trial": None, "gpus_per_trial": None}
    options["health"] = options.get("health", True) and trial.status is TrialStatus.DIVERGED
    device = slots.get("device", options.get("device", "auto"))
    options["device"] = "auto" if device == "cuda" and not count_gpus() else device
    if slots and slots["cpus"] <= usable_cpus():
        options["cpus_per_trial"] = slots["cpus"]
    compute = {name: slots[name] for name in ("precision", "channels_last") if name in slots}
    if compute.get("precision") == "float16" and options["device"] != "cuda":
        del compute["precision"]  # a processor does not compute in it
    return options, compute


def _epochs_to_train(trial: Trial) -> int:
    """As many epochs as the trial had, and the one in which it diverged."""
    return min(full_length(trial), len(trial.epochs) + (trial.status is TrialStatus.DIVERGED))


def _ending(trial: Trial) -> str:
    """How a training ended, as far as that is its own doing: whether it diverged, and after which epoch."""
    if trial.status is TrialStatus.DIVERGED:
        return f"diverged after epoch {len(trial.epochs)}"
    return "stayed finite"
