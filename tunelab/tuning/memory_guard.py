"""Ends a trial's process that takes too much memory, before the kernel ends one of its own choice.

A thread of the process looks a few times a second. The process goes when it holds more than it may; and, of several,
the largest goes when all together do, or when the machine or the control group has almost nothing left and the trials
have much of it. Why is written first, into the trial's folder: the driver reads it there (`tunelab.tuning.testimony`).
There is a line in that file as soon as it comes close, so that the end of a process that the kernel was faster with is
explained too.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tunelab.capacity import all_memory_mib, children_of, describe_size, free_memory_mib, held_mib
from tunelab.files import make_private, write_atomically
from tunelab.tuning.slots import shares

FILE = "memory.json"
"""In the trial's folder, while its process is close to its end for memory, and after that end."""
EXIT_STATUS = 137
"""As a process has that was ended by SIGKILL, which is what the kernel does for memory."""

_GENEROUS = 2.0  # times what is predicted of the largest, or its share of the memory: so much may it hold; our choice
_LEAST_SHARE = 1024.0  # MiB that a process may hold in any case; our choice
_SECONDS = 0.2  # between two looks at the process itself; our choice
_EVERY = 3  # looks there is one at its children, its neighbours and the machine; our choice
_CLOSE = 0.8  # of what it may hold: from there on it is written what it holds; our choice
_AGAIN = 1.0  # seconds until that is written again; our choice
_LEAST_FREE = 0.03  # of the memory of the machine or the control group; our choice
_LEAST_MIB, _MOST_MIB = 48.0, 1024.0  # of that, at least and at most; our choice
_OURS = 0.2  # of what is taken: with less, others have taken the memory, whom the kernel will choose; our choice
_PATIENCE = 3  # looks in a row in which it must be too little: what another gives back takes a moment; our choice


@dataclass(frozen=True)
class Limits:
    """What the processes of trials may hold, in MiB, without pages of files.

    `each` is for one of them, `roomy` for one with fewer beside it than usual, `together` for all on one machine (None:
    what there is).
    """

    each: float
    roomy: float
    together: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Limits:
        """What `to_json` wrote."""
        return cls(**plain)


