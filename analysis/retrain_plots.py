"""The winner trained in full: its learning curve, and what it makes of the test images, as its folder tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunelab.config import DataConfig, TrialConfig, from_json
from tunelab.data.cache import decoded_images
from tunelab.errors import NothingToDrawError, TunelabError
from tunelab.files import read_json
from tunelab.records import Trial
from tunelab.study import Study, load

from .canvas import COLOURS, Rows, new_figure, save
from .intervals import of_images
from .plots import draw_learning_curve, learning_curve

Counts: TypeAlias = NDArray[np.int64]

PREDICTIONS = "test_predictions.npz"
MOST_MISTAKES = 24
MOST_CLASSES = 40
"""What is drawn at most: mistakes, and classes by their names (our choice)."""


def retrainings(study: Study) -> list[tuple[Path, dict[str, Any]]]:
    """The folders of finished retrainings with what `metrics.json` holds, the newest first; damaged ones left out."""
    found = []
    for file in study.path.glob("retrain-*/metrics.json"):
        content = _read(file)
        if content is not None:
            found.append((file.stat().st_mtime, file.parent, content))
    return [(folder, content) for _, folder, content in sorted(found, key=lambda one: one[:2], reverse=True)]


def _read(file: Path) -> dict[str, Any] | None:
    """What a `metrics.json` holds, None of one that is damaged."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "test_accuracy" in content else None


def newest(study: Study) -> tuple[Path, dict[str, Any]]:
    """The newest finished retraining.

    Raises:
        NothingToDrawError: there is none.
    """
    found = retrainings(study)
    if not found:
        raise NothingToDrawError("the winner has not been trained in full: `tunelab best --retrain` does that")
    return found[0]


def full_curve(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per seed and epoch of the newest retraining, as `learning_curve` gives them, with the test accuracy.

    Raises:
        NothingToDrawError: there is no finished retraining, or its record is gone.
    """
    folder, metrics = newest(study)
    try:
        runs = load(folder).list_trials()[: len(metrics.get("seeds", ())) or None]
    except TunelabError as error:
        raise NothingToDrawError(f"the record of the retraining cannot be read: {error}") from error
    rows = learning_curve([run.epochs for run in runs])
    if not rows:
        raise NothingToDrawError(f"the record of {folder.name} has no epochs")
    return [{**row, "test_accuracy": metrics["test_accuracy"]} for row in rows]


def draw_full_curve(rows: Rows, path: Path, title: str) -> None:
    """Draws loss, accuracy and learning rate, with the test accuracy as a dashed line."""
    draw_learning_curve(rows, path, title, rows[0]["test_accuracy"])


def confusion(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per pair of a true and a predicted class that came up: how many test images, over all seeds.

    `share` is of the images of the true class.

    Raises:
        NothingToDrawError: there is no finished retraining, or it says nothing about classes.
    """
    counts, _ = confusion_counts(study)
    names = _names(study, len(counts))
    return [
        {
            "true": names[true],
            "predicted": names[taken],
            "images": int(counts[true, taken]),
            "share": float(counts[true, taken] / max(1, counts[true].sum())),
            "_true": true,
            "_predicted": taken,
        }
        for true in range(len(counts))
        for taken in range(len(counts))
        if counts[true, taken] or true == taken
    ]


def confusion_counts(study: Study) -> tuple[Counts, int]:
    """The test images by true and predicted class, int64 (classes, classes), summed over the seeds, and their number.

    Raises:
        NothingToDrawError: there is no finished retraining, or it says nothing about classes.
    """
    folder, metrics = newest(study)
    found = [one.get("test", {}).get("confusion") for one in metrics.get("seeds", ()) if isinstance(one, Mapping)]
    tables = [np.asarray(table, dtype=np.int64) for table in found if table]
    if tables:
        return np.sum(tables, axis=0), len(tables)
    labels, predicted, _ = predictions(folder)
    classes = max(len(study.info.get("data", {}).get("classes", ())), int(labels.max()) + 1, int(predicted.max()) + 1)
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes), 1


def predictions(folder: Path) -> tuple[Any, Any, Any]:
    """The true and predicted classes of the test images, int64 (N,), and the probability of the latter, float (N,).

    Raises:
        NothingToDrawError: they were not kept, or cannot be read.
    """
    try:
        with np.load(folder / PREDICTIONS, allow_pickle=False) as kept:
            labels, predicted = kept["labels"].astype(np.int64), kept["predicted"].astype(np.int64)
            probability = kept["probability"].astype(np.float64)
    except FileNotFoundError:
        raise NothingToDrawError(f"{folder.name} has no {PREDICTIONS}") from None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise NothingToDrawError(f"{folder.name}/{PREDICTIONS} cannot be read: {error}") from error
    if not (labels.ndim == 1 and len(labels) > 0 and labels.shape == predicted.shape == probability.shape):
        raise NothingToDrawError(f"{folder.name}/{PREDICTIONS} does not hold three equally long lists")
    return labels, predicted, probability


