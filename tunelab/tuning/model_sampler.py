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
from tunelab.tuning.candidates import Candidate, CandidateRows, Drawn, Rows
from tunelab.tuning.draws import Draw, Encoder, merge
from tunelab.tuning.objectives import draw_weights, scalarise
from tunelab.tuning.outcomes import Outcomes, OutcomesSoFar, normal_scores, outcomes
from tunelab.tuning.surrogate import (
    MOST_TO_FIT,
    MOST_TO_KNOW,
    CostModel,
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
        self._fitted: _Fitted | None = None
        self._processes: tuple[Any, list[GaussianProcess]] = (None, [])
        self._drawn: dict[tuple[int, int], Drawn] = {}
        self._encoder = Encoder({}, pooled=True)
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
        near = {found.numbers[place]: trials[found.numbers[place]].params for place in _best(found, ranked)}
        drawn, ranges = self._draw_all(_block_of(number), near, known)
        if not drawn.candidates:
            return None
        ranges = dict(sorted(ranges.items()))
        if self._encoder.distributions != ranges:
            self._encoder = Encoder(ranges, pooled=True)
        scale = CandidateRows(self._encoder, drawn, self._rows)
        order = np.argsort(-self._worth(trials, found, ranked, scale), kind="stable")
        return [drawn.candidates[place] for place in order]

    def _draw_all(
        self, block: int, near: Mapping[int, Mapping[str, Any]], known: Mapping[str, BaseDistribution]
    ) -> tuple[Drawn, dict[str, BaseDistribution]]:
        """Candidates anywhere and near these trials, the same for all proposals of a block; ranges, theirs included."""
        self._drawn = {key: drawn for key, drawn in self._drawn.items() if key[0] == block}
        together = Drawn([], {}, set())
        ranges = dict(known)  # of all trials and these candidates, so that a resumed search knows the same
        for other in (_NOWHERE, *near):
            if (block, other) not in self._drawn:
                generator = random.Random(derive_seed(self._seed, "candidates", block, other))
                draws = (
                    [Draw(generator) for _ in range(ANYWHERE)]
                    if other == _NOWHERE
                    else [Draw(generator, near[other], CHANGES[place % len(CHANGES)]) for place in range(NEAR_EACH)]
                )
                self._drawn[block, other] = Drawn.of([one for draw in draws if (one := self._draw(draw)) is not None])
            drawn = self._drawn[block, other]
            together.candidates.extend(drawn.candidates)
            together.sizes.update(drawn.sizes)
            merge(ranges, [drawn.ranges])
        return together, ranges

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

    def _worth(self, trials: Mapping[int, Trial], found: Outcomes, ranked: Array, scale: CandidateRows) -> Array:
        seen = self._known.seen(found, ranked, trials, scale)
        known = set(found.numbers)
        running = [one for one in self._outcomes.open.values() if one.repeat_of is None and one.number not in known]
        earlier = self._processes_of(scale)
        if len(found.numbers) < 2:
            return acquisition(seen, scale.rows(running), scale.candidates, None, None, earlier)
        fitted = self._fit(trials, scale)
        return acquisition(seen, scale.rows(running), scale.candidates, fitted.outcome, fitted.cost_of(seen), earlier)

    def _fit(self, trials: Mapping[int, Trial], scale: CandidateRows) -> _Fitted:
        """From the first trials of a number that grows in steps: fitting at every proposal would cost too much."""
        first = self._first_ended(trials, _step(len(trials)))
        key: tuple[Any, tuple[int, ...]] = (scale.key, tuple(first))
        if self._fitted is not None and self._fitted.key == key:
            return self._fitted
        found = outcomes(first, self._epochs)
        if len(found.numbers) < 2:
            found, first, key = outcomes(trials, self._epochs), dict(trials), (None, ())
        seen = _seen(scale, [first[number] for number in found.numbers], found.ranked, found.noise)
        some = subset(seen.y, MOST_TO_FIT)
        outcome = fit(seen.x[some], seen.y[some], seen.noise[some])
        cost, lasting = None, None
        timed = np.flatnonzero(~np.isnan(seen.log_seconds))
        if len(timed) > 1:
            last = timed[-MOST_TO_FIT:]
            cost = fit(seen.x[last], standardised_cost(seen.log_seconds[last])[0], np.ones(len(last)))
            lasting = CostModel(seen.x, seen.log_seconds, cost) if len(timed) >= MOST_TO_KNOW else None
        self._fitted = _Fitted(key, outcome, cost, lasting)
        return self._fitted

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

    def _processes_of(self, scale: CandidateRows) -> list[GaussianProcess]:
        if self._processes[0] != scale.key:
            made = []
            for study in self._earlier:
                found = outcomes(study.trials, study.epochs)
                mine = [study.trials[number] for number in found.numbers]
                if len(mine) > 1:
                    made.append(process_of(_seen(scale, mine, found.ranked, found.noise)))
            self._processes = (scale.key, made)
        return self._processes[1]


@dataclass(frozen=True)
class _Fitted:
    """What the first trials tell; `key` says how their rows were made, and which they are.

    `lasting` is the model of the cost where they alone are as many as it knows: the trials since would tell it little
    that is new, and to make it for each proposal takes a fifth of what proposing does (our choice).
    """

    key: tuple[Any, tuple[int, ...]]
    outcome: Hyperparameters
    cost: Hyperparameters | None
    lasting: CostModel | None

    def cost_of(self, seen: Seen) -> CostModel | None:
        """The model of the cost, of all that is seen unless there is a lasting one; None if nothing was timed."""
        if self.cost is None or self.lasting is not None:
            return self.lasting
        return CostModel(seen.x, seen.log_seconds, self.cost)


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

    def seen(self, found: Outcomes, ranked: Array, trials: Mapping[int, Trial], scale: CandidateRows) -> Seen:
        """What is known of these outcomes; all arrays are by the numbers of the trials."""
        numbers = np.array(found.numbers, dtype=int)
        self._grow(int(numbers.max(initial=-1)) + 1)
        if self._scale != scale.key:
            self._scale, self._has_row[:] = scale.key, False
            self._rows = np.zeros((len(self._has_row), scale.candidates.shape[1]))
        new = numbers[~self._has_row[numbers]]
        if len(new):
            self._rows[new] = scale.rows([trials[number] for number in new.tolist()])
            self._has_row[new] = True
        unsettled = numbers[~self._is_settled[numbers]].tolist()
        self._log_seconds[unsettled] = _log_seconds([trials[number] for number in unsettled])
        self._is_settled[unsettled] = [trials[number].status.ended for number in unsettled]
        return Seen(self._rows[numbers], ranked, found.noise, self._log_seconds[numbers])

    def _grow(self, least: int) -> None:
        """Makes room for trials of lower numbers than this, for as many again too."""
        more = 2 * least - len(self._has_row)
        if least > len(self._has_row):
            self._rows = np.vstack([self._rows, np.zeros((more, self._rows.shape[1]))])
            self._has_row = np.append(self._has_row, np.zeros(more, dtype=bool))
            self._log_seconds = np.append(self._log_seconds, np.zeros(more))
            self._is_settled = np.append(self._is_settled, np.zeros(more, dtype=bool))


def _block_of(number: int) -> int:
    """The proposals of a block choose from the same candidates; it is told by a number of its own."""
    return number // SAME_CANDIDATES if number < LONG else LONG // SAME_CANDIDATES + (number - LONG) // SAME_IN_LONG


def _best(found: Outcomes, ranked: Array) -> list[int]:
    """The places of the best (NEAR_BEST,), of equal ones of those that are expected to come to more, then the first."""
    some = np.arange(len(ranked))
    if len(ranked) > NEAR_BEST:
        some = np.flatnonzero(ranked >= np.partition(ranked, -NEAR_BEST)[-NEAR_BEST])
    numbers = np.array([found.numbers[place] for place in some])
    best: list[int] = some[np.lexsort((numbers, -found.expected[some], -ranked[some]))][:NEAR_BEST].tolist()
    return best


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


def _seen(scale: CandidateRows, trials: Sequence[Trial], ranked: Array, noise: Array) -> Seen:
    return Seen(scale.rows(trials), ranked, noise, _log_seconds(trials))


def _log_seconds(trials: Sequence[Trial]) -> Array:
    """The logarithm of the mean seconds of an epoch of each (n,); NaN where there was none."""
    found: Array = np.log(np.maximum(np.array([_mean_seconds(trial) for trial in trials], dtype=float), 1e-6))
    return found


def _mean_seconds(trial: Trial) -> float:
    """Of an epoch; NaN if there was none."""
    return sum(metrics.seconds for metrics in trial.epochs) / len(trial.epochs) if trial.epochs else math.nan
