"""Space that runs out while a search runs: nothing new is begun until there is some, and then it goes on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from tunelab.capacity import describe_size
from tunelab.files import free_bytes, free_files
from tunelab.journal import Journal
from tunelab.records import Trial, TrialStatus
from tunelab.tuning.engine import Engine
from tunelab.tuning.room import checkpoint_bytes

EVERY = 3.0
"""Seconds between two looks (our choice)."""
PATIENCE = 30 * 60.0
"""Seconds without room after which the search pauses for good; `tunelab resume` goes on (our choice)."""
SPARE = 50 * 2**20
"""Bytes that are left free in the study beside what the trials that run are still to write (our choice)."""
RAY_SPARE = 16 * 2**20
"""Bytes that are left free in Ray's temporary folder, whose logs grow slowly (our choice)."""
FILES = 200
"""So many files that can still be made; a trial makes about ten (our choice)."""
_AGAIN = 1.2  # so many times as much as is too little lets it go on: it does not waver at the limit
_CHECKPOINTS = 3
"""Of a trial: last, previous and best; from its second epoch on it has two of them, which are replaced one by one."""


class LowSpace:
    """Looks after the room in the study and in Ray's temporary folder; a listener, to know what runs.

    Args:
        study: its folder.
        journal: the record, whose reserve on the disk is kept up.
        concurrent: how many trials run at once.
        tell: is given one line when it begins to wait, and one when it goes on.
        clock: for tests.
    """

    def __init__(
        self,
        study: Path,
        journal: Journal,
        concurrent: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self._journal = journal
        self._concurrent = concurrent
        self._tell = tell
        self._clock = clock
        self._trials: dict[int, Trial] = {}  # those that were handed out and have not ended
        self._next = -float("inf")
        self._since: float | None = None
        journal.reserve()

    def started(self, trial: Trial) -> None:
        """Takes note of it."""
        self._trials[trial.number] = trial

    def reported(self, trial: Trial) -> None:
        """Nothing: it is known."""

    def retried(self, trial: Trial, why: str) -> None:
        """Nothing: it is known."""

    def ended(self, trial: Trial) -> None:
        """It needs no more room."""
        self._trials.pop(trial.number, None)

    def look(self, engine: Engine, temporary: Path) -> None:
        """Holds the engine while there is little room, lets it go on, or halts it; does nothing most times.

        Args:
            engine: is held.
            temporary: Ray's folder.
        """
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY
        why = self._shortage(temporary, 1.0 if self._since is None else _AGAIN)
        if why and self._since is None:
            self._since = now
            engine.hold(why)
            self._tell(f"{why}; no trial is begun until there is room")
        elif not why and self._since is not None:
            self._since = None
            engine.hold("")
            self._tell("there is room again; it goes on")
        elif self._since is not None and now - self._since > PATIENCE:
            engine.halt(why)

    def _shortage(self, temporary: Path, factor: float) -> str:
        """What there is too little of, in one line; "" if there is enough of everything."""
        for what, folder, least in (
            ("the study", self._study, self._to_come() + SPARE),
            ("Ray's temporary folder", temporary, RAY_SPARE),
        ):
            try:
                free, files = free_bytes(folder), free_files(folder)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # who removes the folder of a search ends it some other way
                return f"{what} {folder} cannot be looked at: {error.strerror}"
            if free < factor * least:
                return f"low space: {what} {folder} has {describe_size(free)} free, {describe_size(least)} are wanted"
            if files is not None and files < factor * FILES:
                return f"low space: {what} {folder} has room for {files} more files, {FILES} are wanted"
        if not self._journal.reserve():
            return f"low space: the record's reserve in {self._study} cannot be taken"
        return ""

    def _to_come(self) -> int:
        """Bytes that the trials that run are still to write, and as many others as could run, of the largest size."""
        running = [trial for trial in self._trials.values() if trial.status is TrialStatus.RUNNING]
        missing = sum(checkpoint_bytes(trial) * (_CHECKPOINTS - min(len(trial.epochs), 2)) for trial in running)
        largest = max(map(checkpoint_bytes, self._trials.values()), default=0)
        return missing + _CHECKPOINTS * largest * max(0, self._concurrent - len(running))
