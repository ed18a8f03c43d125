"""How good a network is on images that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tunelab.data.batches import Split, eval_batches
from tunelab.data.cache import DataInfo
from tunelab.training.device import autocast_dtype, contiguous
from tunelab.training.group import ALONE, Group
from tunelab.training.pulse import Beats, NoBeats

Precision = Literal["auto", "float32", "bfloat16", "float16"]

BATCH_PIXELS = 1000 * 32 * 32
"""Pixels of an evaluation batch, at most 1000 images of 32x32: enough to keep a device busy; our choice."""


@dataclass(frozen=True)
class Evaluation:
    """The answers of a network on `n` images. `loss` is the mean cross-entropy in nats, `accuracy` lies in [0, 1].

    `confusion[i][j]` counts the images of class i that were taken for class j.
    """

    loss: float
    accuracy: float
    correct: int
    n: int
    confusion: tuple[tuple[int, ...], ...]

    @property
    def class_correct(self) -> tuple[int, ...]:
        """The correct answers of each class."""
        return tuple(row[index] for index, row in enumerate(self.confusion))

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The images of each class."""
        return tuple(sum(row) for row in self.confusion)

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain JSON values."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "correct": self.correct,
            "n": self.n,
            "class_correct": list(self.class_correct),
            "class_counts": list(self.class_counts),
            "confusion": [list(row) for row in self.confusion],
        }


def evaluate(
    model: nn.Module,
    split: Split,
    info: DataInfo,
    *,
    device: torch.device | str,
    precision: Precision = "auto",
    channels_last: bool = True,
    parts: int = 1,
    pulse: Beats | None = None,
    group: Group = ALONE,
) -> Evaluation:
    """What `model`, on `device`, makes of the images of `split`, which are loaded there too.

    `channels_last` is the memory order of its weights, which the images are put into. With `parts` as many images as
    are usual at once are taken in so many parts, for want of memory. The network is put into evaluation mode and back
    into the mode it was in. `pulse` is told of each batch. In a `group` each process takes its share of the images, and
    all learn of all.
    """
    device = torch.device(device)
    tally = _Tally(len(info.classes), device)
    split = split if group.share is None else split.part(group.share)
    with torch.inference_mode():
        # Of fewer images than processes some have none, which not every network takes.
        some = len(split.labels) > 0
        answers = _answers(model, split, info, device, precision, channels_last, parts) if some else ()
        for scores, labels in (pulse or NoBeats()).each(answers, "validating"):
            tally.add(scores, labels)
    group.add_up(tally.loss, tally.confusion)
    return tally.result()


def class_scores(
    model: nn.Module,
    split: Split,
    info: DataInfo,
    *,
    device: torch.device | str,
    precision: Precision = "auto",
) -> torch.Tensor:
    """The scores that `model` gives each image of `split`, before the softmax: float32 (N, classes), on the host.

    The rest is as for `evaluate`.
    """
    with torch.inference_mode():
        found = [scores.cpu() for scores, _ in _answers(model, split, info, torch.device(device), precision, True)]
    return torch.cat(found)


def judge(scores: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """How good scores (N, classes) of images are, whose labels are int64 (N,), both on the host."""
    tally = _Tally(scores.shape[1], torch.device("cpu"))
    tally.add(scores, labels)
    return tally.result()


def ensemble(scores: Sequence[torch.Tensor]) -> torch.Tensor:
    """The scores (N, classes) of several networks together: the logarithm of the mean of their probabilities."""
    each = torch.stack([one.log_softmax(1) for one in scores])
    return each.logsumexp(0) - math.log(len(scores))


class _Tally:
    """The sums over answers that an evaluation is made of."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)

    def add(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Counts in scores (B, classes) of images with these labels (B,)."""
        self.loss += nn.functional.cross_entropy(scores, labels, reduction="sum")
        pairs = labels * self._classes + scores.argmax(1)
        self.confusion += torch.bincount(pairs, minlength=self._classes * self._classes)

    def result(self) -> Evaluation:
        """What all of them come to; waits for the device."""
        counts = self.confusion.view(self._classes, self._classes).cpu()
        n, correct = int(counts.sum()), int(counts.trace())
        rows = tuple(tuple(row) for row in counts.tolist())
        return Evaluation(float(self.loss) / max(n, 1), correct / max(n, 1), correct, n, rows)


def _answers(
    model: nn.Module,
    split: Split,
    info: DataInfo,
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    parts: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The scores of each batch, float32 (B, classes), and its labels (B,)."""
    compute = autocast_dtype(precision, device)
    was_training = model.training
    model.eval()
    height, width = split.image_shape[:2]
    batch_size = max(1, min(1000, BATCH_PIXELS // (height * width)) // parts)
    for images, labels in eval_batches(split, info, batch_size, dtype=compute or torch.float32):
        with torch.autocast(device.type, dtype=compute, enabled=compute is not None):
            logits = model(images if channels_last else contiguous(images))
        yield logits.float(), labels
    model.train(was_training)
