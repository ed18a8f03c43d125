"""A worker's side of the mirror: the trial's folder goes into the store beside the training, and comes from there.

What the store refuses ends no training: it is tried again after the next epoch, and noted in the trial.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tunelab.credentials import hide
from tunelab.errors import InputError
from tunelab.files import cache_root
from tunelab.liveness import this_boot
from tunelab.stores.lease import WorkersLease
from tunelab.stores.store import Store, StoreError
from tunelab.stores.trials import CHECKPOINT, TrialCopy
from tunelab.training import checkpoint

_EVENTS_EVERY = 30.0  # seconds between two copies of files that only ever grow; our choice
_ATTEMPTS = 3
_PAUSE = 2.0  # seconds before the second attempt to fetch a trial, and twice as many before each other; our choice
_BESIDE = "nodes"


def home_of(folder: Path, storage: str) -> Path:
    """Where a trial's files lie for this process: in the study if it can be seen here, else in the cache.

    Args:
        folder: of the trial, in the study.
        storage: the place of the study in its store.
    """
    if (folder.parent.parent / "study.json").exists():
        return folder
    place, beside = hashlib.sha256(storage.encode()).hexdigest()[:16], cache_root()[0] / _BESIDE
    _remove_left(beside)
    return beside / f"{place}-{_here()}-{os.getpid()}" / folder.name


def _here() -> str:
    """Stands for this machine since its start: others may have the same cache folder, with their own processes."""
    return hashlib.sha256(f"{socket.gethostname()} {this_boot()}".encode()).hexdigest()[:12]


def is_passing(folder: Path) -> bool:
    """True for a trial's folder in the cache, which goes when the store has all of it."""
    return folder.parent.parent.name == _BESIDE


def _remove_left(beside: Path) -> None:
    """Removes what processes that were killed have left in the cache; the store has it, or lacks a few epochs."""
    for left in beside.glob(f"*-{_here()}-*"):
        process = left.name.rpartition("-")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


class TrialMirror:
    """Mirrors the folder of one trial.

    Args:
        storage: the place of the study in its store.
        folder: of the trial, on this machine.
        tell: takes a line about what did not work.
        lease: the nonce of the driver's lease; when that is another's, nothing more is written.
    """

    def __init__(self, storage: str, folder: Path, tell: Callable[[str], None], lease: str) -> None:
        self.folder = folder
        self._passing = is_passing(folder)
        self._tell = tell
        store = Store.open(storage)
        guarded = store.guarded(WorkersLease(store, lease).require)
        self._copy = TrialCopy(guarded.child("trials").child(folder.name), folder)
        self._asked = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._events_at = 0.0

    def fetch(self) -> None:
        """Brings the trial's folder to this machine, where another has begun or gone on with it.

        What cannot be fetched is told: then the trial goes on from what is here.
        """
        pause = _PAUSE
        for attempt in range(_ATTEMPTS):
            try:
                if not (lacking := self._copy.fetch()):
                    return
                why = f"it lacks {', '.join(lacking)}"
            except StoreError as error:
                why = str(error)
            if attempt + 1 < _ATTEMPTS:
                time.sleep(pause)
                pause *= 2
        self._tell(f"what the store has of this trial could not be fetched: {why}")

    def sync(self) -> None:
        """Has the folder copied as it is now; returns at once. Asked again meanwhile, it is copied once more."""
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Has what is left copied, when the last checkpoint is on the disk; returns at once."""
        self._ending.set()
        self.sync()

    def wait(self, seconds: float) -> bool:
        """Waits until all is copied; False if that takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            last = self._ending.is_set()
            self._push(last)
            if last:
                return

    def _push(self, last: bool) -> None:
        now = time.monotonic()
        with_events = last or now - self._events_at > _EVENTS_EVERY
        try:
            if not last:
                checkpoint.settle(self.folder / CHECKPOINT)
            self._copy.push(with_events=with_events)
        except (StoreError, InputError) as error:
            self._tell(f"the store did not take this trial's files: {error}")
        except OSError as error:
            self._tell(f"this trial's files could not be copied to the store: {error.strerror or error}")
        except Exception as error:  # whatever it is, the thread goes on: it is the trial's only one
            self._tell(
                f"this trial's files could not be copied to the store: {type(error).__name__}: {hide(str(error))}"
            )
        else:
            self._events_at = now if with_events else self._events_at
            if last and self._passing:
                shutil.rmtree(self.folder, ignore_errors=True)
