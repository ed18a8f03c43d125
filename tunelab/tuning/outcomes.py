"""What each trial of a search would come to at full length, as far as is known: what a sampler learns from.

A trial that was stopped at a rung tells something of its full length, through the trials that went on from there: from
rung to rung a line is fitted to those that have both scores, drawn towards the slope 1. What is learnt from are normal
scores of the ranks, which no outlier and no scale of another data set disturbs.
"""

from __future__ import annotations

import bisect
import itertools
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
    return OutcomesSoFar(epochs).of(trials)


class OutcomesSoFar:
    """`outcomes` of one search that goes on: the same answers, but a trial is looked at until it has ended alone.

    `open` are the trials that have not ended, by number, repeats included.

    Args:
        epochs: the full length.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._levels = rungs(epochs)
        self._forget({})

    def _forget(self, trials: Mapping[int, Trial]) -> None:
        self._trials = trials
        self._looked_at = 0
        self.open: dict[int, Trial] = {}
        self._numbers: list[int] = []
        self._place: dict[int, int] = {}
        self._finals: dict[int, list[tuple[int, float]]] = {}
        self._scores = np.zeros((0, len(self._levels) + 1))
        self._there = np.zeros(0, dtype=bool)
        self._useless = np.zeros(0, dtype=bool)

    def of(self, trials: Mapping[int, Trial]) -> Outcomes:
        """As `outcomes`; `trials` is always the same mapping, to which trials are added, or all begins anew."""
        self.look(trials)
        there = np.flatnonzero(self._there[: len(self._numbers)])
        if not len(there):
            return Outcomes((), np.zeros(0), np.zeros(0), np.zeros(0))
        scores, useless = self._scores[there], self._useless[there]
        expected = _to_full_length(scores)
        known = expected[~useless]
        expected[useless] = known.min() if len(known) else 0.0
        reached = np.where(np.isnan(scores), -1, np.arange(scores.shape[1])).max(axis=1)
        noise = np.where(useless, 1.0, np.maximum(_FACTOR ** -reached.clip(0).astype(float), 0.05))
        numbers = tuple(map(self._numbers.__getitem__, there.tolist()))
        return Outcomes(numbers, expected, normal_scores(expected), noise)

    def look(self, trials: Mapping[int, Trial]) -> bool:
        """Takes what is new; True if these are other trials than the last time, so that all began anew."""
        anew = trials is not self._trials
        if anew:
            self._forget(trials)
        for number, trial in itertools.islice(trials.items(), self._looked_at, None):
            self.open[number] = trial
            if trial.repeat_of is None:
                self._place[number] = len(self._numbers)
                self._numbers.append(number)
        self._looked_at = len(trials)
        self._grow()
        for number, trial in list(self.open.items()):
            if trial.status.ended:
                del self.open[number]
                if trial.status is TrialStatus.COMPLETED:
                    self._finish(number, trial)
            if number in self._place:
                self._enter(self._place[number], trial)
        return anew

    def _grow(self) -> None:
        """Makes room for trials that are new, for as many again too."""
        more = len(self._numbers) - len(self._there)
        if more > 0:
            more += len(self._numbers)
            empty = np.full((more, self._scores.shape[1]), np.nan)
            self._scores = np.concatenate([self._scores, empty])
            self._there = np.concatenate([self._there, np.zeros(more, dtype=bool)])
            self._useless = np.concatenate([self._useless, np.zeros(more, dtype=bool)])

    def _finish(self, number: int, trial: Trial) -> None:
        """Averages a run of full length into its configuration."""
        first = configuration_of(trial)
        runs = self._finals.setdefault(first, [])
        bisect.insort(runs, (number, trial.epochs[-1].score))
        if first in self._place:
            place = self._place[first]
            self._scores[place, -1] = sum(score for _, score in runs) / len(runs)
            self._there[place] = True

    def _enter(self, place: int, trial: Trial) -> None:
        """Notes how far a configuration has come, and how well it did there."""
        reached = len(trial.epochs)
        early = reached < (self._levels or (self._epochs,))[0]
        hopeless = trial.status is TrialStatus.DIVERGED or (early and trial.status is TrialStatus.FAILED)
        self._useless[place] = hopeless
        self._there[place] |= hopeless or not early
        for level, rung in enumerate(self._levels):
            if reached >= rung:
                self._scores[place, level] = trial.epochs[rung - 1].score


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
