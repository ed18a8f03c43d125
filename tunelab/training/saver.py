"""Writes checkpoints beside the training: what takes long is waiting for the disk, and needs no processor."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import BinaryIO

from tunelab.training import checkpoint


class Saver:
    """Writes the checkpoints of one training one after another, each in a thread that ends with it.

    At most one state is held beside that of the training. The thread keeps the process from ending before the
    checkpoint is written, unless it is killed.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, folder: Path, state: checkpoint.Checkpoint, *, best: bool, wait: bool) -> None:
        """Save `state` as `checkpoint.save` does; without `wait`, it is being written when this returns.

        The one before is on the disk first. `state` is copied: its tensors may change when this returns.

        Raises:
            OSError: this one could not be written or begun, or the one before was not written. `state` is not saved.
        """
        self.wait()
        content = checkpoint.to_bytes(state)
        file = checkpoint.claim(folder)
        if wait:
            checkpoint.write(folder, file, content, best=best)
            return
        self._thread = threading.Thread(target=self._write, args=(folder, file, content, best), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            OSError: what was being written could not be. It is raised once, by whichever call comes first.
        """
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise what `wait` would, if it is known already."""
        if self._error is not None:
            self.wait()

    def _write(self, folder: Path, file: BinaryIO, content: io.BytesIO, best: bool) -> None:
        try:
            checkpoint.write(folder, file, content, best=best)
        except Exception as error:
            self._error = error
