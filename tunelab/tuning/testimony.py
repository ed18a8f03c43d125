"""Why the process of a trial is gone, as far as memory has to do with it: what the driver finds out about that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunelab.capacity import count_kills, describe_size
from tunelab.records import Trial
from tunelab.tuning.losses import Loss
from tunelab.tuning.memory_guard import forget_word, read_word


class MemoryWitness:
    """Knows of processes that ended for want of memory. It is a listener too: it has to hear which trials run.

    It believes the last word of the process itself; then the kernel, which counts the processes of the control group
    that it kills; then that the process was close to its limit when it was last heard of.

    Args:
        folder_of: from a trial's number to its folder.
        root: the machine's files, for tests.
    """

    def __init__(self, folder_of: Callable[[int], Path], root: Path = Path("/")) -> None:
        self._folder_of = folder_of
        self._root = root
        self._kills: dict[int, int] = {}  # by the kernel, when a trial was last heard of

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        self._kills[trial.number] = self._count()

    def reported(self, trial: Trial) -> None:
        """A trial is alive."""
        self._kills[trial.number] = self._count()

    def retried(self, trial: Trial, why: str) -> None:
        """A trial does not run any more."""
        self._kills.pop(trial.number, None)

    def ended(self, trial: Trial) -> None:
        """A trial does not run any more."""
        self._kills.pop(trial.number, None)

    def testify(self, number: int) -> Loss | None:
        """Why the process of this trial is gone; None if memory has nothing to do with it."""
        folder = self._folder_of(number)
        word = read_word(folder)
        forget_word(folder)
        if word is not None and word.number != number:  # a folder that was copied
            word = None
        if word is not None and word.ended:
            return Loss("memory", word.why)
        if self._count() > self._kills.get(number, self._count()):
            for one in self._kills:  # of several processes that go at one time each needs a kill of its own
                self._kills[one] += 1
            return Loss("memory", "the kernel killed its process: the machine or its control group had no more")
        if word is not None:
            limit = describe_size(word.limit_mib * 2**20)
            return Loss("memory", f"its process was killed; {word.why}, of {limit} that it may hold")
        return None

    def _count(self) -> int:
        return count_kills(self._root, anywhere=True) or 0
