"""Everything that watches over a search while it runs: its trials, Ray, and its own signs of life."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from tunelab.liveness import SignsOfLife
from tunelab.tuning.deadline import Pace
from tunelab.tuning.losses import Witness
from tunelab.tuning.machine import Machine
from tunelab.tuning.ray_watch import Halts, Head, RayWatch
from tunelab.tuning.watchdog import Limits, Reach, Watchdog, patrol

_BEATS = "beats"


class Cluster(Reach, Head, Witness, Protocol):
    """The nodes of a cluster, as `tunelab.tuning.outposts.Outposts` sees them."""

    search: str

    def up(self) -> contextlib.AbstractContextManager[None]:
        """While this process is a driver of the cluster."""


class Guard:
    """Watches over one run of an engine on Ray. `watchdog` is to be a listener of the engine.

    `farewell` makes the last line out of why Ray was given up.

    Args:
        folder_of: from a trial's number to its folder.
        pace: how long trials take; None: nothing is known.
        timeout: the longest that a trial may take, in seconds; None: as `Watchdog` has it.
        life: gives a sign whenever Ray's loop asks something.
        screen: where the last line goes if Ray does not let the search end in order.
        cluster: the nodes of the cluster that is joined; None: Ray is started on this machine.
    """

    def __init__(
        self,
        folder_of: Callable[[int], Path],
        pace: Pace | None,
        timeout: float | None,
        life: SignsOfLife,
        screen: TextIO,
        cluster: Cluster | None = None,
    ) -> None:
        self._machine, self._cluster = Machine(), cluster
        self._limits = Limits.usual()
        self._ray: RayWatch | None = None
        self._life, self._screen = life, screen
        self.farewell: Callable[[str], str] = str
        self.watchdog = Watchdog(
            folder_of, pace, timeout=timeout, asked=self._questions, limits=self._limits, reach=cluster or self._machine
        )

    @contextlib.contextmanager
    def over(self, engine: Halts, folder: Path) -> Iterator[RayWatch]:
        """Watches while `engine` runs on a Ray whose files are in `folder`; gives what watches Ray."""
        self._ray = RayWatch(engine, self._say_farewell, self._limits, self._cluster)
        if self._cluster is None:
            (folder / _BEATS).mkdir(mode=0o700)
            self._machine.open(folder / _BEATS)
        self._life.give()
        with patrol((self.watchdog, self._ray), self._limits.look), self._ray.around(folder):
            yield self._ray

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """While Ray runs, and this process is its driver; what is raised meanwhile may be that Ray is gone."""
        assert self._ray is not None
        with contextlib.nullcontext() if self._cluster is None else self._cluster.up(), self._ray.up():
            try:
                yield
            except Exception:
                self._ray.find_out()
                raise

    @property
    def witnesses(self) -> list[Witness]:
        """Who may know why the process of a trial is gone, those first who know it best."""
        assert self._ray is not None
        return [self._ray, self.watchdog, *([] if self._cluster is None else [self._cluster])]

    @property
    def ray_is_lost(self) -> bool:
        """True if Ray was given up: what it raises is no news."""
        return self._ray is not None and bool(self._ray.lost)

    def give_up(self, why: str) -> None:
        """Ray is not there: the engine is halted, and a supervised search tried again."""
        assert self._ray is not None
        self._ray.lose(why)

    def settings(self, folder: Path) -> dict[str, Any]:
        """What workers need to know: where they beat, and the limits of a step and of anything else."""
        beats = str(folder / _BEATS) if self._cluster is None else self._cluster.search
        return {"beats": beats, "least": self._limits.least, "pause": self._limits.pause}

    def ask(self) -> None:
        """Ray's loop puts a question to the engine: both are alive."""
        self._life.give()
        if self._ray is not None:
            self._ray.ask()

    def _say_farewell(self, why: str) -> None:
        show_cursor = "\r\n\x1b[?25h" if self._screen.isatty() else ""  # which a live display has hidden
        self._screen.write(f"{show_cursor}tunelab: {self.farewell(why)}\n")
        self._screen.flush()

    def _questions(self) -> int:
        return 0 if self._ray is None else self._ray.questions
