"""Whether the pixels of images tell their labels at all, by classifiers that need no training of steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tunelab.data.batches import Split

MOST = 2000
"""So many images at most of each split; our choice: a fraction of a second."""
_SIDE = 12  # pixels of the side that images are made smaller to; our choice
_RIDGE = 0.1  # of the mean variance of a pixel is added to each; our choice


@torch.no_grad()
def signal(train: Split, val: Split | None, classes: int) -> float:
    """By how many standard errors the better of two simple classifiers finds the classes more often than by chance.

    The classifiers are ridge regression on the labels and the nearest neighbour, of the pixels of images made smaller.
    Half of some training and validation images is learnt from and the other half judged, and the other way round. What
    counts are the shares that are found of each class, not of all images: always naming the most frequent class finds
    nothing. One above 2.6 has a chance of 1% (of two). Nothing is drawn from the global random state.
    """
    parts = [_some(split, MOST) for split in (train, val) if split is not None and len(split.labels)]
    images, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    if len(labels) < 2:
        return math.inf
    found: list[tuple[Tensor, ...]] = []
    for first in (slice(0, None, 2), slice(1, None, 2)):
        second = slice(1 - (first.start or 0), None, 2)
        mean = images[first].mean(0)
        learnt, known, judged = images[first] - mean, labels[first], images[second] - mean
        nearest = known[torch.cdist(judged, learnt).argmin(1)]
        found.append((labels[second], _ridge(learnt, known, judged, classes), nearest))
    truth, *answers = (torch.cat(one) for one in zip(*found, strict=True))
    return max(_beyond_chance(answer, truth, classes) for answer in answers)


def _beyond_chance(answers: Tensor, truth: Tensor, classes: int) -> float:
    """By how many standard errors the sum of the classes' found shares is above that of answers without reason."""
    numbers = torch.bincount(truth, minlength=classes).double()
    there = numbers > 0
    found = torch.bincount(truth[answers == truth], minlength=classes)[there] / numbers[there]
    given = (torch.bincount(answers, minlength=classes).double() / len(truth))[there]
    spread = float((given * (1 - given) / numbers[there]).sum().sqrt())
    return float((found - given).sum()) / spread if spread > 1e-9 else 0.0


def _ridge(images: Tensor, labels: Tensor, judged: Tensor, classes: int) -> Tensor:
    """The class whose score is most above its share of the images, as a share of that."""
    targets = functional.one_hot(labels, classes).float()
    shift = targets.mean(0)
    square = images.T @ images
    square.diagonal().add_(_RIDGE * float(square.diagonal().mean()) + 1e-6)
    weights = torch.linalg.solve(square, images.T @ (targets - shift))
    answers: Tensor = ((judged @ weights) / shift.clamp(min=1e-9)).masked_fill(shift == 0, -math.inf).argmax(1)
    return answers


def _some(split: Split, number: int) -> tuple[Tensor, Tensor]:
    """Images drawn from a split, as rows of few pixels (n, d), and their labels (n,), on the host."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(split.labels), generator=generator)[:number].to(split.labels.device)
    rows = []
    for pixels in split.batches(min(number, 500), chosen):
        maps = pixels.permute(0, 3, 1, 2).float() / 255
        height, width = (min(side, _SIDE) for side in maps.shape[2:])
        rows.append(functional.adaptive_avg_pool2d(maps, (height, width)).flatten(1).cpu())
    return torch.cat(rows), split.labels[chosen].cpu()
