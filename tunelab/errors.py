"""The errors that tunelab raises on purpose; the command line turns each into one line and an exit status."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 300
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 20
_SHORT.maxlevel = 3


class TunelabError(Exception):
    """The work failed for a reason that one sentence can name (exit status 1)."""

    exit_status = 1


class InputError(TunelabError, ValueError):
    """What the user gave cannot be used; the message names the value and what is allowed (exit status 2)."""

    exit_status = 2


class UnfitError(InputError):
    """A cluster cannot be used as it is now, and may be fit later: a supervised search tries it again."""


class StorageError(TunelabError):
    """A disk is full, read-only or gone; what was recorded is kept, and the work can go on later (exit status 3)."""

    exit_status = 3


class RefusedError(InputError):
    """A configuration that cannot work, or is beyond the limits, found out before any time is spent on it."""


class ExhaustedError(InputError):
    """A space has no configuration left that was not tried."""


class DivergedError(TunelabError):
    """Training left the finite numbers; the message says in which epoch and with which learning rate."""


class NothingToDrawError(TunelabError):
    """What a plot would show is not there; the message says why."""


class OutOfTimeError(TunelabError):
    """An epoch was broken off because no time is left; the one before is in the checkpoint."""


class StoppedError(TunelabError):
    """Ctrl-C ended the work before its end; the message says what is kept of it (exit status 130)."""

    exit_status = 130


def brief(value: object) -> str:
    """A value as Python writes it, cut off where it is long: what strangers wrote may be larger than its file."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a very long number"