def draw_confusion(rows: Rows, path: Path, title: str) -> None:
    """Draws the true classes as lines, the predicted ones as columns, coloured by their share of the line."""
    names = {row["_true"]: row["true"] for row in rows}
    count = len(names)
    shares = np.zeros((count, count))
    for row in rows:
        shares[row["_true"], row["_predicted"]] = 100 * row["share"]
    side = min(11.0, max(4.5, 2.5 + 0.42 * count))
    figure, (panel,) = new_figure(side + 1, side)
    drawn = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    panel.grid(visible=False)
    panel.set(xlabel="predicted", ylabel="true")
    if count <= MOST_CLASSES:
        labels = [_short(names[place]) for place in range(count)]
        size = 9 if count <= 20 else 7
        panel.set_xticks(range(count), labels, rotation=90, fontsize=size)
        panel.set_yticks(range(count), labels, fontsize=size)
    if count <= 20:
        for row in rows:
            if row["images"]:
                colour = "white" if row["share"] > 0.55 else "black"
                place = row["_predicted"], row["_true"]
                panel.text(*place, str(row["images"]), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(drawn, ax=panel, label="% of the true class", shrink=0.8)
    save(figure, path, title)


def classes(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per class, the worst first: the share of right answers on its test images, the mean over seeds.

    The 95% interval, `low` to `high`, is that of one reading of the images: seeds are no further images.

    Raises:
        NothingToDrawError: there is no finished retraining, or it says nothing about classes.
    """
    counts, seeds = confusion_counts(study)
    names = _names(study, len(counts))
    rows = []
    for number, line in enumerate(counts):
        images = int(line.sum()) // seeds
        if images:
            share = float(line[number] / line.sum())
            known = of_images(share * images, images)
            ends = {"low": known["low"], "high": known["high"]}
            rows.append({"class": names[number], "images": images, "accuracy": share, **ends})
    return sorted(rows, key=lambda row: row["accuracy"])


def draw_classes(rows: Rows, path: Path, title: str) -> None:
    """Draws the accuracy of each class as a bar with its interval; of many classes the worst."""
    shown = rows[:MOST_CLASSES]
    figure, (panel,) = new_figure(9, 1.3 + 0.3 * len(shown))
    places = range(len(shown))
    heights = [100 * row["accuracy"] for row in shown]
    spread = (
        [100 * (row["accuracy"] - row["low"]) for row in shown],
        [100 * (row["high"] - row["accuracy"]) for row in shown],
    )
    panel.barh(places, heights, color=COLOURS["completed"], xerr=spread, error_kw={"elinewidth": 1, "capsize": 2})
    panel.set_yticks(places, [f"{_short(row['class'])} ({row['images']})" for row in shown])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set(xlabel="right answers on test images (%)", xlim=(0, 102))
    save(figure, path, title)


def mistakes(study: Study, trials: Sequence[Trial]) -> Rows:
    """One row per wrong answer that the network was surest of: which test image, both classes, the probability.

    Raises:
        NothingToDrawError: no predictions were kept, none is wrong, or the images are not decoded on this machine.
    """
    folder, _ = newest(study)
    labels, predicted, probability = predictions(folder)
    wrong = np.flatnonzero(labels != predicted)
    if not len(wrong):
        raise NothingToDrawError(f"all {len(labels)} test images were answered right")
    surest = wrong[np.argsort(-probability[wrong], kind="stable")][:MOST_MISTAKES]
    pixels = _test_images(study, folder, len(labels))
    names = _names(study, int(max(labels.max(), predicted.max())) + 1)
    return [
        {
            "image": int(place),
            "true": names[int(labels[place])],
            "predicted": names[int(predicted[place])],
            "probability": float(probability[place]),
            "_pixels": pixels[place],
        }
        for place in surest
    ]


def _test_images(study: Study, folder: Path, count: int) -> Any:
    """The test images, uint8 (N, H, W, C), if they are at hand: nothing is decoded or downloaded for a picture."""
    try:
        config = read_json(folder / "config.json")
        data = from_json(TrialConfig, config["trial_config"]).data
    except (OSError, ValueError, KeyError, TypeError):
        data = from_json(DataConfig, study.info["options"].get("data", {}))
    try:
        images = decoded_images(data, "test")
    except (TunelabError, OSError) as error:
        raise NothingToDrawError(f"the test images are not at hand: {error}") from error
    if images is None or len(images) != count:
        raise NothingToDrawError("the test images are not decoded on this machine")
    return images


def draw_mistakes(rows: Rows, path: Path, title: str) -> None:
    """Draws the images with what they are and what they were taken for."""
    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, axes = new_figure(1.75 * columns + 0.3, 2.05 * lines + 0.5, lines, columns)
    for panel, row in zip(axes, rows, strict=False):
        image = np.asarray(row["_pixels"])
        panel.imshow(image[..., 0] if image.shape[-1] == 1 else image[..., :3], cmap="gray", vmin=0, vmax=255)
        said = f"{_short(row['predicted'])} {100 * row['probability']:.0f}%\nis {_short(row['true'])}"
        panel.set_title(said, fontsize=8)
    for panel in axes:
        panel.set_axis_off()
    save(figure, path, title)


def _names(study: Study, count: int) -> list[str]:
    """The classes' names, and numbers where there are too few."""
    known = [str(name) for name in study.info.get("data", {}).get("classes", ())]
    return known[:count] + [f"class {number}" for number in range(len(known), count)]


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
