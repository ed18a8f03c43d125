"""Optuna's dashboard on the journal of a study, which it reads and cannot write.

Optuna's own file backend makes a file where there is none, and its dashboard has buttons that write.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from tunelab.errors import InputError
from tunelab.files import open_file


class Reading(BaseJournalBackend):
    """A journal that somebody else writes, as far as its lines are complete; writing to it is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = [0]  # of the lines that were seen, and of the one after them

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from a number on; none while the file is being made anew."""
        number = min(log_number_from, len(self._starts) - 1)
        try:
            opened = open_file(self._path)
        except FileNotFoundError:
            if number == 0:
                raise
            return
        with opened as file:
            file.seek(self._starts[number])
            for line in file:
                if not line.endswith(b"\n"):
                    return
                if number == len(self._starts) - 1:
                    self._starts.append(self._starts[number] + len(line))
                number += 1
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuses."""
        raise PermissionError("this journal is open for reading alone")

    @property
    def seen(self) -> int:
        """How many bytes were read so far."""
        return self._starts[-1]


class OptunaView:
    """Optuna's dashboard as an application of this process; a journal that is made anew meanwhile is read anew.

    Args:
        journal: the study's.

    Raises:
        InputError: the package `optuna-dashboard` is not installed, or there is no journal that can be read.
    """

    def __init__(self, journal: Path) -> None:
        try:
            from optuna_dashboard import wsgi
        except ImportError as error:
            raise InputError(
                "Optuna's dashboard needs a package that is not installed: python -m pip install optuna-dashboard"
            ) from error
        self._wsgi: Callable[[JournalStorage], Any] = wsgi
        self._path = journal
        self._lock = threading.Lock()
        try:
            self._open()
        except FileNotFoundError:
            raise InputError("this study has no journal of Optuna's") from None
        except Exception as error:  # whatever somebody else's journal makes Optuna raise
            raise InputError(f"{journal} cannot be read: {type(error).__name__}: {error}") from error

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answers a request."""
        with self._lock:
            if self._is_another():
                self._open()
            app = self._app
        answer: Iterable[bytes] = app(environ, start)
        return answer

    def _open(self) -> None:
        reading = Reading(self._path)
        self._file = _identity(self._path)
        self._app = self._wsgi(JournalStorage(reading))
        self._reading = reading

    def _is_another(self) -> bool:
        """True if the journal is not the file that was opened, or has lost what was read of it."""
        try:
            return _identity(self._path) != self._file or self._path.stat().st_size < self._reading.seen
        except OSError:
            return False  # while it is made anew: what was read is shown


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
