"""Trains the winner in full: more epochs, on train and validation images, and reads the test images once at the end."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn

from tunelab.config import TrialConfig, arch_id, derive_seed, from_json, to_json
from tunelab.data.batches import load_split
from tunelab.data.cache import DataInfo, prepare
from tunelab.errors import InputError, TunelabError
from tunelab.files import write_atomically
from tunelab.records import Trial, TrialStatus
from tunelab.study import Study, load, write_csv
from tunelab.training.checkpoint import load_model
from tunelab.training.device import pick_device
from tunelab.training.evaluate import Evaluation, evaluate
from tunelab.tuning.options import SearchOptions
from tunelab.tuning.runner import run_configs

from .plots import draw_learning_curve, learning_curve


def retrain(
    study: Study | str | Path,
    *,
    epochs: int = 150,
    seeds: int = 1,
    keep_val: bool = False,
    trial: int | None = None,
    compile: Literal["auto", "off"] = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the best trial's configuration in full and returns what `metrics.json` holds.

    Writes `model.safetensors` (of the first seed: none is chosen by its test score), `config.json`, `metrics.json`,
    `learning_curve.csv` and `learning_curve.png` into `retrain-...` inside the study. An interrupted retraining goes
    on; a finished one is not trained again.

    Args:
        study: the study, or its folder.
        epochs: the full length.
        seeds: how many times, each with another seed.
        keep_val: trains on the training images alone, so that the validation curve shows over-fitting.
        trial: another trial than the best one.
        compile: "auto" goes on with `torch.compile` where ten minutes or more are left and it is measured to be faster.
        progress: shows the progress on standard error.

    Raises:
        InputError: no trial has run its full length, there is no such trial, or the data has changed.
        PausedError: a signal stopped it; the same call goes on.
        TunelabError: a training diverged or failed.
    """
    if epochs < 1 or seeds < 1:
        raise InputError(f"--epochs {epochs} and --seeds {seeds} must be at least 1")
    if compile not in ("auto", "off"):
        raise InputError(f"--compile {compile!r} is unknown; allowed are auto and off")
    opened = study if isinstance(study, Study) else load(study)
    chosen = opened.best() if trial is None else opened.trial(trial)
    config = opened.config(chosen)
    configs = [_full_length(config, epochs, keep_val, index) for index in range(seeds)]
    suffix = "-keep-val" if keep_val else ""
    folder = opened.path / f"retrain-{arch_id(config.arch)}-trial{chosen.number:04d}-{epochs}epochs{suffix}"
    packing = dict.fromkeys(("concurrent", "cpus_per_trial", "gpus_per_trial"))  # was made for many trials
    runs = run_configs(
        folder,
        configs,
        from_json(SearchOptions, {**opened.info["options"], **packing, "epochs": epochs}),
        like=opened,
        compile=compile,
        kind="retrain",
        title=f"trial {chosen.number} of {opened.name} in full: {epochs} epochs, seeds: {seeds} -> {folder}",
        about={"study": str(opened.path), "trial": chosen.number},
        show_progress=progress,
    )
    trained = runs.list_trials()[:seeds]
    for run in trained:
        if run.status is not TrialStatus.COMPLETED:
            raise TunelabError(
                f"the training of trial {chosen.number} in full {run.status.value.lower()}: {run.reason}; "
                f"remove {folder} to try again"
            )
    return _finish(opened, runs, chosen, configs, trained)


def _full_length(config: TrialConfig, epochs: int, keep_val: bool, index: int) -> TrialConfig:
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, epochs=epochs),
        data=dataclasses.replace(config.data, train_on="train" if keep_val else "train+val"),
        seed=derive_seed(config.seed, "retrain", index),
    )


def _finish(
    study: Study, runs: Study, chosen: Trial, configs: list[TrialConfig], trained: list[Trial]
) -> dict[str, Any]:
    """Reads the test split, unless that was done for these runs, and writes the files."""
    file = runs.path / "metrics.json"
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if len(before.get("seeds", [])) >= len(trained):
        return before
    device = pick_device(str(study.info["options"]["device"]))
    info = prepare(configs[0].data)
    test = load_split(configs[0].data, "test", device, study.info["options"].get("memory"))
    chosen_precision = runs.info.get("slots", {}).get("precision", "auto")  # of those that the recipe leaves open
    results = []
    for run, config in zip(trained, configs, strict=False):
        stated = config.train.precision
        precision = chosen_precision if stated == "auto" else stated
        model = load_model(config, runs.trial_folder(run.number) / "checkpoint" / "last.pt", info, device)
        if run.number == 0:
            _write_model(runs.path, model, config, info)
        results.append(evaluate(model, test, info, device=device, precision=precision))
    metrics = _metrics(study, runs, chosen, configs, trained, results)
    rows = learning_curve([run.epochs for run in trained])
    write_csv(runs.path / "learning_curve.csv", rows)
    title = f"{study.name}, trial {chosen.number}, {configs[0].train.epochs} epochs"
    draw_learning_curve(rows, runs.path / "learning_curve.png", title, metrics["test_accuracy"])
    write_atomically(file, json.dumps(metrics, indent=2) + "\n")
    return metrics


def _write_model(folder: Path, model: nn.Module, config: TrialConfig, info: DataInfo) -> None:
    """Writes the weights, and beside them all that is needed to use them: no pickle in either."""
    temporary = folder / ".model.safetensors.tmp"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    temporary.replace(folder / "model.safetensors")
    content = {
        "trial_config": to_json(config),
        "classes": list(info.classes),
        "channels": info.channels,
        "image_size": list(info.image_size),
        "mean": list(info.mean),
        "std": list(info.std),
        "data_fingerprint": info.fingerprint,
    }
    write_atomically(folder / "config.json", json.dumps(content, indent=2) + "\n")


def _metrics(
    study: Study,
    runs: Study,
    chosen: Trial,
    configs: list[TrialConfig],
    trained: list[Trial],
    results: list[Evaluation],
) -> dict[str, Any]:
    """What `metrics.json` holds: accuracies lie in [0, 1], losses are in nats, `seconds` is training time."""
    accuracies = [result.accuracy for result in results]
    place = next((one for one in study.standings() if chosen.number in one.runs), None)
    return {
        "study": str(study.path),
        "trial": chosen.number,
        "arch_id": chosen.arch_id,
        "epochs": configs[0].train.epochs,
        "trained_on": configs[0].data.train_on,
        "folder": str(runs.path),
        "search_val_accuracy": place.standing.mean if place is not None else chosen.score,
        "search_runs": place.standing.runs if place is not None else 1,
        "search_epochs": len(chosen.epochs),
        "test_accuracy": statistics.fmean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_loss": statistics.fmean(result.loss for result in results),
        "test_images": results[0].n,
        "test_reads_before": _test_reads(study, runs),
        "params": chosen.stats.get("params"),
        "mflops": chosen.stats.get("mflops"),
        "seeds": [
            {
                "seed": config.seed,
                "test": result.to_json(),
                "last_epoch": run.epochs[-1].to_json(),
                "seconds": sum(metrics.seconds for metrics in run.epochs),
                "notes": run.notes,
            }
            for config, run, result in zip(configs, trained, results, strict=False)
        ],
    }


def _test_reads(study: Study, runs: Study) -> int:
    """How many trainings of this study have been scored on the test split before: a choice among them is biased."""
    others = [file for file in study.path.glob("retrain-*/metrics.json") if file.parent != runs.path]
    return sum(len(json.loads(file.read_text(encoding="utf-8"))["seeds"]) for file in others)
