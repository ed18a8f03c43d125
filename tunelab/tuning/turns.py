"""What happens in one turn of a search: on the disk in one write, before anything follows from it.

An epoch, the decision that it leads to and the end of its trial are three events of the record, and one wait for the
disk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunelab.errors import TunelabError
from tunelab.journal import Journal
from tunelab.records import Trial


class Turns:
    """Gathers the events of a turn, and carries out what follows from them once they are on the disk.

    Args:
        journal: the record, open for writing.
        failed: is told why the record cannot be written.
    """

    def __init__(self, journal: Journal, failed: Callable[[TunelabError], None]) -> None:
        self._journal = journal
        self._failed = failed
        self._depth = 0
        self._events: list[Mapping[str, Any]] = []
        self._undo: list[Callable[[], object]] = []
        self._then: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """What is recorded inside is written when the outermost turn is over, also if something inside raises.

        Raises:
            TunelabError: it cannot be written; what can be undone is undone, and nothing follows from it.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._settle()

    def record(self, event: str, trial: Trial, **content: Any) -> None:
        """One more event of a trial; outside of a turn it is on the disk when this returns.

        Raises:
            TunelabError: as `turn`.
        """
        self._events.append({"event": event, "trial": trial.number, "time": round(time.time(), 3), **content})
        if not self._depth:
            self._settle()

    def then(self, follows: Callable[[], object]) -> None:
        """Calls it when all that was recorded before is on the disk, in the order in which it was said."""
        if self._depth:
            self._then.append(follows)
        else:
            follows()

    def or_else(self, undo: Callable[[], object]) -> None:
        """Calls it if what this turn records cannot be written, the last one first."""
        if self._depth:
            self._undo.append(undo)

    def _settle(self) -> None:
        events, undo, then = self._events, self._undo, self._then
        self._events, self._undo, self._then = [], [], []
        try:
            if events:
                self._journal.append(*events)
        except TunelabError as error:
            for one in reversed(undo):
                one()
            self._failed(error)
            raise
        for one in then:
            one()
