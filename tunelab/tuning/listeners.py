"""Who is told of what happens in a search, after it is recorded."""

from __future__ import annotations

from typing import Protocol

from tunelab.records import Trial


class Listener(Protocol):
    """Who wants to know what happens, to show it."""

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost and will be handed out again; `why` is one line."""

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""


class Told:
    """Tells several listeners, in order, of what happens in a search."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def started(self, trial: Trial) -> None:
        """A trial was handed out."""
        for listener in self._listeners:
            listener.started(trial)

    def reported(self, trial: Trial) -> None:
        """A trial has one more epoch."""
        for listener in self._listeners:
            listener.reported(trial)

    def retried(self, trial: Trial, why: str) -> None:
        """A trial was lost and will be handed out again."""
        for listener in self._listeners:
            listener.retried(trial, why)

    def ended(self, trial: Trial) -> None:
        """A trial will not go on."""
        for listener in self._listeners:
            listener.ended(trial)
