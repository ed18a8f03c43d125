"""Signs of life of a training: who watches it from another process sees when it last moved, and in which phase.

A beat is a few numbers that are put into a small file which is mapped into memory, so it costs less than a microsecond
and no call of the system. What holds now as too long without one stands beside it.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

Item = TypeVar("Item")
Phase = Literal[
    "idle",
    "opening the data",
    "building the network",
    "reading the checkpoint",
    "beginning an epoch",
    "compiling",
    "training",
    "summing up the epoch",
    "averaging",
    "validating",
    "looking at the epoch",
    "waiting for the disk",
    "waiting for room",
]
"""What a training is doing. In `idle`, between epochs and trials, it waits for whoever it works for."""
WITHOUT_END: tuple[Phase, ...] = ("idle", "waiting for room")
"""In these phases nothing is expected of a training."""

LEAST_SECONDS = 60.0
"""No training is taken for hung sooner: another program may have the processors for a while (our choice)."""
PAUSE_SECONDS = 1800.0
"""So long may pass between beats in a phase whose steps are not known yet: set-up, compiling, the disk (our choice)."""
TIMES_MEDIAN = 10
"""A step that takes so many times as long as the median of the last steps is too long (our choice)."""
_REMEMBERED = 50  # steps of a phase whose times count (our choice)
_KNOWN_AFTER = 5  # steps: fewer say nothing, the first ones compile and fill caches (our choice)
_RENEWED_EVERY = 25  # steps (our choice)

_PHASES: tuple[Phase, ...] = get_args(Phase)
_MAGIC = 7.0e7 + 1  # the layout below
_PLACES = 10
_IDENTITY, _PID, _STARTED, _NUMBER, _TIME, _COUNT, _PHASE, _LIMIT, _MEDIAN, _STACKS = range(_PLACES)
_BYTES = 8 * _PLACES


class Beats(Protocol):
    """What a training tells of itself; see `Pulse`."""

    def enter(self, phase: Phase) -> None:
        """Something else begins now."""

    def each(self, items: Iterable[Item], phase: Phase) -> Iterable[Item]:
        """The items, with a beat after each, when the next is asked for."""


class NoBeats:
    """Tells nothing, and costs nothing."""

    def enter(self, phase: Phase) -> None:
        """Nothing."""

    def each(self, items: Iterable[Item], phase: Phase) -> Iterable[Item]:
        """The items themselves."""
        return items


class Pulse:
    """The beats of one trial, in a file of its own, and the stacks of this process on request.

    On SIGUSR1 the stacks of all threads are written beside the file, whatever the process is doing: in a loop of C code
    too.

    Args:
        path: of the file, which is made anew; its folder exists.
        number: the trial's.
        least: a lower bound of the limit of a step, in seconds.
        pause: the limit where no step times are known, in seconds.

    Raises:
        OSError: the file cannot be made, on a full disk, say.
    """

    def __init__(self, path: Path, number: int, *, least: float = LEAST_SECONDS, pause: float = PAUSE_SECONDS) -> None:
        self._least, self._pause = least, pause
        self._gaps: dict[Phase, deque[float]] = {}
        self._limits: dict[Phase, tuple[float, float]] = {}
        new = path.with_suffix(".new")
        with new.open("w+b", buffering=0) as file:
            file.write(bytes(_BYTES))  # written, not only made longer: a page that the disk has no room for kills
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self._at = memoryview(self._map).cast("d")
        self._stacks = stacks_path(path).open("wb", buffering=0)
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        values = {_PID: os.getpid(), _STARTED: started(os.getpid()) or 0.0, _NUMBER: number, _STACKS: 1.0}
        for place, value in values.items():
            self._at[place] = float(value)
        self.enter("idle")
        self._at[_IDENTITY] = _MAGIC
        new.replace(path)

    def enter(self, phase: Phase) -> None:
        """Something else begins now; in the phases `WITHOUT_END` nothing is expected of this process."""
        limit, median = (0.0, 0.0) if phase in WITHOUT_END else self._limits.get(phase, (self._pause, 0.0))
        at = self._at
        at[_PHASE], at[_MEDIAN], at[_LIMIT] = _PHASES.index(phase), median, limit
        at[_TIME] = time.monotonic()
        at[_COUNT] += 1

    def each(self, items: Iterable[Item], phase: Phase) -> Iterator[Item]:
        """The items, with a beat after each, when the next is asked for; `phase` has begun."""
        self.enter(phase)
        gaps = self._gaps.setdefault(phase, deque(maxlen=_REMEMBERED))
        at, clock, remember = self._at, time.monotonic, gaps.append
        before, due = at[_TIME], _KNOWN_AFTER
        for step, item in enumerate(items, start=1):
            yield item
            now = clock()
            at[_TIME] = now
            at[_COUNT] += 1.0
            remember(now - before)
            before = now
            if step >= due:
                due = step + _RENEWED_EVERY
                self._renew(phase, gaps)
        self._renew(phase, gaps)

    def close(self) -> None:
        """Nothing more is told; who reads the file sees a process that has nothing to do."""
        if self._map.closed:
            return
        self.enter("idle")
        faulthandler.unregister(signal.SIGUSR1)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # one that is under way ends nothing
        self._stacks.close()
        self._at.release()
        self._map.close()

    def _renew(self, phase: Phase, gaps: deque[float]) -> None:
        """The limit of this phase follows its last steps."""
        if len(gaps) < _KNOWN_AFTER:
            return
        median = statistics.median(gaps)
        limit = max(self._least, TIMES_MEDIAN * median)
        self._limits[phase] = limit, median
        self._at[_LIMIT], self._at[_MEDIAN] = limit, median


@dataclass(frozen=True)
class Beat:
    """The last beat of a trial, as another process reads it. Times are in seconds; `at` is on the monotonic clock.

    `started` tells process `pid` from a later one with the same number. `limit` 0 is none; `median` 0 is not known.
    """

    number: int
    pid: int
    started: float
    at: float
    count: int
    phase: Phase
    limit: float
    median: float


def read_beat(path: Path) -> Beat | None:
    """The last beat in a file; None if there is no such file, or it is none of these.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != _BYTES:
        return None
    at = memoryview(content).cast("d")
    if at[_IDENTITY] != _MAGIC or not 0 <= at[_PHASE] < len(_PHASES):
        return None
    numbers = int(at[_NUMBER]), int(at[_PID]), at[_STARTED], at[_TIME], int(at[_COUNT])
    return Beat(*numbers, _PHASES[int(at[_PHASE])], at[_LIMIT], at[_MEDIAN])


def beat_path(folder: Path, number: int) -> Path:
    """Where trial `number` beats, in the folder of all beats."""
    return folder / f"{number:04d}.beat"


def stacks_path(path: Path) -> Path:
    """Where the process of the beats in `path` writes its stacks to."""
    return path.with_suffix(".stacks")


def started(pid: int) -> float | None:
    """What tells a process from a later one of the same number: when it began. None if there is none, or it has ended.

    On Linux in ticks since the machine started, which no change of the clock moves.
    """
    if sys.platform != "linux":
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
        except psutil.Error:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # of proc(5) from the 3rd on; the 2nd may hold anything
    return None if fields[0] in (b"Z", b"X") else float(fields[19])


def age(pid: int) -> float | None:
    """Seconds since a process began; None if there is none, or it has ended."""
    began = started(pid)
    if began is None:
        return None
    if sys.platform != "linux":
        return time.time() - began
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
