"""Why the process of a trial is gone, as far as memory has to do with it: what the driver finds out about that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tunelab.capacity import describe_size, find_kill_count, read_kill_count
from tunelab.records import Trial
from tunelab.tuning.losses import Loss
from tunelab.tuning.memory_guard import Word, forget_word, read_word


class Kernel(Protocol):
    """Knows of the processes that a kernel kills for want of memory."""

    def note(self, number: int) -> None:
        """A trial is alive."""

    def forget(self, number: int) -> None:
        """A trial does not run any more."""

    def claim(self, number: int) -> bool:
        """True if the kernel has killed a process on a trial's machine since it was alive, and for no other trial."""


class Kills:
    """The kernel of this machine.

    Args:
        root: the machine's files, for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._file: Path | None = None  # that tells the count; to find it takes longer than to read it
        self._kills: dict[int, int] = {}  # when a trial was last heard of

    def note(self, number: int) -> None:
        """See `Kernel`."""
        self._kills[number] = self._count()

    def forget(self, number: int) -> None:
        """See `Kernel`."""
        self._kills.pop(number, None)

    def claim(self, number: int) -> bool:
        """See `Kernel`. Of several processes that go at one time each needs a kill of its own."""
        if self._count() <= self._kills.get(number, self._count()):
            return False
        for one in self._kills:
            self._kills[one] += 1
        return True

    def _count(self) -> int:
        found = None if self._file is None else read_kill_count(self._file)
        if found is None:
            self._file = find_kill_count(self._root, anywhere=True)
            found = None if self._file is None else read_kill_count(self._file)
        return found or 0


class MemoryWitness:
    """Knows of processes that ended for want of memory. It is a listener too: it has to hear which trials run.

    It believes the last word of the process itself; then the kernel, which counts the processes of the control group
    that it kills; then that the process was close to its limit when it was last heard of.

    Args:
        folder_of: from a trial's number to its folder.
        kernel: that of the machine where trials run; None: of this one.
        elsewhere: gives what a trial's process wrote on a machine that does not see its folder, once.
    """

    def __init__(
        self,
        folder_of: Callable[[int], Path],
        kernel: Kernel | None = None,
        elsewhere: Callable[[int], Word | None] = lambda number: None,
    ) -> None:
        self._folder_of = folder_of
        self._kernel: Kernel = kernel or Kills()
        self._elsewhere = elsewhere

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        self._kernel.note(trial.number)

    def reported(self, trial: Trial) -> None:
        """A trial is alive."""
        self._kernel.note(trial.number)

    def retried(self, trial: Trial, why: str) -> None:
        """A trial does not run any more."""
        self._kernel.forget(trial.number)

    def ended(self, trial: Trial) -> None:
        """A trial does not run any more."""
        self._kernel.forget(trial.number)

    def testify(self, number: int) -> Loss | None:
        """Why the process of this trial is gone; None if memory has nothing to do with it."""
        folder = self._folder_of(number)
        word = read_word(folder)
        forget_word(folder)
        word = self._elsewhere(number) if word is None else word
        if word is not None and word.number != number:  # a folder that was copied
            word = None
        if word is not None and word.ended:
            return Loss("memory", word.why)
        if self._kernel.claim(number):
            return Loss("memory", "the kernel killed its process: the machine or its control group had no more")
        if word is not None:
            limit = describe_size(word.limit_mib * 2**20)
            return Loss("memory", f"its process was killed; {word.why}, of {limit} that it may hold")
        return None
