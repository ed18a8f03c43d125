"""When a trial stops early: asynchronous successive halving, without Ray.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934, section 3.2), in the variant that
stops a trial instead of pausing it. The rungs are fractions of the full length: on recorded curves of image
classifiers, first rungs between 1/27 and 1/9 of the full length with factor 3 form a plateau, and a first rung of one
epoch, whatever the length, does worse than random search.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

FACTOR = 3
FIRST_RUNG = 1 / 27


@dataclass(frozen=True)
class Decision:
    """What was decided at a rung, with the numbers that it was decided from.

    `rank` is the trial's place among the `rivals` trials that have reached the rung so far, itself included; it goes
    on if its place is at most `places`. Equal scores are put in order by their losses: on a small validation set
    many trials score the same, above all those that only guess. `cutoff` is the lowest score that goes on.
    """

    epoch: int
    stop: bool
    score: float
    loss: float
    rank: int
    rivals: int
    places: int
    cutoff: float
    why: str

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class SuccessiveHalving:
    """Stops a trial at a rung unless it is among the best third of those that have reached the rung.

    Scores are kept by the trial's own number, so that a trial that reports a rung again after a restart counts once.

    Args:
        epochs: the full length.
        protected: trials that always run to their full length (the baseline).
        min_rivals: how many trials must stand at a rung before one is stopped there (our choice: the factor, the
            least number of which a third is one).
    """

    def __init__(self, epochs: int, protected: Collection[int] = (), min_rivals: int = FACTOR) -> None:
        self.rungs = rungs(epochs)
        self._protected = frozenset(protected)
        self._min_rivals = min_rivals
        self._scores: dict[int, dict[int, tuple[float, float]]] = {rung: {} for rung in self.rungs}

    def report(self, number: int, epoch: int, score: float, loss: float) -> Decision | None:
        """Takes score and loss of trial `number` after `epoch` epochs; None where `epoch` is not a rung."""
        if epoch not in self._scores:
            return None
        scores = self._scores[epoch]
        scores[number] = (score, -loss)
        ordered = sorted(scores.values(), reverse=True)
        places = math.ceil(len(ordered) / FACTOR)
        rank = 1 + sum(other > (score, -loss) for other in ordered)
        cutoff = ordered[places - 1][0]
        if number in self._protected:
            stop, why = False, "the baseline always runs its full length"
        elif len(ordered) < self._min_rivals:
            stop, why = False, f"only {len(ordered)} of {self._min_rivals} rivals have come this far"
        else:
            stop = rank > places
            why = f"place {rank} of {len(ordered)}, {places} go on"
        return Decision(epoch, stop, score, loss, rank, len(ordered), places, cutoff, why)

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Puts back what was reported before a restart."""
        if epoch in self._scores:
            self._scores[epoch][number] = (score, -loss)


class NeverStop:
    """Lets every trial run its full length."""

    rungs: tuple[int, ...] = ()

    def report(self, number: int, epoch: int, score: float, loss: float) -> Decision | None:
        """Always None: there are no rungs."""
        return None

    def restore(self, number: int, epoch: int, score: float, loss: float) -> None:
        """Nothing is kept."""


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
