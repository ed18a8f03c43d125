"""The card of a trained model: what it is, how good it is and how surely, how it was found, and what is not known.

`card` makes Markdown of plain data alone; `write_card` gathers that data from a folder and writes `card.md`.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunelab.config import to_json
from tunelab.errors import InputError
from tunelab.files import read_json, write_atomically
from tunelab.noise import CONFIDENCE
from tunelab.study import Study, proposed
from tunelab.training.device import pick_device
from tunelab.training.model_files import DESCRIPTION, find_model, open_model

from .intervals import of_images, of_trainings
from .latency import measure_latency
from .rank import describe_config
from .readings import describe
from .text import count, percent

CARD = "card.md"
_LISTED = 50  # classes that are named one after another in the text; our choice
_OPTIONS = "trials", "epochs", "seed", "sampler", "scheduler"  # of a search, those that the card tells


def write_card(folder: Path, device: str = "auto") -> Path:
    """Writes `card.md` into the folder of a retraining, and returns its path. The latency is measured for it.

    Args:
        folder: with the model, its `metrics.json`, and, as a study, the record of its training.
        device: where the latency is measured: "auto", "cpu" or "cuda".

    Raises:
        InputError: the folder has no model, or lacks its metrics.
        OSError: the card cannot be written.
    """
    model = open_model(find_model(folder), pick_device(device))
    try:
        metrics = read_json(folder / "metrics.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'metrics.json'} cannot be read: {error}") from error
    runs = Study.open(folder)
    description = read_json(folder / DESCRIPTION)
    latency = measure_latency(model)
    file = folder / CARD
    write_atomically(file, card(metrics, description, runs.info, found_by(runs, metrics), latency))
    return file


def found_by(runs: Study, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is to be told of the search that a retraining comes from; None where its study is gone.

    The study is the folder around that of the retraining, or where it was when it was trained.
    """
    for path in (runs.path.parent, Path(str(metrics.get("study", "")))):
        if (path / "study.json").exists():
            study = Study.open(path)
            break
    else:
        return None
    trials = study.list_trials()
    ranked = study.places_of(trials)
    options = study.info.get("options", {})
    return {
        "name": study.name,
        "space": study.info.get("space", {}),
        "options": {name: options[name] for name in _OPTIONS if name in options},
        "created": study.info.get("created", ""),
        "trials": len(proposed(trials)),
        "repeats": len(trials) - len(proposed(trials)),
        "hours": sum(epoch.seconds for trial in trials for epoch in trial.epochs) / 3600,
        "best": ranked[0].trial.number if ranked else None,
        "recipe": next((to_json(study.config(one).train) for one in trials if one.number == metrics["trial"]), None),
        "hardware": study.info.get("hardware", {}),
    }