def limits_beside(host: float, trials: int, usual: float, *, bound: bool) -> Limits:
    """What each process may hold: its share of the machine, and more where what was measured wants it.

    Only a bound that the user has set is one for all processes together too: else the guard looks at what the machine
    has left.

    Args:
        host: MiB of the machine for all trials.
        trials: how many run there at once.
        usual: MiB that the largest trial is known to take.
        bound: the user has set a bound on `host`.
    """
    least = max(_LEAST_SHARE, _GENEROUS * usual)
    each, roomy = (max(least, host / beside) for beside in (trials, max(1, trials // 2)))
    return Limits(each, roomy, max(host, usual) if bound else None)


@dataclass(frozen=True)
class NodeLimits:
    """What processes of trials may hold on nodes that differ: each works it out for its own node, when it begins.

    A trial has `cpus` and `gpus` of the node, and takes `usual` MiB at most as far as is known. No more than `most`
    trials (None: as many as fit) run on a node; all of one node may take `bound` MiB together (None: what it has).
    """

    usual: float
    cpus: int
    gpus: float
    most: int | None = None
    bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def on(self, cpus: float, gpus: float, memory: float) -> Limits:
        """The limits on a node with so many processors, GPUs and MiB of memory for trials."""
        fits = [int(cpus // self.cpus)]
        if self.gpus:
            fits.append(shares(gpus, self.gpus))
        if self.most is not None:
            fits.append(self.most)
        host = memory if self.bound is None else min(memory, self.bound)
        return limits_beside(host, max(1, min(fits)), self.usual, bound=self.bound is not None)


@dataclass(frozen=True)
class Word:
    """What a process wrote of its memory: trial `number` held `held_mib` of `limit_mib`, and `ended` for it or not yet.

    `why` says so in words.
    """

    number: int
    process: int
    held_mib: float
    limit_mib: float
    ended: bool
    why: str

    def write(self, folder: Path) -> None:
        """Writes it for the driver; nothing happens where that cannot be done."""
        with contextlib.suppress(OSError):
            make_private(folder)
            write_atomically(folder / FILE, json.dumps(asdict(self)) + "\n")


def read_word(folder: Path) -> Word | None:
    """The last word of a trial's process; None if there is none, or it cannot be read."""
    try:
        return Word(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget_word(folder: Path) -> None:
    """Removes what was written of a trial's process."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()


class Senses:
    """What a process knows of itself, its neighbours and the machine, in MiB. Tests have others."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._children: list[int] = []
        self._all = all_memory_mib()

    def held(self) -> float:
        """What this process holds, and its children, as far as they were there at the last `look_around`."""
        own = (self._process, *self._children)
        return sum(held_mib(process) or 0.0 for process in own)

    def look_around(self) -> None:
        """Looks for the process's children."""
        self._children = _all_children(self._process)

    def neighbours(self) -> dict[int, float]:
        """What each of the other trials' processes on this machine holds, by its number.

        Ray starts them all from one process. Its own helpers are among them; they hold little.
        """
        others = [one for one in children_of(os.getppid()) if one != self._process and _is_trial(one)]
        return {one: sum(held_mib(part) or 0.0 for part in (one, *_all_children(one))) for one in others}

    def free(self) -> tuple[float, float]:
        """What the machine or the control group has left, and what it had when nothing was taken."""
        return free_memory_mib(), self._all

    def exit(self, status: int) -> NoReturn:
        """Ends the process at once."""
        os._exit(status)


class MemoryGuard:
    """Looks after the memory of one process that trains one trial after another.

    Args:
        senses: what it sees, for tests.
        start: starts its thread, for tests.
    """

    def __init__(self, senses: Senses | None = None, start: Callable[[MemoryGuard], None] | None = None) -> None:
        self._senses = senses
        self._start = start or _start_thread
        self._started = False
        self._task: tuple[int, Path, Limits] | None = None
        self._looks = self._pressed = 0
        self._spoken = 0.0
        self._lock = threading.Lock()

    def watch(self, number: int, folder: Path, limits: Limits | None, *, fewer: bool = False) -> None:
        """The process trains trial `number` from now on, maybe beside fewer; without `limits` nothing is looked at."""
        self.rest()
        if limits is None:
            return
        forget_word(folder)
        self._task = number, folder, replace(limits, each=limits.roomy) if fewer else limits
        if not self._started:
            self._started = True
            self._senses = self._senses or Senses()
            self._start(self)

    def rest(self) -> None:
        """The trial is over: what was written of it is no longer true."""
        with self._lock:  # not in the middle of writing it
            task, self._task, self._pressed = self._task, None, 0
            if task is not None and self._spoken:
                forget_word(task[1])
            self._spoken = 0.0

    def look(self) -> None:
        """Looks once, and ends the process if it must go."""
        with self._lock:
            task, senses = self._task, self._senses
            if task is None or senses is None:
                return
            number, folder, limits = task
            around = self._pressed > 0 or self._looks % _EVERY == 0
            self._looks += 1
            if around:
                senses.look_around()
            held = senses.held()
            if held > limits.each:
                self._end(f"its process held {_mib(held)} and may hold {_mib(limits.each)}", held, limits.each)
                return
            close = held > _CLOSE * limits.each
            if around:
                close = self._look_around(held, limits) or close
                self._speak(number, folder, held, limits, close=close)

    def _look_around(self, held: float, limits: Limits) -> bool:
        """Ends the process if another must have its memory; True if that is close."""
        assert self._senses is not None
        free, whole = self._senses.free()
        least = min(_MOST_MIB, max(_LEAST_MIB, _LEAST_FREE * whole))
        why, close, limit = "", free < 2 * least, limits.each
        others: dict[int, float] | None = None
        if free < least and held >= least - free:  # else its end would not help
            others = self._senses.neighbours()
            if held + sum(others.values()) >= _OURS * (whole - free):
                why = f"the machine or its control group had {_mib(max(0.0, free))} left of {_mib(whole)}"
        if not why and limits.together is not None:
            others = self._senses.neighbours() if others is None else others
            taken = held + sum(others.values())
            close = close or taken > limits.together
            if taken > limits.together:
                limit = limits.together
                why = f"the trials held {_mib(taken)} together and may hold {_mib(limits.together)}"
        if why and others and (held, os.getpid()) < max((size, one) for one, size in others.items()):
            why = ""  # a larger one goes
        self._pressed = self._pressed + 1 if why else 0
        if self._pressed >= _PATIENCE:
            self._end(f"{why}; its process was the largest with {_mib(held)}", held, limit)
        return close

    def _speak(self, number: int, folder: Path, held: float, limits: Limits, *, close: bool) -> None:
        """Writes what the process holds while it is close to its end, and takes it back when it no longer is."""
        now = time.monotonic()
        if close and now > self._spoken + _AGAIN:
            self._spoken = now
            why = f"it held {_mib(held)} when it was last looked at"
            Word(number, os.getpid(), held, limits.each, False, why).write(folder)
        elif not close and self._spoken:
            self._spoken = 0.0
            forget_word(folder)

    def _end(self, why: str, held: float, limit: float) -> None:
        assert self._task is not None
        assert self._senses is not None
        number, folder, _ = self._task
        end_process(folder, Word(number, os.getpid(), held, limit, True, why), self._senses.exit)


def end_process(folder: Path, word: Word, leave: Callable[[int], NoReturn] = os._exit) -> None:
    """Ends the process for want of memory, when its last word is on the disk."""
    word.write(folder)
    leave(EXIT_STATUS)


def _start_thread(guard: MemoryGuard) -> None:
    def run() -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):  # of /proc, while a process ends: there is a next look
                guard.look()
            time.sleep(_SECONDS)

    threading.Thread(target=run, name="memory guard", daemon=True).start()


def _all_children(process: int) -> list[int]:
    found = children_of(process)
    return found + [further for child in found for further in _all_children(child)]


def _is_trial(process: int) -> bool:
    """True if Ray runs a trial in the process, or did: its title says so."""
    try:
        title = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith((b"ray::TrialWorker", b"ray::ResourceTrainable", b"ray::RayTrainWorker"))


def _mib(size: float) -> str:
    return describe_size(size * 2**20)
