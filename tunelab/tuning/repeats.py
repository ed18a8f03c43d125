"""When a configuration is trained again with another seed: the baseline early, the finalists at the end.

The early repeats tell how far two trainings of one configuration differ before much is decided by less. The last share
of a search's time goes to a race among its best (`tunelab.tuning.race`).
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from tunelab.config import derive_seed
from tunelab.noise import DIVERGED, Noise, NoiseSoFar, full_length, noise_at
from tunelab.records import Trial, TrialStatus
from tunelab.tuning.race import next_repeat

EARLY = (16, 60)
"""A search of so many trials repeats its baseline once, twice (our choice)."""
TRIALS_BETWEEN = 4
"""An early repeat begins when so many more trials have begun (our choice)."""


class Repeats(Protocol):
    """Which configuration is trained again."""

    def early(self, trials: Mapping[int, Trial]) -> int | None:
        """The trial to repeat while the search goes on."""

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        """The trial to repeat when the search is at its end."""

    def owed(self, trials: Mapping[int, Trial]) -> int:
        """How many repeats were asked for and have not begun; without them a search is not finished."""


class NoRepeats:
    """Trains everything once."""

    def early(self, trials: Mapping[int, Trial]) -> int | None:
        """Always None."""
        return None

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        """Always None."""
        return None

    def owed(self, trials: Mapping[int, Trial]) -> int:
        """Always 0."""
        return 0


class Race:
    """Repeats the baseline early and the finalists late.

    Args:
        share: of a search's whole time, for the finalists; in [0, 1).
        total: how many trials the search is to have.
        epochs: the full length; trials of another one do not take part.
        val_images: on how many images scores are measured.
        baseline: whether the space's baseline is tried.
        number: of the trial that is the baseline.
    """

    def __init__(
        self, share: float, total: int, epochs: int, val_images: int, *, baseline: bool, number: int = 0
    ) -> None:
        self._share = share
        self._early = sum(total >= least for least in EARLY) if baseline and share > 0 else 0
        self._epochs = epochs
        self._val_images = val_images
        self._baseline = number
        self._noises: dict[int, NoiseSoFar] = {}
        self._mine = _SoFar(epochs)

    def early(self, trials: Mapping[int, Trial]) -> int | None:
        """The baseline, whenever some more trials have begun."""
        first = trials.get(self._baseline)
        if not self._early or first is None or first.status in (TrialStatus.DIVERGED, TrialStatus.FAILED):
            return None
        if full_length(first) != self._epochs:
            return None
        had, begun = 0, 0
        for trial in trials.values():
            had += trial.repeat_of == first.number
            begun += trial.repeat_of is None
            if had >= self._early:
                return None
        return first.number if begun >= TRIALS_BETWEEN * (had + 1) else None

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        """As the race says, while there is time for it."""
        mine = self._mine
        mine.look(trials)
        scores = {number: [mine.complete[number].epochs[-1].score] for number in sorted(mine.complete)}
        running: dict[int, int] = {}
        for trial in mine.repeats:
            if trial.repeat_of in scores:
                if trial.status is TrialStatus.COMPLETED:
                    scores[trial.repeat_of].append(trial.epochs[-1].score)
                elif trial.status is TrialStatus.DIVERGED:
                    scores[trial.repeat_of].append(DIVERGED)
                else:  # under way, or failed: not asked for again
                    running[trial.repeat_of] = running.get(trial.repeat_of, 0) + 1
        if len(scores) < 2:
            return None
        return next_repeat(scores, running, mine.noise(self._val_images), self._runs_left())

    def owed(self, trials: Mapping[int, Trial]) -> int:
        """Always 0: there are as many as there is time for."""
        return 0

    def noise(self, trials: Mapping[int, Trial], epoch: int) -> Noise:
        """Between runs of one configuration, after `epoch` epochs."""
        return noise_at(trials.values(), epoch, self._val_images)

    def sd(self, trials: Mapping[int, Trial], epoch: int) -> float:
        """The standard deviation between runs of one configuration, after `epoch` epochs."""
        if epoch not in self._noises:
            self._noises[epoch] = NoiseSoFar(epoch, self._val_images)
        return self._noises[epoch].noise(trials).sd

    def _runs_left(self) -> int:
        """How many more trainings of the best there is time for, in the share of all time that is theirs."""
        mine = self._mine
        best = sorted(mine.complete.values(), key=lambda trial: (-trial.epochs[-1].score, trial.number))[:5]
        full = statistics.fmean(_seconds(trial) for trial in best)
        early = [trial.number for trial in mine.repeats if trial.repeat_of == self._baseline][: self._early]
        late = [trial for trial in mine.repeats if trial.number not in early]
        spent = sum(max(full, _seconds(trial)) if not trial.status.ended else _seconds(trial) for trial in late)
        budget = mine.searched() * self._share / (1 - self._share)
        return round((budget - spent) / full) if full > 0 else 0


class _SoFar:
    """The trials of one full length, as far as a race needs them; each is looked at until it has ended.

    `complete` are those of full length by number, `repeats` all repeats in order.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._forget({})

    def _forget(self, trials: Mapping[int, Trial]) -> None:
        self._trials = trials
        self._looked_at = 0
        self._mine: dict[int, Trial] = {}
        self._open: dict[int, Trial] = {}
        self._searched = 0.0
        self._noise: NoiseSoFar | None = None
        self.complete: dict[int, Trial] = {}
        self.repeats: list[Trial] = []

    def look(self, trials: Mapping[int, Trial]) -> None:
        """Takes what is new; `trials` is always the same mapping, to which trials are added, or all begins anew."""
        if trials is not self._trials:
            self._forget(trials)
        for number, trial in itertools.islice(trials.items(), self._looked_at, None):
            if full_length(trial) == self._epochs:
                self._mine[number] = trial
                if trial.repeat_of is None:
                    self._open[number] = trial
                else:
                    self.repeats.append(trial)
        self._looked_at = len(trials)
        for number, trial in list(self._open.items()):
            if trial.status.ended:
                del self._open[number]
                self._searched += _seconds(trial)
                if trial.status is TrialStatus.COMPLETED:
                    self.complete[number] = trial

    def noise(self, val_images: int) -> Noise:
        """Between runs of full length."""
        if self._noise is None:
            self._noise = NoiseSoFar(self._epochs, val_images)
        return self._noise.noise(self._mine)

    def searched(self) -> float:
        """Seconds of all trials that are no repeats."""
        return self._searched + sum(_seconds(trial) for trial in self._open.values())


