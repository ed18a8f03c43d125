"""What each trial of a search would come to at full length, as far as is known: what a sampler learns from.

A trial that was stopped at a rung tells something of its full length, through the trials that went on from there: from
rung to rung a line is fitted to those that have both scores, drawn towards the slope 1. What is learnt from are normal
scores of the ranks, which no outlier and no scale of another data set disturbs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from tunelab.noise import configuration_of
from tunelab.records import Trial, TrialStatus
from tunelab.tuning.stopping import rungs

Array = npt.NDArray[np.float64]

_TOWARDS_ONE = 0.5
_LEAST_SLOPE = 0.1
_FACTOR = 3.0


@dataclass(frozen=True)
class Outcomes:
    """Trial numbers, the final score expected of each, the normal score of its rank, its noise (1 at worst)."""

    numbers: tuple[int, ...]
    expected: Array
    ranked: Array
    noise: Array


def outcomes(trials: Mapping[int, Trial], epochs: int) -> Outcomes:
    """Of all configurations that have reached the first rung or ended.

    The worst are those that diverged, and those that failed before the first rung: what cannot be trained is no use.

    Args:
        trials: by number; repeats are averaged into the trial that they repeat.
        epochs: the full length, from which the rungs follow.
    """
    levels = rungs(epochs)
    finals: dict[int, list[float]] = {}
    for trial in trials.values():
        if trial.status is TrialStatus.COMPLETED:
            finals.setdefault(configuration_of(trial), []).append(trial.epochs[-1].score)
    numbers: list[int] = []
    rows: list[list[float]] = []
    worst: set[int] = set()
    for number, trial in trials.items():
        if trial.repeat_of is not None:
            continue
        reached = len(trial.epochs)
        early = reached < (levels or (epochs,))[0]
        hopeless = trial.status is TrialStatus.DIVERGED or (early and trial.status is TrialStatus.FAILED)
        if early and not hopeless and number not in finals:
            continue
        if hopeless:
            worst.add(number)
        row = [trial.epochs[rung - 1].score if reached >= rung else math.nan for rung in levels]
        final = sum(finals[number]) / len(finals[number]) if number in finals else math.nan
        numbers.append(number)
        rows.append([*row, final])
    if not numbers:
        return Outcomes((), np.zeros(0), np.zeros(0), np.zeros(0))
    scores = np.array(rows)
    expected = _to_full_length(scores)
    useless = np.array([number in worst for number in numbers])
    known = expected[~useless]
    expected[useless] = known.min() if len(known) else 0.0
    reached = np.where(np.isnan(scores), -1, np.arange(scores.shape[1])).max(axis=1)
    noise = np.where(useless, 1.0, np.maximum(_FACTOR ** -reached.clip(0).astype(float), 0.05))
    return Outcomes(tuple(numbers), expected, normal_scores(expected), noise)


def normal_scores(values: Array | Sequence[float]) -> Array:
    """The quantiles of the normal distribution at the ranks of these values, (n,); equal values share one."""
    values = np.asarray(values, dtype=float)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle = last - (counts + 1) / 2  # of ranks from 0
    found: Array = ndtri((middle + 0.5) / len(values))[place]
    return found


def _to_full_length(scores: Array) -> Array:
    """From scores at the rungs and at full length (n, levels), NaN where there are none, those at full length (n,)."""
    expected: Array = scores[:, -1].copy()
    for level in range(scores.shape[1] - 2, -1, -1):
        here = scores[:, level]
        both = ~np.isnan(here) & ~np.isnan(expected)
        wanted = ~np.isnan(here) & np.isnan(expected)
        if not wanted.any():
            continue
        if not both.any():
            expected[wanted] = here[wanted]
            continue
        x, y = here[both], expected[both]
        ridge = _TOWARDS_ONE * x.var() + 1e-12
        slope = (float(((x - x.mean()) * (y - y.mean())).mean()) + ridge) / (float(x.var()) + ridge)
        expected[wanted] = y.mean() + max(slope, _LEAST_SLOPE) * (here[wanted] - x.mean())
    return expected
