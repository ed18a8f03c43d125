"""When a trial stops early: asynchronous successive halving, without Ray.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934, section 3.2): at each rung the
best third go on. Two modes. *Stop* decides for good when a trial reaches a rung; *promote* pauses the others, and goes
on with one from its checkpoint when it has become one of the best (the paper's own algorithm 2). The rungs are
fractions of the full length: on recorded curves of image classifiers, first rungs between 1/27 and 1/9 of the full
length with factor 3 form a plateau, and a first rung of one epoch, whatever the length, does worse than random search.

Nothing is stopped by luck: not before enough rivals stand at the rung, and not unless the trial is worse than the last
that goes on by more than the noise: the standard deviation of the runs of one configuration.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Protocol

FACTOR = 3
FIRST_RUNG = 1 / 27


@dataclass(frozen=True)
class Decision:
    """What was decided at a rung, with the numbers that it was decided from.

    `rank` is the trial's place among the `rivals` trials that have reached the rung so far, itself included; it goes
    on if its place is at most `places`. Equal scores are put in order by their losses: on a small validation set
    many trials score the same, above all those that only guess. `cutoff` is the lowest score that goes on, `noise` the
    standard deviation between runs of one configuration at this rung. A trial with `stop` has ended, one with `pause`
    waits: a later decision at the same rung may go on with it.
    """

    epoch: int
    stop: bool
    score: float
    loss: float
    rank: int
    rivals: int
    places: int
    cutoff: float
    noise: float
    why: str
    pause: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class Stopping(Protocol):
    """A rule that stops trials early."""

    @property
    def rungs(self) -> Collection[int]:
        """The epochs at which it decides."""

    def report(self, number: int, epoch: int, score: float, loss: float, noise: float = 0.0) -> Decision | None:
        """Takes a score; a decision where the epoch is a rung."""

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Puts back a score from before a restart."""

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        """A paused trial that is to go on."""


class SuccessiveHalving:
    """Stops or pauses a trial at a rung unless it is among the best third of those that have reached the rung.

    Scores are kept by the trial's own number, so that a trial that reports a rung again after a restart counts once.

    Args:
        epochs: the full length.
        protected: trials that always run to their full length (the baseline).
        min_rivals: how many trials must stand at a rung before one is stopped there (our choice: the factor, the
            least number of which a third is one).
        promote: pauses in place of stopping; `promotable` names the trials to go on with.
    """

    def __init__(
        self, epochs: int, protected: Collection[int] = (), min_rivals: int = FACTOR, *, promote: bool = False
    ) -> None:
        self.rungs = rungs(epochs)
        self._protected = frozenset(protected)
        self._min_rivals = min_rivals
        self._promote = promote
        self._rungs = {rung: _Rung() for rung in self.rungs}

    def report(self, number: int, epoch: int, score: float, loss: float, noise: float = 0.0) -> Decision | None:
        """Takes score and loss of trial `number` after `epoch` epochs; None where `epoch` is not a rung.

        Args:
            number: the trial.
            epoch: how many epochs it has had.
            score: higher is better.
            loss: orders equal scores.
            noise: standard deviation of the scores of one configuration at this epoch, 0 if it is not known.
        """
        if epoch not in self._rungs:
            return None
        self._rungs[epoch].put(number, score, loss)
        return self._decide(number, epoch, noise)

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Puts back what was reported before a restart."""
        if epoch in self._rungs:
            self._rungs[epoch].put(number, score, loss)

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        """A paused trial that is one of the best of its rung by now, from the highest rung where there is one.

        Args:
            paused: the trials that wait, each at the highest rung that it has reached.
            noise: as for `report`.
        """
        waiting = set(paused)
        for epoch in reversed(self.rungs):
            here = self._rungs[epoch]
            for number in here.best(math.ceil(len(here) / FACTOR)):
                if number in waiting:
                    decision = self._decide(number, epoch, noise)
                    if not decision.pause:
                        return number, decision
            waiting.difference_update(here.numbers)
        return None

    def _decide(self, number: int, epoch: int, noise: float) -> Decision:
        here = self._rungs[epoch]
        score, loss = here.of(number)
        rivals = len(here)
        places = math.ceil(rivals / FACTOR)
        rank, cutoff = here.rank(number), here.score_at(places)
        weak = False
        if number in self._protected:
            why = "the baseline always runs its full length"
        elif rivals < self._min_rivals:
            why = f"only {rivals} of {self._min_rivals} rivals have come this far"
        else:
            why = f"place {rank} of {rivals}, {places} go on"
            weak = rank > places and cutoff - score > noise
            if rank > places and not weak and noise > 0:
                why += f", but {100 * (cutoff - score):.2f}% behind is within the noise of {100 * noise:.2f}%"
            elif rank > places and not weak:
                weak = True  # without noise, an equal score is ordered by its loss
        stop, pause = weak and not self._promote, weak and self._promote
        return Decision(epoch, stop, score, loss, rank, rivals, places, cutoff, noise, why, pause)


class NeverStop:
    """Lets every trial run its full length."""

    rungs: tuple[int, ...] = ()

    def report(self, number: int, epoch: int, score: float, loss: float, noise: float = 0.0) -> Decision | None:
        """Always None: there are no rungs."""
        return None

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Nothing is kept."""

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        """Always None: nothing waits."""
        return None


class StopAfter:
    """Stops every trial after so many epochs, whatever it has come to: the schedule is that of the full length."""

    def __init__(self, epochs: int) -> None:
        self.rungs = (epochs,)

    def report(self, number: int, epoch: int, score: float, loss: float, noise: float = 0.0) -> Decision | None:
        """The end after the last of these epochs, None before."""
        if epoch not in self.rungs:
            return None
        return Decision(epoch, True, score, loss, 1, 1, 0, score, noise, "no more epochs were asked for")

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Nothing is kept."""

    def promotable(self, paused: Collection[int], noise: float = 0.0) -> tuple[int, Decision] | None:
        """Always None: nothing waits."""
        return None


class _Rung:
    """The trials that have reached one rung, in order: the best last."""

    def __init__(self) -> None:
        self._keys: dict[int, tuple[float, float]] = {}
        self._order: list[tuple[float, float, int]] = []

    def __len__(self) -> int:
        return len(self._order)

    @property
    def numbers(self) -> Collection[int]:
        return self._keys.keys()

    def put(self, number: int, score: float, loss: float) -> None:
        if number in self._keys:
            self._order.remove((*self._keys[number], -number))
        self._keys[number] = (score, -loss)
        bisect.insort(self._order, (score, -loss, -number))

    def of(self, number: int) -> tuple[float, float]:
        score, negative = self._keys[number]
        return score, -negative

    def rank(self, number: int) -> int:
        """The trial's place from 1; trials that are equal in score and loss share the best one."""
        return 1 + len(self._order) - bisect.bisect_right(self._order, (*self._keys[number], math.inf))

    def score_at(self, place: int) -> float:
        return self._order[-place][0]

    def best(self, count: int) -> list[int]:
        return [-negative for _, _, negative in self._order[: -count - 1 : -1]]


def rungs(epochs: int) -> tuple[int, ...]:
    """The epochs at which trials of this full length are compared: from the first, each FACTOR times the one before.

    The first is the full length / 27, rounded up; the full length itself is not a rung.
    """
    found = []
    rung = math.ceil(epochs * FIRST_RUNG)
    while rung < epochs:
        found.append(rung)
        rung *= FACTOR
    return tuple(found)
