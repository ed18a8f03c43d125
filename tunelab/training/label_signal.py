"""Whether the pixels of images tell their labels at all, by classifiers that need no training of steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tunelab.data.batches import Split

MOST = 2000
"""So many images at most are learnt from, and as many are judged; our choice: a fraction of a second."""
_SIDE = 12  # pixels of the side that images are made smaller to; our choice
_RIDGE = 0.1  # of the mean variance of a pixel is added to each; our choice


@torch.no_grad()
def signal(train: Split, val: Split | None, classes: int) -> float:
    """By how many standard errors the better of two simple classifiers beats always naming the most frequent class.

    The classifiers are ridge regression on the labels and the nearest neighbour, of the pixels of images made smaller,
    learnt from some training images and judged on validation images, or on other training images where there are none.
    One above 2.6 has a chance of 1% (of two). Nothing is drawn from the global random state.
    """
    images, labels = _some(train, 2 * MOST if val is None else MOST)
    if val is None:
        half = len(labels) // 2
        images, labels, judged, truth = images[:half], labels[:half], images[half:], labels[half:]
    else:
        judged, truth = _some(val, MOST)
    if not len(labels) or not len(truth):
        return math.inf
    mean = images.mean(0)
    images, judged = images - mean, judged - mean
    guess = float(torch.bincount(truth, minlength=classes).max()) / len(truth)
    spread = math.sqrt(max(guess * (1 - guess), 1e-9) / len(truth))
    answers = (_ridge(images, labels, judged, classes), labels[torch.cdist(judged, images).argmin(1)])
    best = max(float((answer == truth).float().mean()) for answer in answers)
    return (best - guess) / spread


def _ridge(images: Tensor, labels: Tensor, judged: Tensor, classes: int) -> Tensor:
    targets = functional.one_hot(labels, classes).float()
    shift = targets.mean(0)
    square = images.T @ images
    square.diagonal().add_(_RIDGE * float(square.diagonal().mean()) + 1e-6)
    weights = torch.linalg.solve(square, images.T @ (targets - shift))
    answers: Tensor = (judged @ weights + shift).argmax(1)
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
