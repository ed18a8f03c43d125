"""Trains the winner in full: more epochs, on train and validation images, and reads the test images once at the end."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tunelab.config import (
    AnyArch,
    CustomSpec,
    Telemetry,
    TrainConfig,
    TrialConfig,
    arch_id,
    config_id,
    derive_seed,
    from_json,
    to_json,
)
from tunelab.data.batches import load_split
from tunelab.data.cache import prepare
from tunelab.errors import InputError, TunelabError
from tunelab.files import read_json, write_atomically
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, load, write_csv
from tunelab.summary import write_summary
from tunelab.training.checkpoint import load_model
from tunelab.training.device import pick_device
from tunelab.training.evaluate import class_scores
from tunelab.training.model_files import write_model, write_weights
from tunelab.training.schedules import find_schedule
from tunelab.training.stages import check_optimizers
from tunelab.tuning.config_list import run_configs
from tunelab.tuning.hardware import find_team
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.site import Site

from . import readings
from .card import CARD, write_card
from .outcome import outcome
from .plots import draw_learning_curve, learning_curve

AVERAGES = ("none", "ema", "swa")


def retrain(
    study: Study | str | Path,
    *,
    epochs: int = 150,
    seeds: int = 1,
    keep_val: bool = False,
    trial: int | None = None,
    average: Literal["none", "ema", "swa"] | None = None,
    changes: Mapping[str, Any] | None = None,
    compile: Literal["auto", "off"] = "auto",
    telemetry: Telemetry | None = None,
    address: str | None = None,
    gpus: int | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the best trial's configuration in full and returns what `metrics.json` holds.

    Writes `model.safetensors` (of the first seed: none is chosen by its test score; `model-1.safetensors` and so on are
    of the others), `config.json`, `metrics.json`, `card.md`, `test_predictions.npz`, `learning_curve.csv` and
    `learning_curve.png` into `retrain-...` inside the study. The test images are read once, when all seeds are trained,
    and that is recorded in the study before. An interrupted retraining goes on; a finished one is neither trained nor
    tested again.

    Args:
        study: the study, or its folder.
        epochs: the full length.
        seeds: how many times, each with another seed; several at once where that is faster and fits into memory.
        keep_val: trains on the training images alone, so that the validation curve shows over-fitting.
        trial: another trial than the best one.
        average: which average of weights is kept, as `AveragingConfig` has it; by default what the recipe says.
        changes: what else is to be different in the recipe: fields of `TrainConfig` as plain JSON values, such as
            `{"stages": [{"begin": 0.5, "optimizer": "sgd", "lr": 0.05}], "augment": {"mixup_until": 0.8}}`. Of
            `schedule`, `augment` and `averaging` what is not named stays.
        compile: "auto" goes on with `torch.compile` where ten minutes or more are left and it is measured to be faster.
        telemetry: what the trainings write for TensorBoard, as in `search`; by default what the study's trials wrote.
        address: the Ray cluster to train on, as for `search`; by default this machine alone.
        gpus: trains each seed on so many GPUs of this machine, one seed after the other: a process on each takes its
            share of every batch, so that the recipe stays what it is (`tunelab.training.group`).
        processes: the same on processors, by so many processes.
        progress: shows the progress on standard error.

    Raises:
        InputError: the study is no search, no trial has run its full length, there is no such trial, the recipe cannot
            be, the data has changed, or there are fewer GPUs or processors than asked for.
        PausedError: a signal stopped it; the same call goes on.
        TunelabError: a training diverged or failed, or the reading of the test images cannot be recorded.
    """
    if epochs < 1 or seeds < 1:
        raise InputError(f"--epochs {epochs} and --seeds {seeds} must be at least 1")
    if compile not in ("auto", "off"):
        raise InputError(f"--compile {compile!r} is unknown; allowed are auto and off")
    opened = study if isinstance(study, Study) else load(study)
    if opened.info.get("kind") != "search":  # its readings of the test images are recorded in the study of the search
        raise InputError(f"{opened.path} is a {opened.info.get('kind')}; the study of a search is needed")
    chosen = opened.best() if trial is None else opened.trial(trial)
    config = opened.config(chosen)
    recipe = changed(config.train, changes or {}, average)
    if address is not None and (gpus, processes) != (None, None):
        raise InputError("--gpus and --processes share a batch on this machine alone; leave --address out")
    team = find_team(from_json(SearchOptions, opened.info["options"]), gpus, processes)
    if team is not None:
        _require_shares(config.arch, recipe.batch_size, team.processes)
    configs = [_full_length(config, recipe, epochs, keep_val, index) for index in range(seeds)]
    suffix = "-keep-val" if keep_val else ""
    if recipe != config.train:
        suffix += f"-recipe-{config_id(configs[0])[:8]}"
    options = {**opened.info["options"], "epochs": epochs}
    if telemetry is not None:
        options["telemetry"] = telemetry
    folder = opened.path / f"retrain-{arch_id(config.arch)}-trial{chosen.number:04d}-{epochs}epochs{suffix}"
    packing = dict.fromkeys(("concurrent", "cpus_per_trial", "gpus_per_trial"))  # was made for many trials
    runs = run_configs(
        folder,
        configs,
        from_json(SearchOptions, {**options, **packing}),
        like=opened,
        compile=compile,
        kind="retrain",
        title=f"trial {chosen.number} of {opened.name} in full: {epochs} epochs, seeds: {seeds} -> {folder}",
        about={"study": str(opened.path), "trial": chosen.number},
        show_progress=progress,
        site=Site(address),
        team=team,
    )
    trained = runs.list_trials()[:seeds]
    for run in trained:
        if run.status is not TrialStatus.COMPLETED:
            raise TunelabError(
                f"the training of trial {chosen.number} in full {run.status.value.lower()}: {run.reason}; "
                f"remove {folder} to try again"
            )
    return _finish(opened, runs, chosen, configs, trained)


