"""Whether a network learns its training images by heart, or too little of them; plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tunelab.records import OVER_FITTING, UNDER_FITTING, EpochMetrics, Finding
from tunelab.training.cases import Task

RISEN = 1.1
"""A validation loss of so many times its lowest has risen; our choice."""
GAP = 0.1
"""Training above validation accuracy by so much is over-fitting, beyond chance; our choice."""
POOR = 0.25
"""Errors, as a share of those of guessing, above which a training that ends without over-fitting has learnt too little;
our choice."""
_CHANCE = 3.0  # standard errors of the difference of two accuracies; our choice
_LASTS = 3  # epochs in a row that show a gap: statistics of norms are late in the first ones; our choice


def fitting(epochs: Sequence[EpochMetrics], task: Task) -> Iterator[Finding]:
    """Remarks on the training up to the last of these epochs; without validation images there is none."""
    if not epochs or epochs[-1].val_loss is None or epochs[-1].val_accuracy is None:
        return
    last, val_accuracy, val_loss = epochs[-1], epochs[-1].val_accuracy, epochs[-1].val_loss
    recent = epochs[-_LASTS:]
    beyond = len(recent) == _LASTS and all(_gap(one, task)[1] > _CHANCE for one in recent)
    wide = all(_gap(one, task)[0] > GAP for one in recent)
    lowest = min(epochs, key=lambda one: math.inf if one.val_loss is None else one.val_loss)
    risen = last.epoch >= lowest.epoch + 2 and val_loss > RISEN * (lowest.val_loss or 0.0)
    accuracies = {"train_accuracy": _four(last.train_accuracy), "val_accuracy": _four(val_accuracy)}
    if beyond and (wide or risen):
        evidence: dict[str, float | str] = {**accuracies, "val_loss": _four(val_loss)}
        evidence |= {"lowest_val_loss": _four(lowest.val_loss or 0.0), "of_epoch": lowest.epoch}
        advice = "more augmentation, weight decay or dropout, a smaller network, or fewer epochs"
        yield Finding(OVER_FITTING, "", evidence, advice, last.epoch)
    errors = (1 - max(last.train_accuracy, val_accuracy)) / max(1 - task.guess, 1e-9)
    if not beyond and last.epoch == task.epochs and errors > POOR:
        evidence = {**accuracies, "errors_as_a_share_of_guessing": _four(errors)}
        advice = "more epochs, a higher learning rate, a larger network, or less augmentation and dropout"
        yield Finding(UNDER_FITTING, "", evidence, advice, last.epoch)


def _gap(epoch: EpochMetrics, task: Task) -> tuple[float, float]:
    """By how much training is above validation accuracy, and how many standard errors that is."""
    val = epoch.val_accuracy or 0.0
    gap = epoch.train_accuracy - val
    return gap, gap / math.sqrt(_variance(epoch.train_accuracy, task.images) + _variance(val, task.val_images))


def _variance(accuracy: float, images: int) -> float:
    """Of an accuracy on so many images, never quite 0."""
    return max(accuracy * (1 - accuracy), 1 / max(images, 2)) / max(images, 1)


def _four(value: float) -> float:
    return float(f"{value:.4g}")
