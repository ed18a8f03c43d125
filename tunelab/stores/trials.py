"""The folder of a trial and its copy in a store: whoever goes on with a trial has the newest of the two.

A small hidden file in the folder says which state of the copy it goes on from. If the copy is in another state by now,
another machine has gone on with the trial, and what it left counts.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tunelab.files import make_private, write_atomically
from tunelab.stores.store import Store
from tunelab.stores.trees import Tree, files_below

CHECKPOINT = "checkpoint/"
_EVENTS = "events/"
_MARK = ".mirrored"


class TrialCopy:
    """The folder of one trial and its copy at a place in a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._folder = folder
        self._tree = Tree(store)
        self._is_read = False

    def fetch(self) -> list[str]:
        """Brings the folder up to the copy, where another machine has gone on; what such a one left half-sent goes.

        Returns:
            The files that the store does not have as its manifest says.

        Raises:
            StoreError: the store does not answer.
            OSError: a file cannot be written.
        """
        lacking: list[str] = []
        if self._read() and not self.is_newest:
            lacking = self._tree.pull(self._folder)
            for name in files_below(self._folder):
                if name.startswith(CHECKPOINT) and name not in self._tree.files:
                    (self._folder / name).unlink(missing_ok=True)
            if not lacking:
                self._mark()
        if self._tree.version:
            self._tree.tidy()
        return lacking

    @property
    def is_newest(self) -> bool:
        """True if the folder is the copy, or goes on from it; as the copy was when it was last read."""
        try:
            return (self._folder / _MARK).read_text(encoding="utf-8") == self._tree.version
        except (OSError, UnicodeDecodeError):
            return not self._tree.version

    def push(self, *, with_events: bool = True) -> None:
        """Brings the copy up to the folder, whose checkpoints replace those of the copy; other files join them.

        Raises:
            StoreError: the store does not take it; what it had is whole.
            OSError: a file cannot be read.
        """
        if not self._is_read:
            self._read()
        before = self._tree.version
        names = [name for name in files_below(self._folder) if with_events or not name.startswith(_EVENTS)]
        self._tree.push(self._folder, names, gone=lambda name: name.startswith(CHECKPOINT))
        if self._tree.version != before or not self.is_newest:
            self._mark()

    def bring_together(self) -> None:
        """Brings the copy up to the folder, or the folder up to the copy if another machine has written that."""
        self._read()
        if self.is_newest:
            self.push()
        else:
            self.fetch()

    def drop_checkpoints(self) -> None:
        """Removes the checkpoints from the copy."""
        if self._read():
            newest = self.is_newest
            self._tree.drop(lambda name: name.startswith(CHECKPOINT))
            if newest and self._folder.is_dir():
                self._mark()
        self._tree.tidy()

    def _read(self) -> bool:
        found = self._tree.read()
        self._is_read = True
        return found

    def _mark(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, say: then the copy counts
            make_private(self._folder)
            write_atomically(self._folder / _MARK, self._tree.version)


def is_marked(folder: Path) -> bool:
    """True if the folder has been brought together with its copy."""
    return (folder / _MARK).exists()
