"""What takes longer than it should is told of; code of the user's own is broken off too, where that is possible.

A search waits for its space before each trial: a `draw` that never returns would hold it up for ever, in silence.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from tunelab.errors import InputError

TELLS_AFTER = 10.0
"""Seconds until it is told of (our choice: a draw takes milliseconds)."""
ENDS_AFTER = 120.0
"""Seconds until it is broken off (our choice)."""


@contextlib.contextmanager
def limited(what: str) -> Iterator[None]:
    """Around foreign code: tells on standard error when it takes long, and breaks it off when it takes far too long.

    Only the main thread of a program can be broken off, in which searches draw; in another one it is told of. An alarm
    that is set already (a test's, say) stays.

    Args:
        what: what is run, in words.

    Raises:
        InputError: it was broken off.
    """
    if threading.current_thread() is not threading.main_thread():
        with told_if_long(_long(what), TELLS_AFTER):
            yield
        return
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    begun = time.monotonic()

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if time.monotonic() - begun >= ENDS_AFTER:
            raise InputError(f"{what} did not return within {ENDS_AFTER:g} seconds")
        print(_long(what), file=sys.stderr, flush=True)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, begun + ENDS_AFTER - time.monotonic()))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(TELLS_AFTER, ENDS_AFTER))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def told_if_long(what: str, seconds: float = 30.0) -> Iterator[None]:
    """Around work of tunelab's own that takes seconds as a rule: tells on standard error once where it takes longer.

    Args:
        what: what is said.
        seconds: how long it takes at most before it is told of (our choice).
    """
    watch = threading.Timer(seconds, print, (what,), {"file": sys.stderr, "flush": True})
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _long(what: str) -> str:
    return f"note: {what} has not returned for {TELLS_AFTER:g} seconds"
