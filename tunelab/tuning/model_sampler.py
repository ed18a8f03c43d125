"""Proposes by a model of all trials: candidates anywhere and near the best ones, the most promising first.

A proposal depends on the seed, the trial's number and the trials so far alone. The model's hyperparameters follow from
the first trials of a number that grows in steps, once these have ended. Drawing and checking candidates takes longer
than judging them, so that a few proposals in turn choose from the same ones.
"""

from __future__ import annotations

import itertools
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
from tunelab.tuning.draws import Draw, Encoder, merge
from tunelab.tuning.objectives import draw_weights, scalarise
from tunelab.tuning.outcomes import Outcomes, OutcomesSoFar, normal_scores, outcomes
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
Configuration = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Parameters, and the size of the network."""

FIRST_RANDOM = 8
"""So many configurations come before the model is asked, unless there are earlier studies (our choice)."""
ANYWHERE = 200
NEAR_EACH = 30
NEAR_BEST = 5
CHANGES = (0.1, 0.3)
"""How probably a candidate near a good configuration differs from it in a value: half of them each (our choice)."""
SAME_CANDIDATES = 8
"""So many proposals in turn choose from the same candidates (our choice)."""
LONG = 128
SAME_IN_LONG = 32
"""From trial LONG on so many do: to draw and check candidates is most of what a proposal takes (our choice)."""
RANDOM_SHARE = 0.1
"""So many proposals are drawn anywhere, so that the model is not only fed with what it likes (our choice)."""
_GROWTH = 1.3
_MANY = 50
"""Of more trials than this, hyperparameters wait for those that last long (our choice): few run at once before."""
_NOWHERE = -1  # instead of the number of a trial that candidates are near: they are drawn anywhere
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
        self._fitted: tuple[Any, tuple[int, ...], Hyperparameters, Hyperparameters | None] | None = None
        self._processes: tuple[Any, list[GaussianProcess]] = (None, [])
        self._drawn: dict[tuple[int, int], tuple[list[Candidate], dict[str, BaseDistribution]]] = {}
        self._rows = Rows()
        self._outcomes = OutcomesSoFar(epochs)
        self._known = _Known()

    def candidates(
        self, number: int, trials: Mapping[int, Trial], known: Mapping[str, BaseDistribution]
    ) -> list[Candidate] | None:
        """Candidates for trial `number`, the most promising first; None where one drawn anywhere is wanted.

        Args:
            number: of the trial that is proposed.
            trials: those so far, by number.
            known: the ranges of their parameters.

        Raises:
            InputError: the space gives a name other choices, or another kind of range, than it has in `known`.
        """
        generator = random.Random(derive_seed(self._seed, "model", number))
        if generator.random() < RANDOM_SHARE or (not self._earlier and _are_few(trials)):
            return None
        if self._outcomes.look(trials):
            self._known = _Known()
        found = self._outcomes.of(trials)
        if len(found.numbers) < 2 and not self._earlier:
            return None
        ranked = self._ranked(generator, found, trials)
        best = np.lexsort((np.array(found.numbers), -found.expected, -ranked))[:NEAR_BEST]
        near = {found.numbers[place]: trials[found.numbers[place]].params for place in best}
        drawn, ranges = self._draw_all(_block_of(number), near, known)
        if not drawn:
            return None
        encoder = Encoder(dict(sorted(ranges.items())), pooled=True)
        order = np.argsort(-self._worth(trials, found, ranked, _Scale(encoder, drawn, self._rows)), kind="stable")
        return [drawn[place] for place in order]

    def _draw_all(
        self, block: int, near: Mapping[int, Mapping[str, Any]], known: Mapping[str, BaseDistribution]
    ) -> tuple[list[Candidate], dict[str, BaseDistribution]]:
        """Candidates anywhere and near these trials, the same for all proposals of a block; ranges, theirs included."""
        self._drawn = {key: drawn for key, drawn in self._drawn.items() if key[0] == block}
        candidates: list[Candidate] = []
        ranges = dict(known)  # of all trials and these candidates, so that a resumed search knows the same
        for other in (_NOWHERE, *near):
            if (block, other) not in self._drawn:
                generator = random.Random(derive_seed(self._seed, "candidates", block, other))
                draws = (
                    [Draw(generator) for _ in range(ANYWHERE)]
                    if other == _NOWHERE
                    else [Draw(generator, near[other], CHANGES[place % len(CHANGES)]) for place in range(NEAR_EACH)]
                )
                drawn = [one for draw in draws if (one := self._draw(draw)) is not None]
                self._drawn[block, other] = drawn, merge({}, (one.distributions for one in drawn))
            candidates += self._drawn[block, other][0]
            merge(ranges, [self._drawn[block, other][1]])
        return candidates, ranges

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

    def _worth(self, trials: Mapping[int, Trial], found: Outcomes, ranked: Array, scale: _Scale) -> Array:
        seen = self._known.seen(found, ranked, trials, scale)
        known = set(found.numbers)
        running = [one for one in self._outcomes.open.values() if one.repeat_of is None and one.number not in known]
        earlier = self._processes_of(scale)
        outcome, cost = self._hyperparameters(trials, scale) if len(found.numbers) > 1 else (None, None)
        return acquisition(seen, scale.rows(running), scale.candidates, outcome, cost, earlier)

    def _hyperparameters(
        self, trials: Mapping[int, Trial], scale: _Scale
    ) -> tuple[Hyperparameters, Hyperparameters | None]:
        """From the first trials of a number that grows in steps: fitting at every proposal would cost too much."""
        first = self._first_ended(trials, _step(len(trials)))
        key: tuple[Any, tuple[int, ...]] = (scale.key, tuple(first))
        if self._fitted is not None and self._fitted[:2] == key:
            return self._fitted[2:]
        found = outcomes(first, self._epochs)
        if len(found.numbers) < 2:
            found, first, key = outcomes(trials, self._epochs), dict(trials), (None, ())
        seen = _seen(scale, [first[number] for number in found.numbers], found.ranked, found.noise)
        some = subset(seen.y, MOST_TO_FIT)
        outcome = fit(seen.x[some], seen.y[some], seen.noise[some])
        cost = None
        timed = np.flatnonzero(~np.isnan(seen.log_seconds))[-MOST_TO_FIT:]
        if len(timed) > 1:
            cost = fit(seen.x[timed], standardised_cost(seen.log_seconds[timed])[0], np.ones(len(timed)))
        self._fitted = (*key, outcome, cost)
        return outcome, cost

    def _first_ended(self, trials: Mapping[int, Trial], size: int) -> dict[int, Trial]:
        """The first trials that have ended: of `size`, or of fewer if these are many and some still run.

        With dozens at once some always do, and each that ends would have the model fitted anew.
        """
        if size > _MANY:
            lasting = (number for number, trial in self._outcomes.open.items() if not _waits(trial))
            size = min(size, _step(max(_MANY, min(lasting, default=size))))
        kept = self._known.first
        if kept is not None and kept[0] == size:
            return kept[1]
        first = {number: trial for number, trial in trials.items() if number < size and trial.status.ended}
        if len(trials) >= size <= min(self._outcomes.open, default=size):  # they are all that there will be
            self._known.first = (size, first)
        return first

    def _processes_of(self, scale: _Scale) -> list[GaussianProcess]:
        if self._processes[0] != scale.key:
            made = []
            for study in self._earlier:
                found = outcomes(study.trials, study.epochs)
                mine = [study.trials[number] for number in found.numbers]
                if len(mine) > 1:
                    made.append(process_of(_seen(scale, mine, found.ranked, found.noise)))
            self._processes = (scale.key, made)
        return self._processes[1]


class _Scale:
    """Rows for one round of candidates: inactive parameters in the middle, sizes of networks as logarithms.

    A size is 1 more where it is `_SPAN` times as large, whatever the other networks are, so that rows of one round fit
    those of another one and of an earlier study.
    """

    def __init__(self, encoder: Encoder, drawn: Sequence[Candidate], rows: Rows) -> None:
        self._encoder = encoder
        self._sizes = sorted({name for one in drawn for name, value in one.stats.items() if _is_size(value)})
        self.key = (encoder.distributions, self._sizes)  # rows of scales with equal keys can be compared
        self._rows = rows
        rows.begin(self.key)
        self.candidates = self.rows(drawn)

    def rows(self, configurations: Sequence[Trial | Candidate]) -> Array:
        """(n, columns)."""
        return self._rows.of([(one.params, one.stats) for one in configurations], self._encode)

    def encode(self, configurations: Sequence[Trial | Candidate]) -> Array:
        """As `rows`, of which nothing is kept."""
        return self._encode([one.params for one in configurations], [one.stats for one in configurations])

    def _encode(self, params: Sequence[Mapping[str, Any]], stats: Sequence[Mapping[str, Any]]) -> Array:
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


class _Known:
    """What does not change any more of the trials of a search: their rows, and the seconds of those that ended.

    `first` are the trials that the hyperparameters are from, with the step that they belong to.
    """

    def __init__(self) -> None:
        self.first: tuple[int, dict[int, Trial]] | None = None
        self._scale: Any = None
        self._rows = np.zeros((0, 0))
        self._has_row = np.zeros(0, dtype=bool)
        self._log_seconds = np.zeros(0)
        self._is_settled = np.zeros(0, dtype=bool)

    def seen(self, found: Outcomes, ranked: Array, trials: Mapping[int, Trial], scale: _Scale) -> Seen:
        """What is known of these outcomes; all arrays are by the numbers of the trials."""
        numbers = np.array(found.numbers, dtype=int)
        self._grow(int(numbers.max(initial=-1)) + 1)
        if self._scale != scale.key:
            self._scale, self._has_row[:] = scale.key, False
            self._rows = np.zeros((len(self._has_row), scale.candidates.shape[1]))
        new = numbers[~self._has_row[numbers]]
        if len(new):
            self._rows[new] = scale.encode([trials[number] for number in new.tolist()])
            self._has_row[new] = True
        for number in numbers[~self._is_settled[numbers]].tolist():
            self._log_seconds[number] = _log_seconds([trials[number]])[0]
            self._is_settled[number] = trials[number].status.ended
        return Seen(self._rows[numbers], ranked, found.noise, self._log_seconds[numbers])

    def _grow(self, least: int) -> None:
        """Makes room for trials of lower numbers than this, for as many again too."""
        more = 2 * least - len(self._has_row)
        if least > len(self._has_row):
            self._rows = np.vstack([self._rows, np.zeros((more, self._rows.shape[1]))])
            self._has_row = np.append(self._has_row, np.zeros(more, dtype=bool))
            self._log_seconds = np.append(self._log_seconds, np.zeros(more))
            self._is_settled = np.append(self._is_settled, np.zeros(more, dtype=bool))


class Rows:
    """The rows of the last two rounds, so that a configuration is not encoded at every proposal."""

    def __init__(self) -> None:
        self._scale: Any = None
        self._last: dict[tuple[int, int], tuple[Configuration, Array]] = {}
        self._now: dict[tuple[int, int], tuple[Configuration, Array]] = {}

    def begin(self, scale: Any) -> None:
        """A new round; what is known is forgotten if rows are made differently now."""
        self._last = self._now if self._scale == scale else {}
        self._scale, self._now = scale, {}

    def of(
        self,
        configurations: Sequence[Configuration],
        encode: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Array],
    ) -> Array:
        """(n, columns); a configuration is known by which object it is, and kept so that no other takes its place."""
        keys = [(id(params), id(stats)) for params, stats in configurations]
        for key in keys:
            if key not in self._now and key in self._last:
                self._now[key] = self._last[key]
        new = {key: one for key, one in zip(keys, configurations, strict=True) if key not in self._now}
        if new or not keys:
            rows = encode([params for params, _ in new.values()], [stats for _, stats in new.values()])
            if not keys:
                return rows
            self._now.update({key: (one, row) for (key, one), row in zip(new.items(), rows, strict=True)})
        return np.stack([self._now[key][1] for key in keys])


def _block_of(number: int) -> int:
    """The proposals of a block choose from the same candidates; it is told by a number of its own."""
    return number // SAME_CANDIDATES if number < LONG else LONG // SAME_CANDIDATES + (number - LONG) // SAME_IN_LONG


def _step(trials: int) -> int:
    """The largest of some numbers that grow in steps which is no larger than that of the trials."""
    size = FIRST_RANDOM
    while size * _GROWTH <= trials:
        size = int(size * _GROWTH)
    return size


def _waits(trial: Trial) -> bool:
    """True if a trial waits at a rung, maybe to the end of the search."""
    return trial.status is TrialStatus.PAUSED and bool(trial.decisions) and bool(trial.decisions[-1].get("pause"))


def _are_few(trials: Mapping[int, Trial]) -> bool:
    """True if so few configurations have begun that the model is not asked."""
    begun = (trial for trial in trials.values() if trial.repeat_of is None)
    return len(list(itertools.islice(begun, FIRST_RANDOM))) < FIRST_RANDOM


def _has_costs(trial: Trial) -> bool:
    return trial.status is not TrialStatus.DIVERGED and bool(trial.epochs)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seen(scale: _Scale, trials: Sequence[Trial], ranked: Array, noise: Array) -> Seen:
    return Seen(scale.rows(trials), ranked, noise, _log_seconds(trials))


def _log_seconds(trials: Sequence[Trial]) -> Array:
    """The logarithm of the mean seconds of an epoch of each (n,); NaN where there was none."""
    found: Array = np.log(np.maximum(np.array([_mean_seconds(trial) for trial in trials], dtype=float), 1e-6))
    return found


def _mean_seconds(trial: Trial) -> float:
    """Of an epoch; NaN if there was none."""
    return sum(metrics.seconds for metrics in trial.epochs) / len(trial.epochs) if trial.epochs else math.nan
