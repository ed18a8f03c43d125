"""Seconds per epoch of a configuration, from what its network costs: fitted to measurements, corrected by what happens.

A training step takes a non-negative combination of multiply-adds, convolution outputs, the number of convolutions (each
is a few calls, whatever the images) and a constant. Few points cannot tell these apart, so they are held near their
usual proportions (`USUAL`) by a ridge; the scale is the machine's own. What happens in the search corrects the scale
on, in logarithms, and says how far a prediction is off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Costs = np.ndarray[Any, Any]

USUAL: Mapping[str, tuple[float, float, float, float]] = {
    "cpu": (5e-5, 9e-9, 3e-4, 4e-3),
    "cuda": (1e-7, 2e-11, 2e-4, 1e-3),
}
"""Seconds of a training step per (million multiply-adds, convolution output, convolution, step).

For a processor: fitted to 100 draws of the space `arch` on digits and MNIST with one thread of an Intel Xeon. For a
GPU: our estimate for 50 TFLOPS, 2 TB/s and 0.2 ms to launch the kernels of a convolution and of its gradients. Only
their proportions matter where something was measured.
"""
_RIDGE = (
    0.3  # how firmly proportions are held: 1 would weigh a deviation by 100% like a point that is off by 100%; ours
)
_USUAL_VALIDATION = 0.35  # validation of an image costs this part of training on it: forward alone; fitted as USUAL
_EPOCH_SECONDS = 0.03  # beside training and validation: checkpoint, events, the way through Ray; measured on 2 CPUs
_SPREAD = 0.35  # standard deviation of log(real / predicted) of one configuration; fitted as USUAL
_SPREAD_WEIGHT = 5  # the usual spread counts as so many observed trials; our choice
_SHIFT_SPREAD = 0.2  # ... of the whole search: measured for seconds, trained for hours; twice ten had 0.14 and 0.27
_FIRMNESS = (_SPREAD / _SHIFT_SPREAD) ** 2  # so many observed trials weigh as much as the calibration
_MEASURED_SPREAD = 0.1  # ... of a configuration that was measured itself; our choice


@dataclass(frozen=True)
class Load:
    """What a configuration costs: per image `mflops` and `activations`, per step `convs`, and images per step.

    The outputs of a convolution that is followed by a norm count twice: a norm reads and writes them once more.
    """

    mflops: float
    activations: float
    convs: float
    batch_size: int


@dataclass(frozen=True)
class Point:
    """A measured configuration: seconds of a training step of `load`, and of the validation of an image (or None)."""

    load: Load
    step: float
    val_image: float | None = None


def load_of(config: Mapping[str, Any], stats: Mapping[str, Any]) -> Load:
    """The load of a configuration, given as plain JSON, with the stats of its network (models/check.py)."""
    normed = config["arch"].get("norm", "none") != "none"
    return Load(
        mflops=float(stats.get("mflops", 0.0)),
        activations=float(stats.get("activations", 0)) * (2 if normed else 1),
        convs=float(stats.get("convs", stats.get("depth", 1))),
        batch_size=int(config["train"]["batch_size"]),
    )


class Speed:
    """Predicts the seconds of an epoch.

    Args:
        points: what was measured; without any the usual figures of `device` are all there is.
        images: training images.
        val_images: validation images, 0 where nothing is held out.
        device: a key of USUAL.
    """

    def __init__(self, points: Sequence[Point], images: int, val_images: int, device: str = "cpu") -> None:
        self._images = images
        self._val_images = val_images
        self._measured = _measured(points)
        self._costs = _fit(points, np.array(USUAL[device]))
        self._validation = _fit_validation(points, self._costs)
        self._means: dict[int, tuple[float, int]] = {}
        self._offs: dict[int, float] = {}  # log(real / predicted) of each observed trial, and sums over them
        self._sum = 0.0
        self._squares = 0.0
        self._fitted_spread = _spread(points, self._costs)

    def predict(self, load: Load) -> float:
        """Seconds of an epoch, the median of what may come, as measured and corrected so far."""
        return self._uncorrected(load) * math.exp(self.shift)

    def spread(self, load: Load) -> float:
        """The standard deviation of log(real / predicted) of one configuration, beside that of `shift`."""
        if load in self._measured:
            return _MEASURED_SPREAD
        count = len(self._offs)
        squares = max(0.0, self._squares - 2 * self.shift * self._sum + count * self.shift**2)
        return math.sqrt((self._fitted_spread**2 * _SPREAD_WEIGHT + squares) / (_SPREAD_WEIGHT + count))

    @property
    def shift(self) -> float:
        """The mean of log(real / predicted) over the observed trials, drawn towards 0 while they are few."""
        return self._sum / (len(self._offs) + _FIRMNESS)

    @property
    def shift_spread(self) -> float:
        """The standard deviation of what `shift` will be at the end."""
        return _SPREAD / math.sqrt(len(self._offs) + _FIRMNESS)

    def observe(self, number: int, load: Load, seconds: float) -> None:
        """An epoch of trial `number` took so long."""
        if seconds <= 0:
            return
        mean, count = self._means.get(number, (0.0, 0))
        mean += (seconds - mean) / (count + 1)
        self._means[number] = (mean, count + 1)
        before = self._offs.get(number, 0.0)
        now = math.log((mean + _EPOCH_SECONDS) / self._uncorrected(load))
        self._sum += now - before
        self._squares += now**2 - before**2
        self._offs[number] = now

    def own(self, number: int) -> float | None:
        """The mean seconds of an epoch of a trial that has been observed."""
        return self._means[number][0] + _EPOCH_SECONDS if number in self._means else None

    def _uncorrected(self, load: Load) -> float:
        size = min(load.batch_size, self._images)
        steps = self._images // size
        step = self._measured.get(load) or float(_row(load, size) @ self._costs)
        image = load.mflops * self._costs[0] + load.activations * self._costs[1]
        return float(steps * step + self._val_images * image * self._validation + _EPOCH_SECONDS)


def guess_step(load: Load, device: str) -> float:
    """Seconds of a training step as they usually are, before anything is measured."""
    return float(_row(load, load.batch_size) @ np.array(USUAL[device]))


def _row(load: Load, size: int) -> Costs:
    return np.array([load.mflops * size, load.activations * size, load.convs, 1.0])


def _measured(points: Sequence[Point]) -> dict[Load, float]:
    """The step of each load, the geometric mean where it was measured several times."""
    logs: dict[Load, list[float]] = {}
    for point in points:
        logs.setdefault(point.load, []).append(math.log(point.step))
    return {load: math.exp(sum(found) / len(found)) for load, found in logs.items()}


def _fit(points: Sequence[Point], usual: Costs) -> Costs:
    """The costs that fit the points, none negative, in logarithms right on average."""
    if not points:
        return usual
    rows = np.array([_row(point.load, point.load.batch_size) for point in points])
    steps = np.array([point.step for point in points])
    costs = usual * math.exp(float(np.mean(np.log(steps / (rows @ usual)))))
    ridge = math.sqrt(_RIDGE)
    # In units of the scaled usual costs, so that each is 1 where the proportions are usual.
    system = np.vstack([rows * costs / steps[:, None], ridge * np.eye(len(costs))])
    wanted = np.concatenate([np.ones(len(steps)), np.full(len(costs), ridge)])
    fitted = costs * _non_negative(system, wanted)
    return fitted * math.exp(float(np.mean(np.log(steps / (rows @ fitted)))))


def _non_negative(system: Costs, wanted: Costs) -> Costs:
    """The least-squares solution without negative entries, by coordinate descent, which the ridge makes fast."""
    inner, outer = system.T @ system, system.T @ wanted
    found = np.ones(len(outer))
    for _ in range(200):
        for at in range(len(found)):
            found[at] = max(0.0, found[at] + (outer[at] - inner[at] @ found) / inner[at, at])
    return found


def _spread(points: Sequence[Point], costs: Costs) -> float:
    """How far single configurations lie off the fit; the usual spread counts as `_SPREAD_WEIGHT` points."""
    offs = [math.log(point.step / float(_row(point.load, point.load.batch_size) @ costs)) for point in points]
    free = max(0, len(offs) - 2)  # the scale and about one proportion are fitted
    squares = sum(off**2 for off in offs) * (free / len(offs)) if offs else 0.0
    return math.sqrt((_SPREAD**2 * _SPREAD_WEIGHT + squares) / (_SPREAD_WEIGHT + free))


def _fit_validation(points: Sequence[Point], costs: Costs) -> float:
    """What validation of an image costs as a part of what an image costs in training."""
    parts = [
        point.val_image / image
        for point in points
        if point.val_image and (image := point.load.mflops * costs[0] + point.load.activations * costs[1]) > 0
    ]
    logs = [math.log(part / _USUAL_VALIDATION) for part in parts]
    off = sum(logs) / (len(logs) + 1)
    return _USUAL_VALIDATION * math.exp(min(1.0, max(-2.0, off)))