class Again:
    """Trains each of some configurations as often as was asked for, before anything else but their first trainings.

    Args:
        times: how often each is trained, the first time included.
        configurations: their parameters.
        begun: True when none of them is still to be proposed.
        others: what else is repeated.
    """

    def __init__(
        self, times: int, configurations: Collection[Mapping[str, Any]], begun: Callable[[], bool], others: Repeats
    ) -> None:
        self._times = times
        self._configurations = configurations
        self._begun = begun
        self._others = others

    def early(self, trials: Mapping[int, Trial]) -> int | None:
        """The configuration that was trained least often, when each has begun once; then what others ask for."""
        missing = self._missing(trials) if self._begun() else {}
        if not missing:
            return self._others.early(trials)
        return max(missing, key=lambda number: (missing[number], -number))

    def late(self, trials: Mapping[int, Trial]) -> int | None:
        """As `early`."""
        missing = self._missing(trials)
        return max(missing, key=lambda number: (missing[number], -number)) if missing else self._others.late(trials)

    def owed(self, trials: Mapping[int, Trial]) -> int:
        """How many trainings are missing."""
        return sum(self._missing(trials).values()) + self._others.owed(trials)

    def _missing(self, trials: Mapping[int, Trial]) -> dict[int, int]:
        """How many trainings each configuration lacks; one that was stopped, diverged or failed lacks none."""
        had: dict[int, int] = {}
        for trial in trials.values():
            if trial.repeat_of is not None:
                had[trial.repeat_of] = had.get(trial.repeat_of, 0) + 1
        lost = (TrialStatus.STOPPED, TrialStatus.DIVERGED, TrialStatus.FAILED)
        return {
            number: self._times - 1 - had.get(number, 0)
            for number, trial in trials.items()
            if trial.repeat_of is None
            and trial.status not in lost
            and trial.params in self._configurations
            and had.get(number, 0) < self._times - 1
        }


def _seconds(trial: Trial) -> float:
    return sum(metrics.seconds for metrics in trial.epochs)


def once_more(first: Trial, number: int, before: int) -> Trial:
    """The configuration of a trial as trial `number`, with another seed than its `before` repeats; not yet trained."""
    config = {**first.config, "seed": derive_seed(first.config["seed"], "repeat", before)}
    return dataclasses.replace(
        first, number=number, config=config, status=TrialStatus.RUNNING, reason="", epochs=[], decisions=[],
        origin="repeat", repeat_of=first.number, notes=[], findings=[], retries=[],
    )  # fmt: skip