def changed(train: TrainConfig, changes: Mapping[str, Any], average: str | None = None) -> TrainConfig:
    """The recipe with `changes` and another `average`, as `retrain` takes them.

    Raises:
        InputError: a name or value is not allowed.
    """
    if "epochs" in changes:
        raise InputError("a changed recipe has no epochs: --epochs says how many")
    if average is not None and average not in AVERAGES:
        raise InputError(f"--average {average!r} is unknown; allowed are {', '.join(AVERAGES)}")
    plain = to_json(train)
    for name, value in changes.items():
        before = plain.get(name)
        plain[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, Mapping) else value
    if average == "none":
        plain["averaging"] = None
    elif average is not None:
        plain["averaging"] = {**(plain.get("averaging") or {}), "kind": average}
    made = from_json(TrainConfig, plain)
    find_schedule(made.schedule)
    check_optimizers(made)
    return made


def _require_shares(arch: AnyArch, images: int, processes: int) -> None:
    """Raises an InputError where processes cannot share batches of so many images."""
    if images < processes:
        raise InputError(f"a batch of {images} images cannot be shared by {processes} processes")
    # All draw the same numbers in a network of one's own, which may leave out layers: of equal shares as many of them.
    if isinstance(arch, CustomSpec) and images % processes:
        raise InputError(
            f"a batch of {images} images cannot be shared equally by {processes} processes, which a network of your "
            "own needs; --recipe can change its batch_size"
        )


def _full_length(config: TrialConfig, recipe: TrainConfig, epochs: int, keep_val: bool, index: int) -> TrialConfig:
    return dataclasses.replace(
        config,
        train=dataclasses.replace(recipe, epochs=epochs),
        data=dataclasses.replace(config.data, train_on="train" if keep_val else "train+val"),
        seed=derive_seed(config.seed, "retrain", index),
    )


def _finish(
    study: Study, runs: Study, chosen: Trial, configs: list[TrialConfig], trained: list[Trial]
) -> dict[str, Any]:
    """Writes the models, then reads the test split, unless that was done for these runs, and writes what came of it."""
    file = runs.path / "metrics.json"
    before: dict[str, Any] = read_json(file) if file.exists() else {}
    device_name = str(study.info["options"]["device"])
    if len(before.get("seeds", [])) >= len(trained):
        if not (runs.path / CARD).exists():
            write_card(runs.path, device_name)
        return before
    device = pick_device(device_name)
    info = prepare(configs[0].data)
    models = []
    for run, config in zip(trained, configs, strict=True):
        models.append(load_model(config, runs.trial_folder(run.number) / "checkpoint" / "last.pt", info, device))
        if run.number == 0:
            write_model(runs.path, models[0], config, info)
        else:
            write_weights(runs.path / f"model-{run.number}.safetensors", models[-1])
    past = readings.earlier(study)
    reading = readings.record(study, runs.path, chosen.number, len(trained))
    # From here on the test images count as read, whatever happens.
    test = load_split(configs[0].data, "test", device, study.info["options"].get("memory"))
    stated = configs[0].train.precision
    precision = runs.info.get("slots", {}).get("precision", "auto") if stated == "auto" else stated
    scores = [class_scores(model, test, info, device=device, precision=precision) for model in models]
    labels = test.labels.cpu()
    metrics = {
        **outcome(study, chosen, configs, trained, scores, labels),
        "folder": str(runs.path),
        "processes": runs.info.get("slots", {}).get("processes", 1),
        "test_reading": reading,
        "test_readings_before": past,
        "test_reads_before": readings.count_trainings(past),
    }
    _write_predictions(runs.path / "test_predictions.npz", scores[0], labels)
    rows = learning_curve([run.epochs for run in trained])
    write_csv(runs.path / "learning_curve.csv", rows)
    title = f"{study.name}, trial {chosen.number}, {configs[0].train.epochs} epochs"
    draw_learning_curve(rows, runs.path / "learning_curve.png", title, metrics["test_accuracy"])
    write_atomically(file, json.dumps(metrics, indent=2) + "\n")
    write_summary(study)
    write_card(runs.path, device_name)
    return metrics


def _write_predictions(path: Path, scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Writes `labels`, `predicted` classes and the `probability` of these, (N,) each, in the order of the images."""
    probability, predicted = scores.softmax(1).max(1)
    content = io.BytesIO()
    np.savez(content, labels=labels.numpy(), predicted=predicted.numpy(), probability=probability.numpy())
    write_atomically(path, content.getvalue())