def card(
    metrics: Mapping[str, Any],
    description: Mapping[str, Any],
    info: Mapping[str, Any],
    search: Mapping[str, Any] | None,
    latency: Sequence[Mapping[str, Any]],
) -> str:
    """The card as Markdown.

    Args:
        metrics: the content of `metrics.json`.
        description: the content of the model's `config.json`.
        info: the content of the retraining's `study.json`.
        search: what `found_by` gives.
        latency: what `measure_latency` gives.
    """
    config = description["trial_config"]
    title = f"{metrics['arch_id']}, trained on {config['data']['name']}"
    parts = [
        [f"# Model {_text(title)}", "", _text(describe_config(config))],
        ["## Data", "", *_data(metrics, description, info)],
        ["## How good it is", "", *_scores(metrics)],
        ["## Class by class", "", *_classes(metrics["seeds"][0]["test"], description["classes"])],
        ["## What it costs", "", *_costs(metrics, latency)],
        ["## How it was found", "", *_found(metrics, search)],
        ["## How to train it again", "", *_again(metrics, info, search)],
        ["## What is not known", "", *_limits(metrics, description)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def per_class(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per class, from the test of one training: images, precision, recall and the recall's interval.

    `precision` is None where no image was taken for the class, or where the file is of a version without a confusion
    matrix; `recall` is None where the class has no test images.
    """
    confusion = test.get("confusion")
    rows = []
    for place, (correct, n) in enumerate(zip(test["class_correct"], test["class_counts"], strict=True)):
        taken = sum(row[place] for row in confusion) if confusion else 0
        rows.append(
            {
                "images": n,
                "precision": correct / taken if taken else None,
                "recall": correct / n if n else None,
                "interval": _ends(of_images(correct, n)),
            }
        )
    return rows


def _data(metrics: Mapping[str, Any], description: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    height, width = description["image_size"]
    channels, classes = description["channels"], description["classes"]
    counts = info.get("data", {}).get("counts", {})
    images = f"{counts.get('train', '?')} training images, {metrics['test_images']} test images"
    names = ", ".join(_text(name) for name in classes[:_LISTED])
    more = f" and {len(classes) - _LISTED} more, in `{DESCRIPTION}`" if len(classes) > _LISTED else ""
    numbers = {name: ", ".join(f"{value:.4f}" for value in description[name]) for name in ("mean", "std")}
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    scaling = (
        f"pixels scaled to [0, 1], minus the mean ({numbers['mean']}), divided by the standard deviation "
        f"({numbers['std']}) of each channel"
    )
    if not description["trial_config"]["data"].get("normalise", True):
        scaling = "pixels as they are, 0 to 255"
    return [
        f"- Data: {_text(description['trial_config']['data']['name'])}, fingerprint "
        f"`{description.get('data_fingerprint') or 'unknown'}`; trained on {metrics['trained_on']}: {images}",
        f"- {len(classes)} classes: {names}{more}",
        f"- Preprocessing: images of {height} x {width} pixels (height x width), {colours}; others are stretched to "
        f"that (bicubic with antialias); {scaling}",
    ]


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    seeds = metrics["seeds"]
    first = seeds[0]["test"]
    low, high = _ends(of_images(first["correct"], first["n"]))
    level = f"{100 * CONFIDENCE:.0f}%"
    rows = [
        [
            "test accuracy of this model",
            percent(first["accuracy"]),
            _between(low, high),
            f"{first['n']} images (Wilson)",
        ],
        ["test loss of this model (nats)", f"{first['loss']:.4f}", "", f"{first['n']} images"],
    ]
    if len(seeds) > 1:
        accuracies = [seed["test"]["accuracy"] for seed in seeds]
        low, high = _ends(of_trainings(accuracies))
        basis = f"{len(seeds)} trainings with other seeds (Student's t)"
        rows.append(
            ["test accuracy, mean of trainings", percent(statistics.fmean(accuracies)), _between(low, high), basis]
        )
    ensemble = metrics.get("ensemble")
    if isinstance(ensemble, Mapping) and {"correct", "n", "accuracy"} <= ensemble.keys():
        low, high = _ends(of_images(ensemble["correct"], ensemble["n"]))
        basis = "the mean of the probabilities of all trainings"
        rows.append(["test accuracy of the ensemble", percent(ensemble["accuracy"]), _between(low, high), basis])
    said = metrics.get("search_val_accuracy")
    if said is not None:
        runs = int(metrics.get("search_runs", 1))
        basis = f"{runs} training{'' if runs == 1 else 's'} of {metrics.get('search_epochs', '?')} epochs in the search"
        rows.append(["validation accuracy, by which it was chosen", percent(said), "", basis])
    before = int(metrics.get("test_reads_before", 0))
    told = describe(metrics.get("test_readings_before") or [])
    if before and not told:
        told = f"the test images of this study had been read before, by {before} training{'' if before == 1 else 's'}"
    note = (
        f"{_text(told[:1].upper() + told[1:])}: a choice among them makes these numbers too good."
        if before
        else "The test images were read after the training, and by no training of this study before."
    )
    return [*_table(["", "value", f"{level} interval", "from"], rows), "", note]


def _classes(test: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    rows = [
        [_text(name), percent(row["precision"]), percent(row["recall"]), _between(*row["interval"]), str(row["images"])]
        for name, row in zip(classes, per_class(test), strict=True)
    ]
    head = ["class", "precision", "recall", "interval of the recall", "test images"]
    return [*_table(head, rows), "", "Of this model. `metrics.json` has the confusion matrix."]


def _costs(metrics: Mapping[str, Any], latency: Sequence[Mapping[str, Any]]) -> list[str]:
    mflops = metrics.get("mflops")
    size = "unknown" if mflops is None else f"{mflops:.2f} million"
    lines = [f"- {count(metrics.get('params'))} parameters, {size} multiply-adds per image"]
    for row in latency:
        threads = "" if row["threads"] is None else f", {row['threads']} thread{'' if row['threads'] == 1 else 's'}"
        images = "1 image" if row["batch"] == 1 else f"{row['batch']} images at once"
        lines.append(
            f"- {images}: {row['median_ms']:.2f} ms (median; 10% to 90%: {row['low_ms']:.2f} to {row['high_ms']:.2f}, "
            f"n = {row['answers']}), float32 on {_text(row['device'])}{threads}"
        )
    return lines


def _found(metrics: Mapping[str, Any], search: Mapping[str, Any] | None) -> list[str]:
    if search is None:
        return [f"By trial {metrics['trial']} of a study that is not here any more."]
    space, options = search["space"], search["options"]
    chosen = "the best of the ranking" if search["best"] == metrics["trial"] else "named by hand, not the best one"
    repeats = f" and {search['repeats']} repeats" if search["repeats"] else ""
    return [
        f"- Space {_text(space.get('name', '?'))}, version {space.get('version', '?')}; "
        + ", ".join(f"{name} {value}" for name, value in options.items()),
        f"- {search['trials']} trials{repeats}, {search['hours']:.2f} hours of training (added up over trials side by "
        f"side), begun {search['created']} on {_text(search['hardware'].get('processor', 'an unknown processor'))}",
        f"- Trial {metrics['trial']}: {chosen}; then trained for {metrics['epochs']} epochs on {metrics['trained_on']}",
    ]


def _again(metrics: Mapping[str, Any], info: Mapping[str, Any], search: Mapping[str, Any] | None) -> list[str]:
    changes = _changes((search or {}).get("recipe"), metrics.get("recipe"))
    recipe = " --recipe recipe.yaml" if changes else ""
    written = [f"printf %s {shlex.quote(json.dumps(changes))} > recipe.yaml"] if changes else []
    keep = " --keep-val" if metrics["trained_on"] == "train" else ""
    study = _quoted(Path(str(metrics["study"])).name)
    slots, hardware, versions = info.get("slots", {}), info.get("hardware", {}), info.get("versions", {})
    how = [f"{name} {slots[name]}" for name in ("device", "cpus", "precision", "channels_last") if name in slots]
    processes, shared = int(slots.get("processes", 1)), ""
    if processes > 1:
        shared = f" --{'gpus' if slots.get('device') == 'cuda' else 'processes'} {processes}"
        how.append(f"by {processes} processes, which shared each batch")
    lines = [
        "```sh",
        *written,
        f"tunelab best {study} --retrain --trial {metrics['trial']} --epochs {metrics['epochs']} "
        f"--seeds {len(metrics['seeds'])}{keep}{recipe}{shared}",
        f"tunelab reproduce {study} {metrics['trial']}  # the trial of the search, compared epoch by epoch",
        "```",
        "",
        f"- Seeds {', '.join(str(seed['seed']) for seed in metrics['seeds'])}; this model is of the first",
    ]
    if versions:
        lines.append("- Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if hardware or how:
        gpus = ", ".join(hardware.get("gpus", ())) or "no GPU"
        lines.append(f"- Trained on {_text(hardware.get('processor', '?'))}, {_text(gpus)}; {', '.join(how)}")
    return lines


def _changes(own: Mapping[str, Any] | None, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `--recipe` is to change in a trial's own recipe, its epochs left out; nothing where one is unknown."""
    if own is None or recipe is None:
        return {}
    dropped: dict[str, Any] = {name: [] if name == "stages" else None for name in own if name not in recipe}
    changed = {name: value for name, value in recipe.items() if name != "epochs" and own.get(name) != value}
    if "schedule" in changed:  # which leaves by_norm out where it is not used
        changed["schedule"] = {"by_norm": False, **changed["schedule"]}
    return dropped | changed


def _limits(metrics: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    classes = len(description["classes"])
    rare = min(metrics["seeds"][0]["test"]["class_counts"])
    return [
        f"- It was tested on {metrics['test_images']} images of the same source as those that it was trained on (the "
        f"rarest class has {rare}), and on nothing else: no other camera, light, place or time.",
        f"- It takes every image for one of its {classes} classes, also one that shows none of them.",
        "- Its probabilities were not calibrated: 0.9 need not mean right in 9 of 10 cases.",
        "- It was not tested on damaged images, nor on images that were made to deceive it.",
        "- The intervals are about chance: which images of this source were tested, and which seeds. Nothing in them "
        "speaks of another source.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _ends(interval: Mapping[str, Any]) -> tuple[float, float]:
    return interval["low"], interval["high"]


def _between(low: float, high: float) -> str:
    """An interval of accuracies, none of which lies outside 0 to 100%."""
    return f"{100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}%"


def _text(value: object) -> str:
    """A text that is data, so that it shows as it is: no Markdown, no HTML, one line."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&~" else letter for letter in plain)


def _quoted(name: str) -> str:
    """A name as one word of a command line."""
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in name))
