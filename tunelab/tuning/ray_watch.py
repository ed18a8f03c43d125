"""Sees to it that Ray answers: its loop asks the engine many times a second, and its head processes live.

Without its head (the processes `gcs_server` and `raylet`) Ray waits for ever, or ends the whole driver after 60 s with
status 1 and without a word to Python (seen with Ray 2.60). So the search is paused as soon as one of them is gone; and
if Ray is not through with stopping after a while, the process is ended here, with one line that says how to go on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

from tunelab.capacity import children_of
from tunelab.supervision import tell
from tunelab.training.pulse import started
from tunelab.tuning.losses import Loss
from tunelab.tuning.watchdog import Limits, describe

HEAD = ("gcs_server", "raylet")
_RENEWED = 5.0  # seconds between two looks at which processes are Ray's (our choice)
_ATTEMPTS, _AGAIN = 4, 1.5  # times that a head is asked, and seconds between them, until it is gone (our choice)
_OURS = "tunelab.tuning.ray_pieces"  # while it is being called, Ray waits for the engine
_STATUS = 3


class Head(Protocol):
    """The head of a cluster that somebody else has started."""

    rounds: int
    """How often it has answered so far."""

    def trouble(self) -> str:
        """Why it cannot be reached, asked now; "" if it can."""


class Halts(Protocol):
    """What pauses when Ray is lost: an engine."""

    def halt(self, why: str) -> None:
        """Pauses everything."""


class RayWatch:
    """Watches Ray's processes and its loop; a witness of trials that died with Ray, whose fault that is not.

    `lost` says why Ray is given up, "" while it is not.

    Args:
        engine: is halted when Ray is lost.
        farewell: says on the terminal that the search ends here, and why, where Ray does not let it end in order.
        limits: how long things may take.
        head: of the cluster that this process joins; None: Ray is started here.
    """

    def __init__(
        self, engine: Halts, farewell: Callable[[str], None], limits: Limits, head: Head | None = None
    ) -> None:
        self._cluster = head
        self._rounds, self._apart = -1, 0.0
        self.lost = ""
        self.questions = 0
        self._engine, self._farewell, self._limits = engine, farewell, limits
        self._before: set[int] = set()
        self._folder: Path | None = None
        self._thread = 0
        self._head: dict[str, tuple[int, float]] = {}
        self._processes: dict[int, float] = {}
        self._seen = 0
        self._silent, self._since, self._renewed = 0.0, 0.0, 0.0
        self._stage = "before"

    def ask(self) -> None:
        """Ray's loop puts a question to the engine."""
        self.questions += 1

    @contextlib.contextmanager
    def around(self, folder: Path) -> Iterator[None]:
        """Around Ray's start, its use and its end, whose files are in `folder`; no process of it is left afterwards."""
        self._folder, self._thread = folder, threading.get_ident()
        self._before = {child.pid for child in psutil.Process().children()}
        try:
            yield
        finally:
            self._stage = "after"
            if self.lost:
                self._kill()

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """While Ray runs."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                name, began = child.name(), started(child.pid)
                if child.pid in self._before or began is None:
                    continue
                self._processes[child.pid] = began
                if name in HEAD:
                    self._head[name] = child.pid, began
        self._stage = "up"
        try:
            yield
        finally:
            self._silent = 0.0
            self._stage = "down"

    def testify(self, number: int) -> Loss | None:
        """That Ray itself is gone, which halts the engine; None while it is not."""
        self.find_out()
        return Loss("lost", self.lost) if self.lost else None

    def find_out(self) -> None:
        """Gives Ray up if it is gone: a head that cannot be reached now is asked again for some seconds."""
        self._check_head()
        if self.lost or self._cluster is None or self._stage != "up":
            return
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_AGAIN)
            why = self._cluster.trouble()
            if not why:
                return
        self.lose(why)

    def look(self, watched: float) -> None:
        """Gives Ray up when it is gone or does not answer, and the process when that does not end; see `Looker`."""
        if self._stage in ("before", "after"):
            return
        self._renewed += watched
        if self._renewed > _RENEWED:
            self._renewed = 0.0
            self._find_processes()
        if self.lost:
            self._since += watched
            if self._since > self._limits.end:
                self._leave()
        elif self._stage == "up":
            self._check_head()
            self._check_cluster(watched)
            self._check_loop(watched)
        else:
            self._silent += watched
            if self._silent > self._limits.ray:
                self.lose(f"Ray has not ended for {describe(self._silent)}")

    def _check_head(self) -> None:
        for name, (pid, began) in self._head.items():
            if self._stage == "up" and started(pid) != began:
                self.lose(f"Ray's process {name} is gone")

    def _check_cluster(self, watched: float) -> None:
        """Gives a cluster up whose head has not answered for a while; it may be started again meanwhile."""
        if self._cluster is None:
            return
        if self._cluster.rounds != self._rounds:
            self._rounds, self._apart = self._cluster.rounds, 0.0
            return
        self._apart += watched
        if self._apart > self._limits.head and (why := self._cluster.trouble()):
            self.lose(why)
        elif self._apart > self._limits.ray:
            self.lose(f"the cluster's head has not answered for {describe(self._apart)}")

    def _check_loop(self, watched: float) -> None:
        if self.questions != self._seen or self._engine_works():
            self._seen, self._silent = self.questions, 0.0
            return
        self._silent += watched
        if self._silent > self._limits.ray:
            self.lose(f"Ray has not answered for {describe(self._silent)}")

    def _engine_works(self) -> bool:
        """True while Ray waits for what it asked the engine."""
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if frame.f_globals.get("__name__") == _OURS:
                return True
            frame = frame.f_back
        return False

    def lose(self, why: str) -> None:
        """Gives Ray up."""
        if not self.lost:
            self.lost = why
            tell(again="Ray was gone")
            self._engine.halt(why)

    def _find_processes(self) -> None:
        """Takes in what Ray's processes have started; psutil would look through all of the machine's for each."""
        waiting = list(self._processes.items())
        while waiting:
            pid, began = waiting.pop()
            for child in children_of(pid) if started(pid) == began else ():
                now = started(child)
                if now is not None and self._processes.get(child) != now:
                    self._processes[child] = now
                    waiting.append((child, now))

    def _kill(self) -> None:
        """Kills what is left of Ray's processes: those that were seen, and what they have started since."""
        self._find_processes()
        for pid, began in self._processes.items():
            if started(pid) == began:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()

    def _leave(self) -> None:
        """Ends this process: whatever waits for Ray here waits for ever, or until Ray ends it without a word."""
        self._kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(Exception):
            self._farewell(self.lost)
        os._exit(_STATUS)
