"""Proposes by a model of all trials: candidates anywhere and near the best ones, the most promising first.

A proposal depends on the seed, the trial's number and the trials so far alone. The model's hyperparameters follow from
the first trials of a number that grows in steps, once these have ended.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution

from tunelab.config import derive_seed
from tunelab.records import Trial, TrialStatus
from tunelab.tuning.draws import Draw, Encoder, require_same_choices
from tunelab.tuning.objectives import draw_weights, scalarise
from tunelab.tuning.outcomes import Outcomes, normal_scores, outcomes
from tunelab.tuning.surrogate import (
    MOST_TO_FIT,
    GaussianProcess,
    Hyperparameters,
    Seen,
    acquisition,
    fit,
    process_of,
    standardised_cost,
    subset,
)

Array = npt.NDArray[np.float64]

FIRST_RANDOM = 8
"""So many configurations come before the model is asked, unless there are earlier studies (our choice)."""
ANYWHERE = 200
NEAR_EACH = 30
NEAR_BEST = 5
CHANGES = (0.1, 0.3)
"""How probably a candidate near a good configuration differs from it in a value: half of them each (our choice)."""
RANDOM_SHARE = 0.1
"""So many proposals are drawn anywhere, so that the model is not only fed with what it likes (our choice)."""
_GROWTH = 1.3
_SPAN = 1000.0  # the networks of a space differ so much in size, as a rule; our choice


@dataclass(frozen=True)
class Candidate:
    """A drawn configuration: whatever the space made of it, its parameters, their ranges and its size."""

    config: Any
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class Earlier:
    """An earlier study: its trials by number, those that this space can draw too, and its full length."""

    name: str
    trials: Mapping[int, Trial]
    epochs: int


class ModelSampler:
    """Orders candidates by what the model expects of them.

    Args:
        seed: the study's.
        epochs: the full length.
        draw: makes a candidate of a `Draw`; None if it is refused.
        earlier: studies to learn from.
        costs: what else is to be low, names of tunelab.tuning.objectives.COSTS.
    """

    def __init__(
        self,
        seed: int,
        epochs: int,
        draw: Callable[[Draw], Candidate | None],
        earlier: Sequence[Earlier] = (),
        costs: Sequence[str] = (),
    ) -> None:
        self._seed = seed
        self._epochs = epochs
        self._draw = draw
        self._earlier = earlier
        self._costs = costs
        self._known: dict[str, BaseDistribution] = {}
        self._fitted: tuple[tuple[str, ...], tuple[int, ...], Hyperparameters, Hyperparameters | None] | None = None
        self._processes: tuple[tuple[str, ...], list[GaussianProcess]] = ((), [])

    def know(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Takes note of the ranges of a trial's parameters."""
        for name, distribution in distributions.items():
            require_same_choices(name, self._known.setdefault(name, distribution), distribution)

    def candidates(self, number: int, trials: Mapping[int, Trial]) -> list[Candidate] | None:
        """Candidates for trial `number`, the most promising first; None where one drawn anywhere is wanted."""
        generator = random.Random(derive_seed(self._seed, "model", number))
        begun = {other: trial for other, trial in trials.items() if trial.repeat_of is None}
        if generator.random() < RANDOM_SHARE or (len(begun) < FIRST_RANDOM and not self._earlier):
            return None
        found = outcomes(trials, self._epochs)
        if len(found.numbers) < 2 and not self._earlier:
            return None
        ranked = self._ranked(generator, found, trials)
        best = sorted(zip(-ranked, -found.expected, found.numbers, strict=True))[:NEAR_BEST]
        near = [trials[other].params for *_, other in best]
        drawn = self._draw_all(generator, near)
        if not drawn:
            return None
        order = np.argsort(-self._worth(trials, found, ranked, drawn), kind="stable")
        return [drawn[place] for place in order]

    def _draw_all(self, generator: random.Random, near: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        draws = [Draw(generator) for _ in range(ANYWHERE)]
        for params in near:
            draws += [Draw(generator, params, CHANGES[place % len(CHANGES)]) for place in range(NEAR_EACH)]
        return [candidate for draw in draws if (candidate := self._draw(draw)) is not None]

    def _ranked(self, generator: random.Random, found: Outcomes, trials: Mapping[int, Trial]) -> Array:
        """The normal scores of what each trial comes to; of several objectives with weights drawn for this proposal."""
        if not self._costs or not found.numbers:
            return found.ranked
        weights = draw_weights(generator, 1 + len(self._costs))
        whole = [place for place, number in enumerate(found.numbers) if _has_costs(trials[number])]
        numbers = [found.numbers[place] for place in whole]
        costs = [[self._cost(name, trials[number]) for number in numbers] for name in self._costs]
        values = np.full(len(found.numbers), -np.inf)  # what diverged is the worst, however little it cost
        values[whole] = scalarise(found.expected[whole].tolist(), costs, weights) if whole else []
        return normal_scores(values)

    def _cost(self, name: str, trial: Trial) -> float:
        """Of a training of full length, whatever became of the trial."""
        if name == "seconds":
            return self._epochs * float(np.mean([metrics.seconds for metrics in trial.epochs] or [0.0]))
        return float(trial.stats.get(name, 0.0))

    def _worth(self, trials: Mapping[int, Trial], found: Outcomes, ranked: Array, drawn: Sequence[Candidate]) -> Array:
        known = dict(self._known)  # of all trials and these candidates, so that a resumed search knows the same
        for candidate in drawn:
            for name, distribution in candidate.distributions.items():
                require_same_choices(name, known.setdefault(name, distribution), distribution)
        encoder = Encoder(dict(sorted(known.items())), pooled=True)
        mine = [trials[number] for number in found.numbers]
        told = set(found.numbers)
        running = [
            one for one in trials.values() if one.repeat_of is None and not one.status.ended and one.number not in told
        ]
        others = [
            [study.trials[number] for number in outcomes(study.trials, study.epochs).numbers] for study in self._earlier
        ]
        scale = _Scale(encoder, [one.params for one in drawn], [one.stats for one in drawn])
        seen = _seen(scale, mine, ranked, found.noise)
        earlier = self._processes_of(scale, others)
        outcome, cost = self._hyperparameters(trials, scale) if len(mine) > 1 else (None, None)
        return acquisition(seen, scale.rows(running), scale.candidates, outcome, cost, earlier)

    def _hyperparameters(
        self, trials: Mapping[int, Trial], scale: _Scale
    ) -> tuple[Hyperparameters, Hyperparameters | None]:
        """From the first trials of a number that grows in steps: fitting at every proposal would cost too much."""
        size = FIRST_RANDOM
        while size * _GROWTH <= len(trials):
            size = int(size * _GROWTH)
        first = {number: trial for number, trial in trials.items() if number < size and trial.status.ended}
        key = (scale.names, tuple(first))
        if self._fitted is not None and self._fitted[:2] == key:
            return self._fitted[2:]
        found = outcomes(first, self._epochs)
        if len(found.numbers) < 2:
            found, first, key = outcomes(trials, self._epochs), dict(trials), ((), ())
        seen = _seen(scale, [first[number] for number in found.numbers], found.ranked, found.noise)
        some = subset(seen.y, MOST_TO_FIT)
        outcome = fit(seen.x[some], seen.y[some], seen.noise[some])
        cost = None
        timed = np.flatnonzero(~np.isnan(seen.log_seconds))[-MOST_TO_FIT:]
        if len(timed) > 1:
            cost = fit(seen.x[timed], standardised_cost(seen.log_seconds[timed])[0], np.ones(len(timed)))
        self._fitted = (*key, outcome, cost)
        return outcome, cost

    def _processes_of(self, scale: _Scale, others: Sequence[Sequence[Trial]]) -> list[GaussianProcess]:
        if self._processes[0] != scale.names:
            made = []
            for study, mine in zip(self._earlier, others, strict=True):
                if len(mine) > 1:
                    found = outcomes(study.trials, study.epochs)
                    made.append(process_of(_seen(scale, mine, found.ranked, found.noise)))
            self._processes = (scale.names, made)
        return self._processes[1]


class _Scale:
    """Rows for one round of candidates: inactive parameters in the middle, sizes of networks as logarithms.

    A size is 1 more where it is `_SPAN` times as large, whatever the other networks are, so that rows of one round fit
    those of another one and of an earlier study.
    """

    def __init__(
        self, encoder: Encoder, params: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Any]]
    ) -> None:
        self._encoder = encoder
        self.names = encoder.names
        self._sizes = sorted({name for one in stats for name, value in one.items() if _is_size(value)})
        self.candidates = self._rows(params, stats)

    def rows(self, trials: Sequence[Trial]) -> Array:
        """(n, columns)."""
        return self._rows([trial.params for trial in trials], [trial.stats for trial in trials])

    def _rows(self, params: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Any]]) -> Array:
        rows = self._encoder.rows(params)
        return np.hstack([np.where(np.isnan(rows), 0.5, rows), self._log_sizes(stats)])

    def _log_sizes(self, stats: Sequence[Mapping[str, Any]]) -> Array:
        return np.array(
            [
                [
                    math.log(max(float(one[name]), 1e-6), _SPAN) if _is_size(one.get(name)) else 0.0
                    for name in self._sizes
                ]
                for one in stats
            ]
        ).reshape(len(stats), len(self._sizes))


def _has_costs(trial: Trial) -> bool:
    return trial.status is not TrialStatus.DIVERGED and bool(trial.epochs)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seen(scale: _Scale, trials: Sequence[Trial], ranked: Array, noise: Array) -> Seen:
    seconds = np.array([_mean_seconds(trial) for trial in trials], dtype=float)
    return Seen(scale.rows(trials), ranked, noise, np.log(np.maximum(seconds, 1e-6)))


def _mean_seconds(trial: Trial) -> float:
    """Of an epoch; NaN if there was none."""
    return sum(metrics.seconds for metrics in trial.epochs) / len(trial.epochs) if trial.epochs else math.nan
