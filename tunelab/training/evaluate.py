"""How good a network is on images that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tunelab.data.batches import Split, eval_batches
from tunelab.data.cache import DataInfo
from tunelab.training.device import autocast_dtype
from tunelab.training.step import contiguous

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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    info: DataInfo,
    *,
    device: torch.device | str,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    channels_last: bool = True,
) -> Evaluation:
    """What `model`, on `device`, makes of the images of `split`, which are loaded there too.

    `channels_last` is the memory order of its weights, which the images are put into. The network is put into
    evaluation mode and back into the mode it was in.
    """
    device = torch.device(device)
    classes = len(info.classes)
    compute = autocast_dtype(precision, device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    was_training = model.training
    model.eval()
    height, width = split.image_shape[:2]
    batch_size = max(1, min(1000, BATCH_PIXELS // (height * width)))
    for images, labels in eval_batches(split, info, batch_size, dtype=compute or torch.float32):
        with torch.autocast(device.type, dtype=compute, enabled=compute is not None):
            logits = model(images if channels_last else contiguous(images))
        logits = logits.float()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    model.train(was_training)
    counts = confusion.view(classes, classes).cpu()
    n, correct = int(counts.sum()), int(counts.trace())
    rows = tuple(tuple(row) for row in counts.tolist())
    return Evaluation(float(loss) / max(n, 1), correct / max(n, 1), correct, n, rows)
