"""One machine on which trials run: what their processes tell there, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunelab.training.pulse import Beat, age, beat_path, read_beat, stacks_path, started

BUSY = ("ray::TrialWorker", "ray::ResourceTrainable", "ray::RayTrainWorker")
"""What Ray calls processes of trials."""
ANY = ("ray::IDLE", *BUSY)
"""Also those that may be about to begin with one."""
STACKS_PATIENCE = 5.0
"""Seconds that a process is given to write its stacks (our choice)."""


@dataclass(frozen=True)
class Stacks:
    """What a process told of its threads: `text`, or `lacking`, why there is none. `host` is its machine's name."""

    host: str
    text: str = ""
    lacking: str = ""


def own_family() -> list[psutil.Process]:
    """All that this process has started, and what that has."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


class Machine:
    """The processes of trials on this machine, each of which beats in a file of its own.

    As long as it is not open, nothing is known of any trial.

    Args:
        family: all processes that may be of trials; asked when it is not known which of them has one.
        titles: how Ray calls those.
        least_age: seconds; a younger process is just beginning, whatever its trial.
    """

    def __init__(
        self,
        family: Callable[[], Iterable[psutil.Process]] = own_family,
        titles: tuple[str, ...] = ANY,
        least_age: float = 0.0,
    ) -> None:
        self._folder: Path | None = None
        self._family, self._titles, self._least_age = family, titles, least_age

    def open(self, beats: Path) -> None:
        """Beats are in the folder `beats` from now on, which is there."""
        self._folder = beats

    def forget(self, number: int) -> None:
        """What a trial beat before is gone: its process may train another trial by now."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                beat_path(self._folder, number).unlink(missing_ok=True)

    def beats(self, numbers: Iterable[int]) -> dict[int, Beat | None]:
        """The last beat of each of these trials whose process lives; None of one that has none."""
        return {} if self._folder is None else {number: self._beat(self._folder, number) for number in numbers}

    def _beat(self, folder: Path, number: int) -> Beat | None:
        try:
            beat = read_beat(beat_path(folder, number))
        except OSError:
            return None
        return beat if beat is not None and started(beat.pid) == beat.started else None

    def has_room(self) -> bool:
        """True if beats can be written; where they cannot, silence says nothing."""
        if self._folder is None:
            return False
        probe = self._folder / "probe"
        try:
            probe.write_bytes(b"room")
            probe.unlink()
        except OSError:
            return False
        return True

    def take_stacks(self, number: int, beat: Beat) -> Stacks | None:
        """Has the process that beats for a trial write its stacks, and reads them; None if it has ended by itself."""
        host = socket.gethostname()
        assert self._folder is not None
        try:
            status = psutil.Process(beat.pid).status()
        except psutil.Error:
            return None
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            said = f"its process {beat.pid} was stopped from outside, so there are no stacks"
            return Stacks(host, lacking=said)
        file = stacks_path(beat_path(self._folder, number))
        size, end = 0, time.monotonic() + STACKS_PATIENCE
        try:
            os.kill(beat.pid, signal.SIGUSR1)
            while time.monotonic() < end and (size == 0 or file.stat().st_size != size):
                size = file.stat().st_size
                time.sleep(0.1)
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return Stacks(host, lacking=f"its stacks could not be read: {error.strerror or error}")
        return Stacks(host, text, "" if text else "it did not even tell its stacks")

    def end(self, number: int, beat: Beat) -> bool:
        """Ends the process that beats for a trial with all that it has started; False if it has ended by itself."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(beat.pid)
            if started(beat.pid) == beat.started:
                end_tree(process)
                return True
        return False

    def unknown(self, known: Collection[int]) -> list[psutil.Process]:
        """The processes of trials but those with the numbers `known`: one of them may have begun with any trial."""
        found = []
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                if process.pid in known or (age(process.pid) or 0.0) < self._least_age:
                    continue
                if any(word.startswith(self._titles) for word in process.cmdline()):
                    found.append(process)
        return found

    def end_unknown(self, known: Mapping[int, Beat], note: Callable[[], None]) -> None:
        """Ends the processes of trials that beat for none of the `known` ones; calls `note` first if there are any."""
        found = self.unknown({beat.pid for beat in known.values()})
        if found:
            note()
        for process in found:
            end_tree(process)


def end_tree(process: psutil.Process) -> None:
    """Kills a process with all that it has started, which may not start more meanwhile; one that has ended is left."""
    with contextlib.suppress(psutil.Error):
        process.suspend()
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    with contextlib.suppress(psutil.Error):
        process.kill()
