"""Which trials keep their checkpoints after they have ended: the best few, whose weights somebody may want.

A trial that is paused or running keeps all of its own, to go on from.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Collection
from pathlib import Path

from tunelab.records import Trial, TrialStatus
from tunelab.training.checkpoint import discard

_Rank = tuple[bool, float, int]


class Keeper:
    """Removes the checkpoints of ended trials that are not among the best, as soon as nobody writes them any more.

    Trials of full length come before those that were stopped, then the score counts, then the lower number. Of a trial
    that diverged or failed nothing is kept, and of none the previous checkpoint. What cannot be removed stays.

    Args:
        folder_of: from a trial's number to its folder.
        keep: of how many trials the checkpoints are kept; None: of all, whatever became of them.
        known: trials of earlier starts; those of them that have ended are cleared away now.
        cleared: is told the number of each trial that is cleared away, and whether its last and best ones stay.
    """

    def __init__(
        self,
        folder_of: Callable[[int], Path],
        keep: int | None,
        known: Collection[Trial] = (),
        cleared: Callable[[int, bool], None] | None = None,
    ) -> None:
        self._cleared = cleared
        self._folder_of = folder_of
        self._keep = keep
        self._best: list[_Rank] = []  # a heap, the worst first
        self._ended: dict[int, bool] = {}  # by number, whether the last and the best one stay
        self._written: set[int] = set()  # to be cleared away when nobody writes there any more
        for trial in known:
            if trial.status.ended:
                self._enter(trial)
        self._written = set(self._ended)
        self._clear()

    def started(self, trial: Trial) -> None:
        """Nothing: it needs its checkpoints."""

    def reported(self, trial: Trial) -> None:
        """Looks again after those whose last checkpoint was still being written when they ended."""
        self._clear()

    def retried(self, trial: Trial, why: str) -> None:
        """Nothing: it goes on from its checkpoint."""

    def ended(self, trial: Trial) -> None:
        """Removes what needs not be kept of this trial, and of one that it takes the place of."""
        self._enter(trial)
        self._clear()

    def close(self) -> None:
        """Looks once more after all that ended here, when no process trains any more."""
        self._written |= set(self._ended)
        self._clear()

    def _enter(self, trial: Trial) -> None:
        """Decides what is kept of a trial that has ended, and which one loses its place to it."""
        self._ended[trial.number] = self._keep is None
        self._written.add(trial.number)
        if not self._keep or trial.status not in (TrialStatus.COMPLETED, TrialStatus.STOPPED) or trial.score is None:
            return
        self._ended[trial.number] = True
        heapq.heappush(self._best, (trial.status is TrialStatus.COMPLETED, trial.score, -trial.number))
        if len(self._best) > self._keep:
            number = -heapq.heappop(self._best)[2]
            self._ended[number] = False
            self._written.add(number)

    def _clear(self) -> None:
        for number in sorted(self._written):
            with contextlib.suppress(OSError):  # a read-only disk, say: the record says so
                if not discard(self._folder_of(number) / "checkpoint", previous_only=self._ended[number]):
                    continue
            self._written.discard(number)
            if self._cleared is not None:
                self._cleared(number, self._ended[number])
