"""Writes checkpoints beside the training: what takes long is waiting for the disk, and needs no processor."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunelab.files import NO_ROOM
from tunelab.training import checkpoint

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds between two attempts; each pause is twice the one before; our choice


@dataclass(frozen=True)
class Room:
    """What is done while the disk has no room for a checkpoint: for `patience` seconds it is tried again.

    `waits` is told why, about twice a second while the training waits for that, and "" when it goes on.
    """

    patience: float = 0.0
    waits: Callable[[str], None] = lambda why: None


AT_ONCE = Room()
"""No second attempt: the training says what the disk says."""


@dataclass(frozen=True)
class _Order:
    """A checkpoint to write, as `checkpoint.write` takes it."""

    folder: Path
    content: io.BytesIO
    best: bool
    previous: bool


class Saver:
    """Writes the checkpoints of one training one after another, each in a thread that ends with it.

    At most one state is held beside that of the training. The thread keeps the process from ending before the
    checkpoint is written, unless it is killed.
    """

    def __init__(self, room: Room = AT_ONCE) -> None:
        self._room = room
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._full = ""
        self._hurry = threading.Event()

    def save(self, folder: Path, state: checkpoint.Checkpoint, *, best: bool, wait: bool, previous: bool) -> None:
        """Save `state` as `checkpoint.save` does; without `wait`, it is being written when this returns.

        The one before is on the disk first. `state` is copied: its tensors may change when this returns.

        Raises:
            OSError: this one could not be written or begun, or the one before was not written. `state` is not saved.
        """
        self.wait()
        order = _Order(folder, checkpoint.to_bytes(state), best, previous)
        file: BinaryIO | None = None
        try:
            file = checkpoint.claim(folder)  # from here on others know that it is being written
        except OSError as error:
            if error.errno not in NO_ROOM or not self._room.patience:
                raise
        if wait and not self._room.patience:
            self._write(order, file)
        else:
            self._thread = threading.Thread(target=self._write, args=(order, file), name="checkpoint")
            self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            OSError: what was being written could not be. It is raised once, by whichever call comes first.
        """
        self._join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise what `wait` would, if it is known already."""
        if self._error is not None:
            self.wait()

    def close(self) -> None:
        """As `wait`, with a last attempt where the disk has no room."""
        self._hurry.set()
        self.wait()

    def _join(self) -> None:
        told = False
        while self._thread is not None and self._thread.is_alive():
            if why := self._full:
                told = True
                self._room.waits(why)
            self._thread.join(_FIRST_PAUSE if self._room.patience else None)
        if told:
            self._room.waits("")

    def _write(self, order: _Order, file: BinaryIO | None) -> None:
        ends, pause = time.monotonic() + self._room.patience, _FIRST_PAUSE
        final = not self._room.patience
        try:
            while not self._attempt(order, file, final):
                file = None
                final = self._hurry.wait(pause) or time.monotonic() > ends
                pause = min(2 * pause, _LONGEST_PAUSE)
        except Exception as error:
            self._error = error
        finally:
            self._full = ""

    def _attempt(self, order: _Order, file: BinaryIO | None, final: bool) -> bool:
        """True if the checkpoint is written, False if there was no room for it and another attempt follows."""
        try:
            file = file or checkpoint.claim(order.folder)
            checkpoint.write(order.folder, file, order.content, best=order.best, previous=order.previous)
        except OSError as error:
            if error.errno not in NO_ROOM or final:
                raise
            self._full = f"no room for a checkpoint in {order.folder}: {error.strerror}"
            return False
        return True
