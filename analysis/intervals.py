"""Intervals of accuracies: over several trainings, and of one that was measured on so many images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tunelab.noise import CONFIDENCE, student_t


def of_trainings(accuracies: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, Any]:
    """The interval of the mean of trainings that differ by their seeds, at least two: Student's t.

    It is of what such a training comes to on these images; other images of the same kind would differ a little more.
    With 2 trainings, which hardly say how far trainings differ, it is 9 times as wide as their standard deviation.
    """
    count = len(accuracies)
    margin = _student_t(confidence, count - 1) * statistics.stdev(accuracies) / math.sqrt(count)
    mean = statistics.fmean(accuracies)
    return _interval(mean - margin, mean + margin, confidence, f"Student's t over {count} seeds")


def of_images(correct: float, images: int, confidence: float = CONFIDENCE) -> dict[str, Any]:
    """The interval of an accuracy that was measured on so many images (Wilson, JASA 22, 1927).

    It is of what this network comes to on further images of the same kind; another training would differ more.
    `correct` may be a mean over trainings. Of no images it is all that an accuracy can be.
    """
    if images == 0:
        return _interval(0.0, 1.0, confidence, "no images")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / images, z**2 / images
    centre = (share + spread / 2) / (1 + spread)
    margin = z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return _interval(centre - margin, centre + margin, confidence, f"Wilson, {images} images")


def _interval(low: float, high: float, confidence: float, method: str) -> dict[str, Any]:
    """Accuracies lie in [0, 1]."""
    return {"low": max(0.0, low), "high": min(1.0, high), "confidence": confidence, "method": method}


def _student_t(confidence: float, degrees: int) -> float:
    """As `student_t`, whose formula is meant for 2 degrees of freedom and more; with 1 it is Cauchy's distribution."""
    return math.tan(math.pi / 2 * confidence) if degrees == 1 else student_t(confidence, degrees)
